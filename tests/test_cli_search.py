"""search on the command line, and what compose and inspect make of it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modalloy
from modalloy.cli.main import run
from modalloy.registry import Registry
from tiny import tiny_base
from toy import ask, toy_parent, toy_registry

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs the command line in this process, the toys being all that is installed."""
    monkeypatch.setattr(Registry, "discover", lambda **_: toy_registry())

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["modalloy", *map(str, words)])
        capsys.readouterr()
        code: Any = 0
        try:
            run()
        except SystemExit as end:
            code = end.code or 0
        done = capsys.readouterr()
        return int(code), done.out, done.err

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("search")
    base = tiny_base(root / "base", seed=3)
    parents = [toy_parent(root / n, base, n, seed=s) for s, n in enumerate(("sight", "sound"))]
    model, processor = modalloy.compose(base, parents=parents, registry=toy_registry())
    model.save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    lines = [
        {
            "id": str(number),
            "kind": "k",
            "messages": ask(("image", [0.4 * number]), ("audio", [0.1 * number]), "what?"),
            "options": ["the", " a", "xy"],
            "answer": number % 3,
        }
        for number in range(6)
    ]
    (root / "val-k.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_search_compose_inspect(shell: Shell, place: Path) -> None:
    out = place / "found.json"
    words = ("search", place / "model", "--validation", place, "--work", place / "work")
    code, shown, errors = shell(*words, "--out", out, "--limit", 4)
    assert code == 0, errors
    assert "Searched by grid, seed 0, for the best logprob" in shown
    assert "Candidates for sight+sound" in shown
    found = json.loads(out.read_text())
    one = found["subsets"]["sight+sound"]
    assert (one["n"], len(one["trials"]), one["replaced"]) == (4, 5, True)
    code, shown, errors = shell(*words, "--out", place / "more.json", "--json")
    assert code == 0, errors
    assert json.loads(shown)["subsets"]["sight+sound"]["n"] == 6
    code, _, errors = shell(*words, "--out", out)
    assert code == 1
    assert "found.json exists; choose another place or remove it" in errors

    parents = ("--base", place / "base", "--parent", place / "sight", "--parent", place / "sound")
    code, _, errors = shell("compose", place / "fixed", *parents, "--coefficients", out)
    assert code == 0, errors
    record = json.loads((place / "fixed" / "modalloy.json").read_text())
    assert record["coefficients"] == found["coefficients"]
    search = ("--coefficients", "search", "--validation", place, "--search", "stability")
    code, shown, errors = shell("compose", place / "searched", *parents, *search)
    assert code == 0, errors
    assert "Searched by stability, seed 0, without labels" in shown
    code, shown, errors = shell("inspect", place / "searched")
    assert code == 0, errors
    assert "Searched by stability, seed 0, without labels" in shown
    assert "set anew" not in shown
    record = json.loads((place / "searched" / "modalloy.json").read_text())
    record["coefficients"]["default"]["sight"] = 0.125
    (place / "searched" / "modalloy.json").write_text(json.dumps(record))
    assert (
        "the coefficients were set anew after the search" in shell("inspect", place / "searched")[1]
    )


def test_coefficients_by_layer_go_from_a_search_to_a_model(
    shell: Shell, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = place / "layers.json", place / "gradient"
    monkeypatch.setattr("modalloy.evaluation.learning.RATE", 0.3)
    code, shown, errors = shell(
        "search", place / "model", "--validation", place, "--strategy", "gradient",
        "--trials", 6, "--metric", "likelihood", "--out", out, "--work", work,
    )  # fmt: skip
    assert code == 0, errors
    assert "Searched by gradient, seed 0, for the best likelihood" in shown
    assert "by layer)" in shown
    record = json.loads(out.read_text())
    trials = record["subsets"]["sight+sound"]["trials"]
    assert [len(one["values"]["sight"]) for one in trials[1:]] == [2]
    # What is found is no better on the two questions that judge it, or it is: both can be written.
    record["coefficients"]["table"]["sight+sound"] = trials[1]["values"]
    chosen = place / "chosen.json"
    chosen.write_text(json.dumps(record))
    parents = ("--base", place / "base", "--parent", place / "sight", "--parent", place / "sound")
    code, _, errors = shell("compose", place / "layered", *parents, "--coefficients", chosen)
    assert code == 0, errors
    model, _ = modalloy.load(place / "layered", registry=toy_registry())
    assert model.coefficients.layers == 2
    code, shown, errors = shell("inspect", place / "layered")
    assert code == 0, errors
    assert "by layer)" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "x.txt"), "--out: x.txt must end in .json"),
        (("--out", "no/x.json"), "--out: no is no directory; make it first"),
        (("--out", "x.json", "--validation", "no.jsonl"), "no.jsonl cannot be read"),
        (("--out", "x.json", "--subset", "sight+smell"), "is no set of this composition's"),
    ],
)
def test_wrong_use(
    shell: Shell, place: Path, tmp_path: Path, monkeypatch: Any, words: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = shell("search", place / "model", "--validation", place, *words)
    assert code == 1
    assert message in errors
    assert not list(tmp_path.iterdir())


def test_validation_without_a_search(shell: Shell, place: Path, tmp_path: Path) -> None:
    code, _, errors = shell("compose", tmp_path / "m", "--validation", place)
    assert code == 1
    assert "validation and search are for coefficients='search'; got None" in errors
    for words in (("--search", "tpe"), ("--seed", "1"), ("--work", place)):
        code, _, errors = shell("compose", tmp_path / "m", *words)
        assert (code, "search are for coefficients='search'; got None" in errors) == (1, True)
