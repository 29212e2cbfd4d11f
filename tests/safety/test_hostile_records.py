"""``modalloy inspect`` on an enemy's records: they are checked, and drive no terminal."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modalloy.cli.main import run as command_line
from modalloy.cli.output import print_error, print_json, print_line, print_note, print_table
from safety.entries import merge
from safety.hostile import Box

MakeBox = Callable[[str], Box]
EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202eabc\ud800"
DRIVING = set(EVIL) - set("]0;title[2J31mabc")
INTERVAL = {"value": 0.5, "low": 0.25, "high": 1}
TRIAL = {
    "values": {"sight": 1.0}, "n": 2, "score": INTERVAL, "accuracy": INTERVAL, "gain": None,
    "unstable": None,
}  # fmt: skip
SUBSET = {
    "n": 2, "questions": None, "default": {"sight": 0.5}, "chosen": {"sight": 1.0},
    "replaced": True, "gain": INTERVAL, "trials": [TRIAL],
}  # fmt: skip
SEARCH = {
    "method": "damc", "method_options": {}, "strategy": "grid", "metric": "accuracy", "seed": 0,
    "coefficients": {}, "subsets": {"sight": SUBSET},
}  # fmt: skip


class Shell:
    """Runs ``modalloy inspect`` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capture = monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["modalloy", "inspect", *map(str, words)])
        self._capture.readouterr()
        code = 0
        try:
            command_line()
        except SystemExit as end:
            code = int(end.code or 0)
        done = self._capture.readouterr()
        return code, done.out, done.err


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setenv("COLUMNS", "200")
    return Shell(monkeypatch, capsys)


def refuses(inspect: Shell, model: Path, words: str) -> None:
    code, out, err = inspect(model)
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"base": 1}, "modalloy.json: base "),
        ({"parents": [1]}, "parents.0"),
        ({"accounting": 1}, "accounting must be list"),
        ({"coefficients": {"default": 1}}, "coefficients.rule is missing"),
        ({"method_options": {"density": "x"}}, "method_options.density must be float"),
        ({"merge": {"error": {"mean": "x"}}}, "of 'merge' must hold numbers under 'error'"),
        ({"search": 3}, "search"),
        ({"search": {**SEARCH, "subsets": []}}, "search: subsets"),
        ({"search": {**SEARCH, "subsets": {"x": {**SUBSET, "gain": 1}}}}, "subsets.x.gain"),
        ({"search": {**SEARCH, "subsets": {"x": {**SUBSET, "trials": []}}}}, "not among its tri"),
        ({"search": {**SEARCH, "subsets": {"x": {**SUBSET, "default": {"a": []}}}}}, "is empty"),
    ],
)
def test_records_of_compositions(
    box: MakeBox, inspect: Shell, keys: dict[str, Any], words: str
) -> None:
    inside = box("composition")
    inside.edit("modalloy.json", search=SEARCH)
    assert inspect(inside.model)[0] == 0
    inside.edit("modalloy.json", **keys)
    refuses(inspect, inside.model, words)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"recipe": 1}, "merge_method must be str"),
        ({"recipe": {"merge_method": []}}, "merge_method must be str"),
        ({"models": [1]}, "models.0"),
        ({"accounting": [{"source": 1}]}, "accounting.0.source must be str"),
    ],
)
def test_records_of_merges(
    box: MakeBox, good: Path, inspect: Shell, keys: dict[str, Any], words: str
) -> None:
    inside = box("base")
    merge(inside, inside.model, good / "base")
    assert inspect(inside.out)[0] == 0
    record = inside.out / "modalloy.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | keys))
    refuses(inspect, inside.out, words)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_not_waited_for(box: MakeBox, inspect: Shell) -> None:
    inside = box("composition")
    (inside.model / "modalloy.json").unlink()
    os.mkfifo(inside.model / "modalloy.json")
    refuses(inspect, inside.model, "modalloy.json is no file but a pipe or a device")


@pytest.mark.parametrize(
    ("results", "shown"),
    [
        ({"tuning_stage": {"loss": 0.5, "x": None}}, "tuning stage: loss 0.500\n"),
        ({"stage": {"loss": "x", "steps": [1]}}, "stage: loss x, steps [1]\n"),
        ({"stage": [1]}, "stage: [1]\n"),
        ([1], "results: [1]\n"),
    ],
)
def test_training_is_shown_whatever_it_holds(
    box: MakeBox, inspect: Shell, results: Any, shown: str
) -> None:
    inside = box("parent")
    inside.edit("parent.json", training={"results": results})
    code, out, _ = inspect(inside.model)
    assert code == 0
    assert shown in out


def test_scores_that_are_no_numbers(box: MakeBox, inspect: Shell) -> None:
    inside = box("parent")
    scores = {"x": float("nan"), "y": [float("inf"), 1.5]}
    inside.edit("parent.json", scores=scores)
    code, out, _ = inspect(inside.model, "--json")
    assert code == 0
    assert json.loads(out)["scores"] == {"x": None, "y": [None, 1.5]}


@pytest.mark.parametrize("kind", ["parent", "composition"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_terminals_are_not_driven(box: MakeBox, inspect: Shell, kind: str, form: str) -> None:
    inside = box(kind)
    if kind == "parent":
        inside.edit("parent.json", training={"results": {EVIL: {EVIL: EVIL}}}, scores={EVIL: EVIL})
    else:
        inside.edit("modalloy.json", method=EVIL)
        inside.edit("modalloy.json", lambda data: data["coefficients"].update(rule=f"[/x]{EVIL}"))
    code, out, err = inspect(inside.model, *(["--json"] if form == "json" else []))
    assert code == 0
    assert not DRIVING & set(out + err)
    if form == "json":
        found = json.loads(out)
        assert (found["scores"] if kind == "parent" else {EVIL: found["method"]}) == {EVIL: EVIL}
    else:
        assert r"\x1b]0;title\x07\x1b[2J\x9b31m\u202eabc\ud800" in out


@pytest.mark.parametrize("key", ["name", "licence"])
def test_names_that_drive_terminals_are_refused(box: MakeBox, inspect: Shell, key: str) -> None:
    inside = box("parent")
    inside.edit("parent.json", lambda data: data.update({key: EVIL}))
    code, out, err = inspect(inside.model)
    assert (code, "must be one line of printable characters" in err) == (1, True)
    assert not DRIVING & set(out + err)


def test_everything_that_prints(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(EVIL)
    print_note(EVIL)
    print_error(EVIL)
    print_json({EVIL: [EVIL]})
    print_table(EVIL, [EVIL], [[EVIL]])
    print_line("tab\tnew\nline, \u00e9\u3000\u2764\ufe0f\u200d\U0001f525")
    done = capsys.readouterr()
    assert not DRIVING & set(done.out + done.err)
    assert done.out.endswith("tab\tnew\nline, \u00e9\u3000\u2764\ufe0f\u200d\U0001f525\n")
    assert done.err.startswith(r"\x1b]0;title")


def test_tables_take_nothing_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[bold]a[/x] :fire:", ["[red]b :fire:"], [["[/c] wide enough for all"]])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "[bold]a[/x] :fire:"
    assert {"[red]b :fire:", "[/c] wide enough for all"} <= set(lines)
