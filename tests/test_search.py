"""Coefficient search: planted optima are found, runs are repeatable and resumable, errors speak."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import modalloy
from modalloy.cli.compose import parse_coefficients
from modalloy.composition.coefficients import Coefficients
from modalloy.errors import FormatError, InputError, MissingComponentError, SpecError
from modalloy.evaluation import candidates, strategies
from modalloy.evaluation.answers import Answer
from modalloy.evaluation.candidates import log_shares
from modalloy.evaluation.composing import read_validation
from modalloy.evaluation.questions import Question
from modalloy.evaluation.scoring import score_options
from modalloy.evaluation.search import SEARCH_FILE, search_coefficients
from modalloy.evaluation.strategies import LINE, change, grid_rows, scaled
from tiny import tiny_base
from toy import TYPES, ask, toy_parent, toy_registry

PAIR, ALL = frozenset({"sight", "sound"}), frozenset({"sight", "sound", "touch"})
GROUPS = ("sight", "sound", "touch")
WORDS = ["the", " a", " is", "xy", "what", "zz"]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    root = tmp_path_factory.mktemp("search")
    base = tiny_base(root / "base", seed=3)
    return base, [
        toy_parent(root / name, base, name, seed=seed) for seed, name in enumerate(GROUPS)
    ]


@pytest.fixture
def composed(parents: tuple[Path, list[Path]]) -> Any:
    return modalloy.compose(parents[0], parents=parents[1], registry=toy_registry(*GROUPS))


def asked(count: int, names: Sequence[str] = ("sight", "sound")) -> list[Question]:
    """Questions that differ in their inputs and in the order of their options."""
    return [
        Question(
            id=str(number),
            kind="+".join(names),
            messages=ask(
                *((TYPES[name], [0.3 * number + place]) for place, name in enumerate(names)),
                "what?",
            ),
            options=[WORDS[(number + place) % len(WORDS)] for place in range(4)],
            answer=0,
            objects=[f"object {number // 2}"],
        )
        for number in range(count)
    ]


def planted(composed: Any, questions: list[Question], row: tuple[float, ...]) -> list[Question]:
    """The same questions, right being what the composition answers with one row."""
    model, processor = composed
    own = model.coefficients
    model.coefficients = Coefficients(GROUPS, row)
    scores = score_options(model, processor, questions)
    model.coefficients = own
    answers = [one.index(max(one)) for one in scores]
    return [attrs.evolve(q, answer=a) for q, a in zip(questions, answers, strict=True)]


def test_the_grid_finds_that_an_absent_parent_is_harmful(composed: Any) -> None:
    questions = planted(composed, asked(40), (0.7, 0.7, 0.0))
    result = search_coefficients(*composed, questions, metric="accuracy")
    (one,) = result.subsets
    assert one.present == ("sight", "sound")
    assert one.chosen == {"sight": 0.7, "sound": 0.7, "touch": 0.0}
    assert one.default == {"sight": 0.5, "sound": 0.5, "touch": 0.5}
    found = one.trial(one.chosen)
    assert found.accuracy is not None
    assert (found.n, found.accuracy.value) == (40, 1.0)
    assert one.gain is not None
    assert one.gain.value == pytest.approx(1 - one.trial(one.default).accuracy.value)  # type: ignore[union-attr]
    assert one.gain.low < one.gain.value < one.gain.high
    # Every row but this one, one parent alone and the base among them, is as it was.
    assert result.coefficients.row(PAIR) == (0.7, 0.7, 0.0)
    before = composed[0].coefficients
    assert result.coefficients.row(ALL) == before.row(ALL)
    for key in ({"sight"}, {"sound"}, {"touch"}, set()):
        assert result.coefficients.row(frozenset(key)) == before.row(frozenset(key))
    # The model is left alone until the result is applied.
    assert before.rule == "presence"
    result.apply(composed[0])
    assert composed[0].coefficients == result.coefficients


def test_the_score_is_the_log_probability_of_the_right_option(composed: Any) -> None:
    questions = asked(10)
    (one,) = search_coefficients(*composed, questions).subsets
    scores = score_options(*composed, questions)
    own = [log_shares(row)[q.answer or 0] for q, row in zip(questions, scores, strict=True)]
    trial = one.trial(one.default)
    assert trial.score is not None
    assert trial.score.value == pytest.approx(sum(own) / 10, abs=1e-4)
    best = max(one.trials, key=lambda t: t.score.value if t.score else -9.0)
    assert one.chosen == best.values


def test_tpe_goes_on_from_the_grid_and_beats_it(composed: Any) -> None:
    # The second parent is harmful where it is present: no equal values fit.
    questions = planted(composed, asked(16), (1.1, 0.0, 0.0))
    by_grid = search_coefficients(*composed, questions).subsets[0]
    by_tpe = search_coefficients(*composed, questions, strategy="tpe", trials=20).subsets[0]
    assert by_tpe.trials[: len(by_grid.trials)] == by_grid.trials
    assert len(by_tpe.trials) > len(by_grid.trials) + 15
    assert by_tpe.gain is not None
    assert by_grid.gain is not None
    assert by_tpe.gain.value > by_grid.gain.value
    assert by_tpe.chosen["sound"] < 0.5 < by_tpe.chosen["sight"]
    assert all(0 <= value <= 1.2 for trial in by_tpe.trials for value in trial.values.values())


def test_stability_chooses_the_steadiest_answers_without_labels(composed: Any) -> None:
    model, processor = composed
    questions = [attrs.evolve(question, answer=None) for question in asked(30)]
    result = search_coefficients(model, processor, questions, strategy="stability")
    (one,) = result.subsets
    chosen = []
    for step in LINE:
        model.coefficients = Coefficients(GROUPS, (step,) * 3)
        scores = score_options(model, processor, questions)
        chosen.append([row.index(max(row)) for row in scores])
    changes = {
        step: sum(a != b for other in (0, 2) for a, b in zip(chosen[i], chosen[i + other - 1],
                                                             strict=True))
        for i, step in enumerate(LINE) if 0 < i < len(LINE) - 1
    }  # fmt: skip
    assert len(set(changes.values())) > 2, "the toy must tell candidates apart"
    found = {t.values["sight"]: t.unstable for t in one.trials if t.unstable is not None}
    assert found == {step: pytest.approx(count / 60) for step, count in changes.items()}
    assert changes[one.chosen["sight"]] == min(changes.values())
    assert (result.metric, one.gain, one.trials[0].score) == (None, None, None)


def test_stability_finds_a_planted_plateau(composed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(model: Any, _: Any, questions: Sequence[Question], **options: Any) -> None:
        scale = model.coefficients.default[0]
        for place, question in enumerate(questions):
            # Answers are steady from 0.7 to 0.9, and change with every step elsewhere.
            steps = 3 if 0.65 < scale < 0.95 else round(10 * scale)
            scores = [float((steps + place) % len(question.options) == i) for i in range(4)]
            options["found"](place, scores)

    monkeypatch.setattr(candidates, "score_options", answer)
    result = search_coefficients(*composed, asked(8), strategy="stability")
    assert result.coefficients.row(PAIR) == (0.8, 0.8, 0.8)
    assert result.subsets[0].trial(result.subsets[0].chosen).unstable == 0


def test_free_answers_serve_stability(composed: Any) -> None:
    questions = [attrs.evolve(one, options=[], answer=None) for one in asked(3)]
    one = search_coefficients(*composed, questions, strategy="stability").subsets[0]
    assert min(t.unstable for t in one.trials if t.unstable is not None) >= 0


def test_ties_of_changes_are_told_apart_by_probabilities() -> None:
    def one(text: str, *scores: float) -> Answer:
        return Answer(text, scores)

    far, near, same = one("a", 0.0, -9.0), one("a", 0.0, -0.1), one("a", 0.0, -0.1)
    assert change([[near], [near], [same]]) == (0, 0.0)
    changed, shift = change([[far], [near], [one("b", -0.1, 0.0)]])
    assert changed == 1
    assert shift == pytest.approx(0.4749 + 0.0500, abs=1e-3)


def test_the_default_stays_unless_another_is_better(composed: Any) -> None:
    questions = planted(composed, asked(12), (0.5, 0.5, 0.5))
    result = search_coefficients(*composed, questions, metric="accuracy")
    assert not result.subsets[0].replaced
    assert result.coefficients == composed[0].coefficients
    assert result.coefficients.rule == "presence"
    # Nor does it give way to one that is as good: a single option is always right.
    same = [attrs.evolve(one, options=one.options[:1], answer=0) for one in questions[:2]]
    assert not search_coefficients(*composed, same).subsets[0].replaced


def test_halving_asks_fewer_questions_and_keeps_the_best(composed: Any) -> None:
    questions = planted(composed, asked(64), (0.7, 0.7, 0.0))
    result = search_coefficients(*composed, questions, metric="accuracy")
    trials = result.subsets[0].trials
    assert result.subsets[0].chosen == {"sight": 0.7, "sound": 0.7, "touch": 0.0}
    # The default is asked everything; of nine others all 16, five 32, and three 64.
    assert sorted(trial.n for trial in trials) == [16] * 4 + [32] * 2 + [64] * 4
    assert trials[0].n == 64


def test_the_seed_decides_and_the_order_of_questions_does_not(composed: Any) -> None:
    questions = asked(6)
    run: Callable[..., Any] = lambda some, seed: search_coefficients(  # noqa: E731
        *composed, some, strategy="tpe", trials=4, seed=seed
    )
    first, again, other = run(questions, 3), run(questions[::-1], 3), run(questions, 4)
    assert first.record() == again.record()
    assert [t.values for t in other.subsets[0].trials] != [
        t.values for t in first.subsets[0].trials
    ]


def test_a_broken_run_goes_on(composed: Any, tmp_path: Path, monkeypatch: Any) -> None:
    questions = asked(12)
    whole = search_coefficients(*composed, questions)
    calls = 0
    real = candidates.score_options

    def breaking(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(candidates, "score_options", breaking)
    with pytest.raises(KeyboardInterrupt):
        search_coefficients(*composed, questions, work=tmp_path)
    assert composed[0].coefficients.rule == "presence", "a broken run leaves the model as it was"
    assert len((tmp_path / SEARCH_FILE).read_text().splitlines()) == 36
    result = search_coefficients(*composed, questions, work=tmp_path)
    assert (result.reused, result.record()) == (36, whole.record())
    calls = 100
    again = search_coefficients(*composed, questions, work=tmp_path)
    assert (calls, again.reused) == (100, 12 * len(whole.subsets[0].trials))
    # Answers belong to the model: another one asks anew.
    with torch.no_grad():
        next(composed[0].connectors["sight"].parameters()).add_(1.0)
    assert search_coefficients(*composed, questions, work=tmp_path).reused == 0


def test_every_set_has_a_row_of_its_own(composed: Any) -> None:
    questions = planted(composed, asked(24), (0.7, 0.7, 0.0))
    questions += planted(composed, asked(20, GROUPS), (0.25, 0.25, 0.25))
    questions += asked(3, ["touch"])
    result = search_coefficients(*composed, questions, metric="accuracy")
    assert [one.name for one in result.subsets] == ["sight+sound", "sight+sound+touch"]
    assert result.coefficients.row(PAIR) == (0.7, 0.7, 0.0)
    assert result.coefficients.row(ALL) == (0.25, 0.25, 0.25)
    only = search_coefficients(*composed, questions, metric="accuracy", subsets=[GROUPS])
    assert [one.name for one in only.subsets] == ["sight+sound+touch"]
    alone = search_coefficients(*composed, questions, subsets=[["touch"]])
    assert alone.subsets[0].default == {"sight": 0.0, "sound": 0.0, "touch": 1.0}


def test_rows_of_the_grid() -> None:
    rows = grid_rows(("a", "b", "merged"), frozenset({"a"}))
    assert rows[:3] == [(0.25, 0.25, 0.0), (0.25, 0.0, 0.0), (0.0, 0.0, 0.25)]
    assert len(rows) == 15
    assert len(grid_rows(("a", "b"), frozenset("ab"))) == 5
    assert scaled((0.25, 0.5), (0.2, 1.0)) == [(0.1, 0.2), (0.5, 1.0)]
    assert scaled((0.0, 0.0), (0.2,)) == [(0.2, 0.2)]


def test_a_merged_delta_is_searched_beside_the_parents(parents: tuple[Path, list[Path]]) -> None:
    made = modalloy.compose(
        parents[0], parents=parents[1], method="damc-ties", registry=toy_registry(*GROUPS)
    )
    (one,) = search_coefficients(*made, asked(6)).subsets
    assert one.default == {"sight": 0.0, "sound": 0.0, "touch": 0.0, "merged": 1.0}
    assert len(one.trials) == 15


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"strategy": "gird"}, SpecError, ("search strategy must be grid, tpe, gradient, "
         "stability; got 'gird'. Did you mean 'grid'?")),
        ({"metric": "f1"}, SpecError, "search metric must be logprob, likelihood, accuracy"),
        ({"trials": 0}, SpecError, "search needs at least 1 trial; got 0"),
        ({"subsets": [["sight", "smell"]]}, SpecError, ("'sight+smell' is no set of this "
         "composition's modalities sight, sound, touch")),
        ({"subsets": [["sight", "touch"]]}, InputError, ("no question has inputs of sight+touch; "
         "the sets in the questions are sight+sound")),
    ],
)  # fmt: skip
def test_options_that_cannot_be(composed: Any, options: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind) as caught:
        search_coefficients(*composed, asked(2), **options)
    assert message in str(caught.value)


def test_questions_that_serve_no_search(composed: Any) -> None:
    with pytest.raises(InputError) as caught:
        search_coefficients(*composed, asked(2, ["sight"]))
    assert "no question has inputs of several modalities, so there is nothing" in str(caught.value)
    assert "the sets in the questions are sight" in str(caught.value)
    unlabelled = [attrs.evolve(one, answer=None) for one in asked(2)]
    with pytest.raises(InputError, match="has no options with a right one, which this strategy"):
        search_coefficients(*composed, unlabelled)


def test_kinds_that_the_composition_cannot_read_are_left_out(
    parents: tuple[Path, list[Path]],
) -> None:
    made = modalloy.compose(
        parents[0], parents=parents[1][:2], modalities=["sight", "sound"],
        registry=toy_registry(*GROUPS),
    )  # fmt: skip
    result = search_coefficients(*made, asked(2) + asked(2, GROUPS))
    assert [one.name for one in result.subsets] == ["sight+sound"]
    assert "takes no pressure inputs" in result.skipped["sight+sound+touch"]
    with pytest.raises(InputError, match=r"left out: sight\+sound\+touch: .*takes no pressure"):
        search_coefficients(*made, asked(2, GROUPS))


def test_optuna_missing(composed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingComponentError) as caught:
        search_coefficients(*composed, asked(2), strategy="tpe")
    assert "pip install \"modalloy[search]\", or search by 'grid'" in str(caught.value)


def test_methods_with_one_row_for_all_prompts(parents: tuple[Path, list[Path]]) -> None:
    with pytest.raises(SpecError, match="the method 'naive' has one row for all prompts"):
        modalloy.compose(
            parents[0], method="naive", coefficients="search", validation=asked(2),
            registry=toy_registry(*GROUPS),
        )  # fmt: skip


def test_composing_with_a_search(parents: tuple[Path, list[Path]], tmp_path: Path) -> None:
    registry = toy_registry(*GROUPS)
    fixed = modalloy.compose(parents[0], parents=parents[1], registry=registry)
    questions = planted(fixed, asked(24), (0.7, 0.7, 0.0))
    model, processor = modalloy.compose(
        parents[0],
        parents=parents[1],
        coefficients="search",
        validation=questions,
        search={"metric": "accuracy", "seed": 5},
        registry=registry,
    )
    assert model.coefficients.row(PAIR) == (0.7, 0.7, 0.0)
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    again = modalloy.load(tmp_path / "m", registry=registry).model
    assert again.coefficients == model.coefficients
    record = json.loads((tmp_path / "m" / "modalloy.json").read_text())["search"]
    assert (record["strategy"], record["metric"], record["seed"]) == ("grid", "accuracy", 5)
    one = record["subsets"]["sight+sound"]
    assert (one["n"], one["replaced"], one["chosen"]["touch"]) == (24, True, 0.0)
    assert len(one["trials"]) == 10


def test_what_compose_refuses(parents: tuple[Path, list[Path]]) -> None:
    with pytest.raises(SpecError, match="coefficients='search' needs validation: questions, a"):
        modalloy.compose(parents[0], coefficients="search")
    with pytest.raises(SpecError, match="validation and search are for coefficients='search'; got"):
        modalloy.compose(parents[0], coefficients="presence", validation=asked(1))


def test_a_directory_gives_its_validation_split(tmp_path: Path) -> None:
    def line(id_: str) -> str:
        message = {"role": "user", "content": "hi"}
        data = {"id": id_, "kind": "k", "messages": [message], "options": ["a"], "answer": 0}
        return json.dumps(data) + "\n"

    with pytest.raises(FormatError, match=r"holds no validation questions: expected val-\*.jsonl"):
        read_validation(tmp_path)
    for name in ("val-b", "val-a", "test-c"):
        (tmp_path / f"{name}.jsonl").write_text(line(name))
    assert [one.id for one in read_validation(tmp_path)] == ["val-a", "val-b"]
    assert [one.id for one in read_validation(tmp_path / "test-c.jsonl")] == ["test-c"]


def test_the_file_that_search_writes_is_what_compose_takes(
    composed: Any, parents: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    from modalloy.cli.search import write_table

    questions = planted(composed, asked(16), (0.7, 0.7, 0.0))
    result = search_coefficients(*composed, questions, metric="accuracy")
    write_table(tmp_path / "found.json", result.record())
    table = parse_coefficients(str(tmp_path / "found.json"), "damc", {})
    made = modalloy.compose(
        parents[0], parents=parents[1], coefficients=table, registry=toy_registry(*GROUPS)
    )
    assert made.model.coefficients == result.coefficients


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no table of coefficients"),
        ("[" * 100_000, "is not valid JSON: maximum recursion"),
        ("[]", "expected a JSON object, found list"),
        ('{"format_version": 9}', "format_version 9 is not known, expected 1; search again"),
        ('{"format_version": 1, "method": "damc", "method_options": {}, "coefficients": {}}',
         "need values by group under 'default'"),
        ('{"format_version": 1, "method": "swudi", "method_options": {}, "coefficients": {}}',
         "were found for method 'swudi' with options {}, and mean something else under 'damc'"),
        (json.dumps({"format_version": 1, "method": "damc", "method_options": {},
                     "coefficients": {"default": {"a": 0.1}, "table": {"a": {"a": 1}}}}),
         "have coefficients of their own ({'a': 0.1}), which a table cannot say"),
    ],
)  # fmt: skip
def test_files_that_are_no_table(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "t.json"
    file.write_text(text)
    with pytest.raises(FormatError) as caught:
        parse_coefficients(str(file), "damc", {})
    assert message in str(caught.value)
    assert "t.json" in str(caught.value)


def test_strategies_are_named_once() -> None:
    from modalloy.evaluation.search import STRATEGIES

    known = dir(strategies)
    assert all({f"search_{name}", f"judge_{name}"} & set(known) for name in STRATEGIES)
