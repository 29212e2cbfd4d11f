"""Builds the documentation site from README.md and docs/, strictly and without a network.

The generator takes one folder of pages; ours also link to READMEs elsewhere in the repository,
as GitHub shows them. So the pages, and what they link to, are copied to build/docs/pages with
their links turned towards the copies. A link to what does not exist fails the build: here where it
leads to no file, in the generator where it leads to no part of a page.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
STAGE = ROOT / "build" / "docs" / "pages"
_LINK = re.compile(r"(\]\()([^)\s#]+)|^(\[[^\]]+\]: )(\S+)", re.MULTILINE)
_FENCE = re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
_FOREIGN = re.compile(r"[a-z]+:|/")


def place(source: Path) -> Path:
    """Return where a file of the repository stands among the pages."""
    path = source.relative_to(ROOT)
    if path == Path("README.md"):
        return Path("index.md")
    if path.parts[0] == "docs":
        return Path(*path.parts[1:])
    return path


def target(page: Path, link: str) -> Path | None:
    """Return the file of the repository that a page's link leads to, if there is one."""
    found = (page.parent / link).resolve()
    if found.is_dir():
        found /= "README.md"
    return found if found.is_file() and found.is_relative_to(ROOT) else None


def turned(page: Path, text: str) -> tuple[str, set[Path]]:
    """Return a page's text with links between copies, and the files that it links to.

    Raises:
        LookupError: A link leads to no file of the repository.
    """
    linked: set[Path] = set()
    here = place(page).parent

    def turn(match: re.Match[str]) -> str:
        head, link = (match[1], match[2]) if match[1] else (match[3], match[4])
        if _FOREIGN.match(link):
            return match[0]
        found = target(page, link)
        if found is None:
            raise LookupError(
                f"{page.relative_to(ROOT)}: {link} leads to no file of the repository"
            )
        linked.add(found)
        return f"{head}{os.path.relpath(place(found), here)}"

    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_LINK.sub(turn, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _LINK.sub(turn, text[end:])]), linked


def sources() -> Iterator[Path]:
    """Yield the README and every file of docs/ that is part of the site."""
    yield ROOT / "README.md"
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.is_file() and "_tools" not in path.parts and "__pycache__" not in path.parts:
            yield path


def stage() -> list[Path]:
    """Copy the pages, and all that they link to, and return what was copied."""
    shutil.rmtree(STAGE, ignore_errors=True)
    waiting, done = list(sources()), list[Path]()
    while waiting:
        source = waiting.pop(0)
        if source in done:
            continue
        done.append(source)
        copy = STAGE / place(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".md":
            shutil.copyfile(source, copy)
            continue
        text, linked = turned(source, source.read_text(encoding="utf-8"))
        copy.write_text(text, encoding="utf-8")
        waiting += sorted(linked)
    return done


def named(settings: Any) -> Iterator[str]:
    """Yield the files that a part of mkdocs.yml names."""
    if isinstance(settings, str):
        yield settings
        return
    for one in settings.values() if isinstance(settings, dict) else settings:
        yield from named(one)


def check_settings() -> None:
    """Check what the generator says nothing about: that the files it is to take are there.

    Raises:
        LookupError: One is not.
    """
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    for name in (*named(settings["nav"]), *named(settings["extra_css"])):
        if not (STAGE / name).is_file():
            raise LookupError(f"mkdocs.yml: {name} leads to no file of the pages")


def main() -> int:
    """Stage and build; the exit code is the generator's."""
    try:
        pages = stage()
        check_settings()
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 1
    shutil.rmtree(ROOT / "site", ignore_errors=True)
    words = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(words, cwd=ROOT, check=False)
    if done.returncode == 0:
        files = [path for path in (ROOT / "site").rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 2**20
        print(f"site: {len(files)} files, {size:.1f} MiB, of {len(pages)} sources")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
