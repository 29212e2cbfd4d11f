"""Docstrings of the code, as Markdown."""

import inspect
import re
from collections.abc import Mapping, Sequence

import attrs

_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Warns", "Yields")
_HEAD = re.compile(rf"^({'|'.join(_SECTIONS)}):$", re.MULTILINE)
_ITEM = re.compile(r"^(\*{0,2}[A-Za-z_][\w.]*): ", re.MULTILINE)


@attrs.frozen
class Docstring:
    """A docstring of Google's style, taken apart.

    Attributes:
        text: What stands before the first section.
        sections: Text by name of the section, such as ``"Returns"``.
    """

    text: str
    sections: Mapping[str, str]

    @property
    def summary(self) -> str:
        """The first paragraph, on one line."""
        return " ".join(self.text.split("\n\n")[0].split())

    def items(self, section: str) -> dict[str, str]:
        """Return what a section says, by name, each on one line."""
        parts = _ITEM.split(self.sections.get(section, ""))
        return {
            name: " ".join(text.split())
            for name, text in zip(parts[1::2], parts[2::2], strict=True)
        }


def read(thing: object) -> Docstring:
    """Take the docstring of a class, function or module apart.

    Raises:
        ValueError: It has none.
    """
    text = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    if not text:
        raise ValueError(f"{thing!r} has no docstring; the reference is made of them")
    parts = _HEAD.split(markdown(text))
    sections = {
        name: inspect.cleandoc(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    return Docstring(parts[0].strip(), sections)


def markdown(text: str) -> str:
    """Return reStructuredText's roles and literals as Markdown's."""
    text = re.sub(r":\w+:`~(?:\w+\.)*(\w+)`", r"`\1`", text)
    text = re.sub(r":\w+:`([\w.]+)`", r"`\1`", text)
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def cell(text: str) -> str:
    """Return text for a cell of a table, where a bar would end it."""
    return " ".join(text.split()).replace("|", "\\|")


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell(value) for value in line)} |" for line in lines)
