"""The experiment's report: numbers from made-up answers whose outcome is known."""

import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from recipes.household.cells import Cell, cell_file, read_cells, write_cell
from recipes.household.columns import COLUMNS, SKILLS
from recipes.household.figures import (
    COMPARED,
    FOUR,
    best_of,
    difference,
    gap_closed,
    retention,
    share,
)
from recipes.household.plots import coefficients_plot
from recipes.household.report import BEGIN, END, fill, write
from recipes.household.rows import ALL, NAIVE, ROWS
from recipes.household.tables import all_tables

from modalloy.evaluation.results import Record

LATE = "2026-02-02T00:00:00+00:00"


def made(row: str, column: str, right: str, **more: Any) -> Cell:
    """A cell whose answers are right where ``right`` has a 1."""
    kind = COLUMNS[column].file
    records = tuple(
        Record(
            id=str(place), kind=kind, scoring=scoring, answer="a", gold="a", right=one == "1",
            objects=(f"object-{place}",),
        )
        for scoring in COLUMNS[column].scoring
        for place, one in enumerate(right)
    )  # fmt: skip
    formed = tuple(one == "1" for one in right) if "exact" in COLUMNS[column].scoring else ()
    cell = Cell(
        row=row, column=column, n=len(right), identity=f"of {row}", questions="q",
        records=records, formed=formed, measured=LATE,
    )  # fmt: skip
    return attrs.evolve(cell, **more)


def book(*cells: Cell) -> dict[tuple[str, str], Cell]:
    return {(cell.row, cell.column): cell for cell in cells}


def test_an_average_needs_every_column() -> None:
    cells = book(*(made("ties", name, right) for name, right in zip(FOUR, ("1100", "10"))))  # noqa: B905
    found = share(cells, "ties", FOUR)
    assert found is not None
    assert (found.interval.value, found.n) == (0.5, 6)
    cells = book(made("ties", FOUR[0], "1110"), made("ties", FOUR[1], "10"))
    found = share(cells, "ties", FOUR)
    assert found is not None
    assert found.interval.value == pytest.approx((0.75 + 0.5) / 2)  # columns weigh the same
    del cells["ties", FOUR[1]]
    assert share(cells, "ties", FOUR) is None
    assert difference(cells, "ties", "joint", FOUR) is None


def test_differences_are_of_the_questions_that_both_were_asked() -> None:
    cells = book(made("ties", FOUR[0], "1101"), made("joint", FOUR[0], "11101111"))
    found = difference(cells, "ties", "joint", FOUR[:1])
    assert found is not None
    # Of the first four: 3 against 3 right, though the whole cells differ.
    assert (found.interval.value, found.n) == (0.0, 4)
    assert found.interval.low < 0 < found.interval.high


def test_the_closed_part_of_the_gap_is_known() -> None:
    start, goal, own = "10" * 40, "1" * 80, ("11" + "10") * 20
    rows = {"damc-uniform": start, "joint": goal, "damc-presence": own, "damc-layers": goal}
    cells = book(*(made(row, name, right) for row, right in rows.items() for name in FOUR))
    half = gap_closed(cells, "damc-presence", "damc-uniform")
    assert not isinstance(half, str | None)
    assert half.interval.value == pytest.approx(0.5)
    assert 0.2 < half.interval.low < 0.5 < half.interval.high < 0.8
    whole = gap_closed(cells, "damc-layers", "damc-uniform")
    assert not isinstance(whole, str | None)
    assert attrs.astuple(whole.interval) == pytest.approx((1.0, 1.0, 1.0))
    none = gap_closed(cells, "damc-uniform", "damc-layers")
    assert none == "joint training is not surely better"
    assert gap_closed(cells, "ties", "damc-uniform") is None


def test_retention_is_against_the_parent_of_the_same_kind() -> None:
    names = [f"audio-{skill}" for skill in SKILLS]
    alone, half = "1" * 30, "10" * 15
    cells = book(
        *(made("audio-naive", name, alone) for name in names),
        *(made("audio-decoupled", name, half) for name in names),
        *(made("ties", name, half) for name in names),
        *(made("damc-presence", name, half) for name in names),
    )
    naive, decoupled = (retention(cells, row, "audio") for row in ("ties", "damc-presence"))
    assert not isinstance(naive, str | None)
    assert not isinstance(decoupled, str | None)
    assert naive.interval.value == pytest.approx(0.5)
    assert decoupled.interval.value == pytest.approx(1.0)
    assert naive.n == 90
    assert retention(cells, "ties", "video") is None


def test_the_best_naive_variant_is_the_one_that_is_right_most_often() -> None:
    rights = {"naive-sum": "1000", "ties": "1110", "naive-mean": "1100"}
    cells = book(*(made(row, name, right) for row, right in rights.items() for name in COMPARED))
    assert best_of(cells, NAIVE) == "ties"
    assert best_of({}, NAIVE) is None
    del cells["ties", COMPARED[0]]
    assert best_of(cells, NAIVE) == "naive-mean"


def test_overtaken_cells_are_left_out_with_a_note(tmp_path: Path) -> None:
    early = "2026-01-01T00:00:00+00:00"
    write_cell(tmp_path, made("ties", "audio-mc", "10"))
    write_cell(tmp_path, made("ties", "video-mc", "10", identity="old", measured=early))
    write_cell(tmp_path, made("mmer", "audio-mc", "10", questions="old", measured=early))
    cells, notes = read_cells(tmp_path)
    assert list(cells) == [("ties", "audio-mc")]
    assert notes == [
        "1 cells of row 'ties' are left out: they are of an earlier model",
        "1 cells of column 'audio-mc' are left out: they are of an earlier set of questions",
    ]


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    file = cell_file(tmp_path, "ties", "audio-mc")
    file.parent.mkdir(parents=True)
    file.write_text('{"row": 1}')
    with pytest.raises(ValueError, match=r"audio-mc\.json: expected a cell of recipes\.household"):
        read_cells(tmp_path)


def everything(work: Path) -> None:
    """A few rows, measured in part."""
    for row, right in {"joint": "1111", "ties": "1100", "damc-presence": "1110"}.items():
        for name in (*FOUR, "audio-mc", "format-object"):
            write_cell(work, made(row, name, right))
    write_cell(work, made("damc-presence", "single-object-audio-noisy", "1110"))
    write_cell(work, made("audio-decoupled", "audio-mc", "1111"))
    values = {"perplexity": 21.5, "loss": 3.0}
    write_cell(work, made("base", "text-perplexity", "", n=2878, values=values))
    layers = [
        {"layer": layer, "projection": "q_proj", "parents": ["audio", "video"], "cosine": 0.125,
         "conflict": 0.25}
        for layer in range(3)
    ]  # fmt: skip
    streams = {"decoupled parents, text deltas": layers}
    (work / "interference.json").write_text(json.dumps({"parents": {}, "streams": streams}))
    record = {"left_out": {"mmer": "no <naive> parent"}, "versions": {"torch": "2"}}
    (work / "experiment.json").write_text(json.dumps(record))


def test_the_report_is_whole_and_says_what_is_missing(tmp_path: Path) -> None:
    everything(tmp_path)
    out = tmp_path / "docs"
    out.mkdir()
    (out / "results.md").write_text(f"# Mine\n\n{BEGIN}\nbefore this\n{END}\n\nFindings.\n")
    write(tmp_path, out, tmp_path / "none.json")
    text = (out / "results.md").read_text()
    assert text.startswith("# Mine\n")
    assert text.endswith(f"{END}\n\nFindings.\n")
    assert "before this" not in text
    line = next(one for one in text.splitlines() if one.startswith("| DAMC presence |"))
    assert re.match(r"\| DAMC presence \| 75\.0 \[\d+\.\d, \d+\.\d\] \(n = 8\) \| not me", line)
    assert "| base LLM alone | 21.5000 (2878 tokens) | not measured | - |" in text
    assert "| decoupled parents, text deltas | audio and video | +0.1250 | 25.00 |" in text
    assert "mmer is left out: no <naive> parent." in text
    data = json.loads((out / "results.json").read_text())
    assert data["cells"]["ties"][FOUR[0]]["options"]["right"]["value"] == 0.5
    assert data["cells"]["ties"]["audio-mc"]["formed"]["n"] == 4
    assert data["cells"]["base"]["text-perplexity"]["perplexity"] == 21.5


def test_the_page_stands_alone_and_is_the_same_each_time(tmp_path: Path) -> None:
    everything(tmp_path)
    pages = []
    for name in ("one", "two"):
        write(tmp_path, tmp_path / name, tmp_path / "none.json")
        pages.append((tmp_path / name / "results.html").read_bytes())
    assert pages[0] == pages[1]
    page = pages[0].decode()
    assert page.count("<svg") == 3  # nothing of retention, and no coefficients
    assert page.count("<p class=unknown>not measured</p>") == 2
    assert "no &lt;naive&gt; parent" in page
    for foreign in ("<script", "<link", "@import", 'src="', 'href="http'):
        assert foreign not in page
    found = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert found <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, found
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', page)) <= set(ids)


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    write(tmp_path, tmp_path / "docs", tmp_path / "none.json")
    text = (tmp_path / "docs" / "results.md").read_text()
    assert "- 0 of " in text
    assert not re.search(r"\d\.\d \[", text)


def test_every_row_of_a_table_fits_its_header(tmp_path: Path) -> None:
    everything(tmp_path)
    spec = {frozenset({"audio"}): dict.fromkeys(ALL, 0.5), frozenset(): dict.fromkeys(ALL, 0.0)}
    specs = {"DAMC searched": spec}
    for table in all_tables(read_cells(tmp_path)[0], {}, specs):
        assert all(len(row) <= len(table.header) for row in table.rows), table.name
    assert len(table.rows) == len(ROWS)
    found = next(t for t in all_tables({}, {}, specs) if t.name == "coefficients")
    assert found.rows == (
        ("DAMC searched", "text alone", *["0"] * 4),
        ("DAMC searched", "audio", *["0.5"] * 4),
    )


def test_learned_coefficients_are_drawn_by_layer() -> None:
    by_layer = {name: (0.5, 0.25 * place) for place, name in enumerate(ALL)}
    drawn = coefficients_plot({"learned": {frozenset(ALL): by_layer}})
    assert drawn is not None
    assert drawn.count("stroke-width: 1.2") >= len(ALL)
    assert coefficients_plot({"grid": {frozenset(ALL): dict.fromkeys(ALL, 0.5)}}) is None


@pytest.mark.parametrize("text", ["", f"{END} {BEGIN}", BEGIN, f"{BEGIN} {END} {END}"])
def test_a_page_without_its_marks_is_left_alone(text: str) -> None:
    with pytest.raises(ValueError, match=r"r\.md: expected the lines <!-- results:begin --> and"):
        fill(text, "new", Path("r.md"))
