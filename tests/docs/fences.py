"""The blocks of code of README.md, docs/, and the READMEs of plugins and examples."""

import re
import shlex
from pathlib import Path

import attrs
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
GENERATED = ("docs/results.md",)
"""Written by `make results`; tables and figures."""

PLUGINS = ("plugins", "examples")
"""Folders of distributions, each with a README."""

_TITLE = re.compile(r'title="([^"]+)"')


@attrs.frozen
class Block:
    """A block of code.

    Attributes:
        page: Path of its page in the repository.
        line: Of its first line of code, counted from 1.
        language: First word behind the fence; ``""`` where there is none.
        title: What it is the content of, where it says so: a file, or ``"encoder NAME"`` for the
            configuration of one.
        text: The code.
        fenced: Whether it stands between fences and is not just indented.
    """

    page: str
    line: int
    language: str
    title: str | None
    text: str
    fenced: bool

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Return the command lines: those behind a ``$`` where there are such, else all."""
        lines = self.text.replace("\\\n", " ").splitlines()
        shown = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line.strip() for line in shown or lines if line.strip()]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def pages() -> list[str]:
    """Return the pages whose blocks are looked at, by path in the repository."""
    plugins = [path for folder in PLUGINS for path in sorted(ROOT.glob(f"{folder}/*/README.md"))]
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *plugins]
    names = [str(path.relative_to(ROOT)) for path in found]
    return [name for name in names if name not in GENERATED]


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page in its order."""
    return parse(page, (ROOT / page).read_text(encoding="utf-8"))


def parse(page: str, text: str) -> list[Block]:
    found = []
    for token in MarkdownIt("commonmark").parse(text):
        if token.type not in ("fence", "code_block"):
            continue
        fenced = token.type == "fence"
        assert token.map is not None
        language, _, rest = token.info.strip().partition(" ")
        title = _TITLE.search(rest)
        name = title[1] if title else None
        found.append(Block(page, token.map[0] + 1 + fenced, language, name, token.content, fenced))
    return found
