"""What model cards are made of: texts of strangers among ours, which have to stay texts.

Names and licences stand in files that anybody may have written, and a card is Markdown that a
browser shows: in it, a line more is a heading, and a bracket more an element of a page.
"""

import json
import re
from collections.abc import Iterable

# Backslashes take the meaning of all of them (CommonMark 0.31, section 2.4).
_MARKUP = re.compile(r"[\\`*<>&|~\[\]]")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def front(
    library: str,
    bases: Iterable[str],
    *,
    pipeline: str | None = None,
    tags: Iterable[str] = ("merge", "modalloy"),
) -> str:
    """Return the lines of a card that the Hub reads, between their ``---``.

    Args:
        library: That opens the model.
        bases: What it was made from; those that are Hub ids are named, and no others.
        pipeline: What it is for.
        tags: As the Hub lists it.
    """
    hub = sorted({one for one in bases if _HUB_ID.fullmatch(one)})
    lines = [f"library_name: {library}"]
    if pipeline is not None:
        lines.append(f"pipeline_tag: {pipeline}")
    if hub:
        # JSON is YAML that has no line breaks.
        named = json.dumps(hub if len(hub) > 1 else hub[0])
        lines += [f"base_model: {named}", "base_model_relation: merge"]
    return "\n".join(["---", *lines, f"tags: {json.dumps(list(tags))}", "---"])


def cell(text: object) -> str:
    """Return a text for a card, on one line and without markup: for cells, headings and prose."""
    return _MARKUP.sub(r"\\\g<0>", _line(text))


def code(text: object) -> str:
    """Return a text for a card as code, on one line."""
    line = _line(text)
    fence = "`" * (_longest_run(line) + 1)
    # One space at both ends is not shown; it parts the text's own backticks from the fence.
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}" if line else "(empty)"


def block(text: str, language: str) -> str:
    """Return a text of several lines for a card as a block of code."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _line(text: object) -> str:
    """Return a text on one line, without what cannot be printed: halves of pairs, controls."""
    printable = (char if char.isprintable() else " " for char in str(text))
    return " ".join("".join(printable).split())


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
