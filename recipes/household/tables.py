"""The tables of the report, as text that Markdown and HTML show alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from recipes.household.columns import COLUMNS, KINDS, SKILLS, fused
from recipes.household.conflicts import by_pair
from recipes.household.figures import (
    COMPARED,
    FAMILIES,
    Cells,
    Measured,
    best_of,
    difference,
    formed,
    gap_closed,
    retention,
    share,
)
from recipes.household.mcub import subsets
from recipes.household.rows import ALL, JOINT, NAIVE, ROWS

from modalloy.composition.coefficients import Value, show_value

Specs = Mapping[str, Mapping[frozenset[str], Mapping[str, Value]]]
"""Table of coefficients by title of the row that runs on it."""
UNKNOWN = "not measured"
COMPOSED = tuple(name for name, row in ROWS.items() if not row.alone)
LETTERS = {"audio": "A", "pointcloud": "P", "video": "V", "vision": "I"}
"""Modality to its letter in narrow tables: audio, point cloud, video, image."""


@attrs.frozen(kw_only=True)
class Table:
    """A table.

    Attributes:
        name: For links and JSON.
        title: Line above it.
        note: What the reader must know.
        header: Headings.
        rows: Cells; the first of a row is its heading.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def percent(found: Measured | str | None, sign: str = "") -> str:
    """Return a share in percent with its interval and n, a reason, or that it is not measured."""
    if found is None or isinstance(found, str):
        return found or UNKNOWN
    value, low, high = (100 * number for number in attrs.astuple(found.interval))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}] (n = {found.n})"


def short(found: Measured | None) -> str:
    """Return a share in percent with half its interval's width and n, for narrow columns."""
    if found is None:
        return "-"
    half = 50 * (found.interval.high - found.interval.low)
    return f"{100 * found.interval.value:.1f} ±{half:.1f} ({found.n})"


def headline(cells: Cells) -> Table:
    """Averages over noisy questions about several inputs, and paired differences."""
    best, joint = best_of(cells, NAIVE), best_of(cells, JOINT)

    def against(row: str, other: str | None) -> str:
        if other is None:
            return UNKNOWN
        return "-" if row == other else percent(difference(cells, row, other, COMPARED), "+")

    named = ROWS[best].title if best else "the best NaiveMC"
    jointly = ROWS[joint].title if joint else "joint training"
    return Table(
        name="headline",
        title="Noisy questions about several inputs",
        note="Right answers in %, by option likelihood, with 95 % intervals clustered by object; "
        "object and attribute questions and all sets of modalities weigh the same. Differences "
        "are in points, paired by question, over three and four inputs. The variants of NaiveMC "
        "and of joint training that are compared with are those that are right most often on these "
        "very questions.",
        header=("", *FAMILIES, f"minus {named}", f"minus {jointly}"),
        rows=tuple(
            (
                ROWS[row].title,
                *(percent(share(cells, row, columns)) for columns in FAMILIES.values()),
                against(row, best),
                against(row, joint),
            )
            for row in COMPOSED
        ),
    )


def gaps(cells: Cells) -> Table:
    """How much of the gap to joint training a row closes."""
    starts = ("damc-uniform", "damc-presence")
    return Table(
        name="gap",
        title="Gap to joint training that is closed at four noisy inputs",
        note="(row - start) / (joint - start) in %, with 95 % intervals of the paired ratio. Joint "
        "is the one of its two rows that is right more often.",
        header=("", *(f"from {ROWS[start].title}" for start in starts)),
        rows=tuple(
            (
                ROWS[row].title,
                *("-" if row == s else percent(gap_closed(cells, row, s), "+") for s in starts),
            )
            for row in COMPOSED
            if row not in JOINT
        ),
    )


def by_set(cells: Cells, kind: str, *, noisy: bool) -> Table:
    """Every set of modalities, one kind of question."""
    single = [name for name, c in COLUMNS.items() if c.group == "single"]
    columns = {
        "+".join(LETTERS[m] for m in subset): fused(kind, subset, noisy=noisy)
        for subset in subsets()
    }
    if noisy and kind == "object":
        columns = {LETTERS[COLUMNS[name].modalities[0]]: name for name in single} | columns
    return Table(
        name=f"{kind}-{'noisy' if noisy else 'clean'}",
        title=f"{kind.capitalize()} questions, {'noisy' if noisy else 'clean'} inputs",
        note="Right answers in %, ± half the 95 % interval, (n). A audio, P point cloud, V video, "
        "I image."
        + (
            " A single letter is the control: the same questions about one of the inputs."
            if noisy and kind == "object"
            else ""
        ),
        header=("", *columns),
        rows=tuple(
            (ROWS[row].title, *(short(share(cells, row, [name])) for name in columns.values()))
            for row in COMPOSED
        ),
    )


def own(cells: Cells, skill: str) -> Table:
    """Questions about one clean input in its parent's own words."""
    asked = {
        "mc": "naming, four options",
        "caption": "captions, all classes as options",
        "attribute": "attributes, four options",
    }
    return Table(
        name=f"own-{skill}",
        title=f"One modality, its parent's own words: {asked[skill]}",
        note="Right answers in %, by option likelihood, ± half the 95 % interval, (n).",
        header=("", *ALL),
        rows=_filled(lambda row, modality: short(share(cells, row, [f"{modality}-{skill}"]))),
    )


def free(cells: Cells) -> Table:
    """Free answers: whether they keep to a form."""
    columns = [*(f"{modality}-mc" for modality in ALL), *(f"format-{kind}" for kind in KINDS)]
    header = (*(f"{modality} naming" for modality in ALL), *(f"4 inputs, {k}" for k in KINDS))

    def both(row: str, column: str) -> str:
        kept = formed(cells, row, column)
        if kept is None or COLUMNS[column].group == "format":
            return short(kept)
        exact = share(cells, row, [column], "exact")
        return f"{short(kept)}; exact {short(exact)}"

    rows = [(ROWS[row].title, *(both(row, column) for column in columns)) for row in ROWS]
    return Table(
        name="format",
        title="Form of free, greedy answers",
        note="Share of answers in %, ± half the 95 % interval, (n), that are in the parent's own "
        "form to the letter, whichever class they name, and (exact) that are the right one. About "
        "four noisy inputs, which no parent was trained on: that are, case and final punctuation "
        "aside, a bare option or any parent's form of it.",
        header=("", *header),
        rows=tuple(row for row in rows if any(cell != "-" for cell in row[1:])),
    )


def kept(cells: Cells) -> Table:
    """Retention of every parent's skill."""
    return Table(
        name="retention",
        title="Retention of each parent's skill",
        note="Accuracy on a modality's own questions (naming, captions, attributes) in % of what "
        "the parent of the same kind, naive or decoupled, gets alone on the same questions; 95 % "
        "intervals of the paired ratio. Joint training is set against the naive parents.",
        header=("", *ALL),
        rows=tuple(
            (ROWS[row].title, *(percent(retention(cells, row, m)) for m in ALL)) for row in COMPOSED
        ),
    )


def text(cells: Cells) -> Table:
    """Text without inputs."""
    rows = []
    for name, row in ROWS.items():
        cell = cells.get((name, "text-perplexity"))
        shown = f"{cell.values['perplexity']:.4f} ({cell.n} tokens)" if cell else UNKNOWN
        right = share(cells, name, ["text-questions"])
        base = (
            "-"
            if name == "base"
            else percent(difference(cells, name, "base", ["text-questions"]), "+")
        )
        rows.append((row.title, shown, percent(right), base))
    return Table(
        name="text",
        title="Text alone",
        note="Perplexity of recipes/household/text.txt (windows of 512 tokens, moved by 256), and "
        "four-way questions without inputs. By presence, text alone runs on the base to the bit.",
        header=("", "perplexity", "questions, right in %", "minus base, points"),
        rows=tuple(rows),
    )


def interference(streams: Mapping[str, Sequence[dict[str, Any]]]) -> Table:
    """Mean interference of every pair of parents."""
    rows = []
    for stream, records in streams.items():
        cosine, conflict = (by_pair(list(records), value) for value in ("cosine", "conflict"))
        rows += [
            (stream, pair, f"{cosine[pair]:+.4f}", f"{100 * conflict[pair]:.2f}") for pair in cosine
        ]
    return Table(
        name="interference",
        title="Interference between parents",
        note="Means over all linear layers. Unrelated deltas have cosine 0 and disagree in sign on "
        "half of their values.",
        header=("deltas", "parents", "cosine", "sign conflict in %"),
        rows=tuple(rows) or (("-", UNKNOWN, "-", "-"),),
    )


def coefficients(specs: Specs) -> Table:
    """The tables that searches found."""
    groups = list(next((row for spec in specs.values() for row in spec.values()), {}))
    rows = [
        (
            title,
            " + ".join(sorted(one)) or "text alone",
            *(show_value(spec[one][group]) for group in groups),
        )
        for title, spec in specs.items()
        for one in sorted(spec, key=lambda one: (len(one), sorted(one)))
    ]
    return Table(
        name="coefficients",
        title="Coefficients that were searched, by the modalities in the prompt",
        note="Of each parent's text delta; found on validation objects, never on the test's.",
        header=("", "in the prompt", *groups),
        rows=tuple(rows) or ((UNKNOWN, ""),),
    )


def times(cells: Cells) -> Table:
    """What measuring took."""
    rows = []
    for name, row in ROWS.items():
        own_cells = [cell for (of, _), cell in cells.items() if of == name]
        asked, seconds = sum(c.asked for c in own_cells), sum(c.seconds for c in own_cells)
        rate = f"{asked / seconds:.1f}" if seconds else "-"
        rows.append((row.title, str(len(own_cells)), str(asked), f"{seconds:.0f}", rate))
    return Table(
        name="times",
        title="Time",
        note="Answers, or tokens of the text, that the last measuring of each cell asked for "
        "anew, and its seconds on one thread of a machine that may have had other work.",
        header=("", "cells", "new answers", "seconds", "answers per second"),
        rows=tuple(rows),
    )


def _filled(cell: Callable[[str, str], str]) -> tuple[tuple[str, ...], ...]:
    """Return a row for each composition that has any number."""
    rows = [
        (row.title, *(cell(name, m) for m in ALL)) for name, row in ROWS.items() if row.modalities
    ]
    return tuple(row for row in rows if any(one != "-" for one in row[1:])) or ((UNKNOWN,),)


def all_tables(
    cells: Cells,
    streams: Mapping[str, Sequence[dict[str, Any]]],
    specs: Specs,
) -> list[Table]:
    """Return every table of the report in its order.

    Args:
        cells: What was measured.
        streams: Interference records by stream.
        specs: Coefficients that searches found, by title of their row.
    """
    return [
        headline(cells),
        gaps(cells),
        *(by_set(cells, kind, noisy=noisy) for noisy in (True, False) for kind in KINDS),
        *(own(cells, skill) for skill in SKILLS),
        free(cells),
        kept(cells),
        text(cells),
        interference(streams),
        coefficients(specs),
        times(cells),
    ]
