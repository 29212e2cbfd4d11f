"""Results of several models beside one another."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from modalloy.cli.main import run
from modalloy.errors import FormatError, InputError
from modalloy.evaluation.comparing import compare, read_results
from modalloy.evaluation.results import Record, Results, paired_interval


def results(right: str, kind: str = "name", scoring: str = "options") -> tuple[Record, ...]:
    """Return a record for every letter, ``y`` where the answer is right."""
    return tuple(
        Record(id=f"q{n}", kind=kind, scoring=scoring, answer=one, gold="y", right=one == "y",
               objects=(f"o{n % 4}",), scores=(-1.0, -2.0))
        for n, one in enumerate(right)
    )  # fmt: skip


def written(file: Path, *records: Sequence[Record]) -> Path:
    found = Results(records=tuple(record for some in records for record in some))
    file.write_text(json.dumps({"model": "m", "benchmark": "b", **found.to_dict()}))
    return file


def test_what_evaluate_wrote_is_read_back(tmp_path: Path) -> None:
    own = results("yynn") + results("yn", "attribute")
    assert read_results(written(tmp_path / "a.json", own)).records == own


def test_lines_by_kind_and_model(tmp_path: Path) -> None:
    first = Results(records=results("ynnnnnnn") + results("yyyyyyyn", "attribute"))
    second = Results(records=results("yyyynnnn") + results("yyyyyynn", "attribute"))
    lines = compare({"a": first, "b": second})
    assert [(line.row.kind, line.label, line.row.right.value) for line in lines] == [
        ("name", "a", 1 / 8),
        ("name", "b", 4 / 8),
        ("attribute", "a", 7 / 8),
        ("attribute", "b", 6 / 8),
        ("average", "a", 4 / 8),
        ("average", "b", 5 / 8),
    ]
    assert [line.difference is None for line in lines] == [True, False] * 3
    assert lines[1].difference == paired_interval(second, first, kind="name")
    assert lines[1].difference is not None
    assert lines[1].difference.value == pytest.approx(3 / 8)
    assert lines[5].difference is not None
    assert lines[5].difference.value == pytest.approx(1 / 8)


def test_an_average_over_unequal_kinds_has_no_paired_difference() -> None:
    first = Results(records=results("ynnn") + results("yn", "attribute"))
    lines = compare({"a": first, "b": first})
    assert [line.difference is None for line in lines if line.label == "b"] == [False, False, True]


def test_kinds_that_only_one_was_asked_stand_alone() -> None:
    more = Results(records=results("yy") + results("yn", "attribute"))
    lines = compare({"a": Results(records=results("yn")), "b": more})
    told = {(line.row.kind, line.label): line.difference is None for line in lines}
    assert told == {
        ("name", "a"): True,
        ("name", "b"): False,
        ("attribute", "b"): True,
        ("average", "b"): True,
    }


def test_what_cannot_be_compared_is_refused() -> None:
    first = Results(records=results("yn"))
    with pytest.raises(InputError, match="b has no answers scored by 'options'; it has exact"):
        compare({"a": first, "b": Results(records=results("yn", scoring="exact"))})
    other = Results(records=tuple(attrs.evolve(r, gold="x") for r in first.records))
    with pytest.raises(InputError, match="is not the same in both results"):
        compare({"a": first, "b": other})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "holds no answers; give files that `modalloy evaluate` wrote"),
        ('{"answers": [3]}', "answer 0: expected a mapping of keys, found int"),
        ('{"answers": [{"id": 1}]}', "id must be str, found 1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(FormatError) as caught:
        read_results(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    with pytest.raises(FormatError, match="cannot be read"):
        read_results(tmp_path / "nothing.json")


def test_the_command(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")

    def told(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["modalloy", "report", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            run()
        done = capsys.readouterr()
        return int(caught.value.code or 0), done.out, done.err

    one = written(tmp_path / "damc.json", results("yyyn"), results("y", scoring="exact"))
    two = written(tmp_path / "naive.json", results("ynnn"))
    code, out, _ = told(one, two)
    assert code == 0
    assert "Right answers, scored by options" in out
    assert "75.0" in out
    assert "-50.0" in out
    assert "points more: than damc, paired by question" in out
    code, out, _ = told(one, two, "--json")
    data = json.loads(out)
    assert [(line["label"], line["row"]["right"]["value"]) for line in data] == [
        ("damc", 0.75),
        ("naive", 0.25),
    ]
    assert data[1]["difference"]["value"] == pytest.approx(-0.5)
    assert told(one, "--scoring", "exact", "--json")[0] == 0
    code, _, err = told(one, one)
    assert (code, "is given more than once" in err) == (1, True)
