"""Coefficients of their own for every decoder layer: given, folded, saved, and learned."""

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import modalloy
from composing import BOTH, CLOSE, SEE, compose, embeds, logits, oracle
from modalloy.composition.coefficients import Coefficients, show_value
from modalloy.composition.features import FeatureStore
from modalloy.composition.layers import StreamLinear
from modalloy.deltas.lowrank import LowRankDelta, read_adapter
from modalloy.errors import FormatError, InputError, ModalloyError, SpecError
from modalloy.evaluation import learning
from modalloy.evaluation.learning import LEARNED_FILE, learn_coefficients
from modalloy.evaluation.scoring import score_options
from modalloy.evaluation.search import search_coefficients
from test_search import asked
from tiny import FAMILIES, tiny_base
from toy import toy_parent, toy_registry

PAIR = frozenset({"sight", "sound"})
VALUES = {"sight": [0.9, -0.4], "sound": 0.3}


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base", family=request.param, seed=3)


@pytest.fixture
def parents(base: Path, tmp_path: Path) -> list[Path]:
    return [
        toy_parent(tmp_path / name, base, name, seed=seed)
        for seed, name in enumerate(("sight", "sound"))
    ]


def by_layer(delta: LowRankDelta, value: Any) -> LowRankDelta:
    """A delta, every layer times its own number."""
    scaled = {}
    for name, pair in delta.pairs.items():
        layer = next(int(part) for part in name.split(".") if part.isdigit())
        factor = value[layer] if isinstance(value, list) else value
        scaled[name] = attrs.evolve(pair, B=factor * pair.B)
    return LowRankDelta(scaled)


def goal_of(base: Path, parents: list[Path], model: Any, batch: Any) -> torch.Tensor:
    types = batch["mm_token_type_ids"]
    masked = []
    for path, (name, value) in zip(parents, VALUES.items(), strict=True):
        text = by_layer(read_adapter(path / "text_adapter"), value)
        masked.append((text, (types == 0)[..., None].float()))
        own = read_adapter(path / "modality_adapter")
        masked.append((own, (types == model.type_ids[name])[..., None].float()))
    return oracle(base, embeds(model, batch), batch["attention_mask"], masked)


@pytest.mark.parametrize("way", ["stacked", "by stream", "folded"])
def test_every_layer_runs_on_its_own_number(
    base: Path, parents: list[Path], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = compose(base, parents, coefficients=VALUES)
    batch = processor.apply_chat_template([BOTH, SEE])
    monkeypatch.setattr(StreamLinear, "_stacking_pays", lambda *_: way == "stacked")
    if way == "folded":
        with model.folded_for(PAIR):
            found = logits(model, batch)
            assert model.router.runs_folded
    else:
        found = logits(model, batch)
        assert not model.router.runs_folded
    torch.testing.assert_close(found, goal_of(base, parents, model, batch), **CLOSE)


def test_passes_with_other_coefficients_run_unfolded_meanwhile(
    base: Path, parents: list[Path]
) -> None:
    model, processor = compose(base, parents)
    batch = processor.apply_chat_template([SEE])
    plain = logits(model, batch)
    with model.folded_for(PAIR):
        assert torch.equal(logits(model, batch), plain)
        assert not model.router.runs_folded


def test_equal_numbers_are_one_number(base: Path, parents: list[Path]) -> None:
    model, processor = compose(base, parents, coefficients={"sight": 0.5, "sound": 0.25})
    batch = processor.apply_chat_template([BOTH])
    once = logits(model, batch)
    model.coefficients = {"sight": [0.5, 0.5], "sound": [0.25, 0.25]}
    assert torch.equal(logits(model, batch), once)


def test_they_are_kept_in_a_table_and_on_disk(
    base: Path, parents: list[Path], tmp_path: Path
) -> None:
    model, processor = compose(base, parents, coefficients={PAIR: VALUES})
    assert model.coefficients.row(PAIR) == ((0.9, -0.4), 0.3)
    assert model.coefficients.layers == 2
    batch = processor.apply_chat_template([BOTH, SEE])  # rows of the table, one of them by layer
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, _ = modalloy.load(tmp_path / "out", registry=toy_registry())
    assert again.coefficients == model.coefficients
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.5, 0.5, 0.5], "coefficients by layer are for 3 layers, the base has 2; give one"),
        ([], "the list of 'sight' is empty; give one number for each layer"),
        ([0.5, "x"], "an entry of the list of 'sight' must be a finite number, found 'x'"),
        ([0.5, float("nan")], "an entry of the list of 'sight' must be a finite number, found nan"),
    ],
)
def test_what_is_refused(base: Path, parents: list[Path], value: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        compose(base, parents, coefficients={"sight": value, "sound": 1.0})
    assert message in str(caught.value)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(SpecError, match="lists of 1 and 2 numbers"):
        Coefficients.from_dict({"default": {"sight": [1.0], "sound": [1.0, 2.0]}})


def test_how_a_number_by_layer_is_shown() -> None:
    assert show_value(0.5) == "0.5"
    assert show_value((0.25, 0.75)) == "0.5 (0.25 to 0.75 by layer)"


def learn(made: Any, questions: Any, work: Path | None = None, steps: int = 12) -> Any:
    store = FeatureStore()
    return learn_coefficients(
        *made, {PAIR: questions}, (0.5, 0.5), steps=steps, store=store, identity="x", work=work
    )


def right(made: Any, questions: Any) -> float:
    scores = torch.tensor(score_options(*made, questions)).log_softmax(-1)
    return scores[:, 0].mean().item()


def test_learning_makes_the_right_options_likelier(
    base: Path, parents: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compose(base, parents)
    monkeypatch.setattr(learning, "RATE", 0.2)
    questions = asked(20)
    before, own = right(made, questions), made[0].coefficients
    trained = [one.requires_grad for one in made[0].parameters()]
    values = learn(made, questions)
    assert made[0].coefficients == own
    assert made[0].trial is None
    assert [one.requires_grad for one in made[0].parameters()] == trained
    made[0].coefficients = Coefficients(("sight", "sound"), values)
    assert right(made, questions) > before + 0.01
    assert all(len(value) == 2 for value in values)
    assert learn(compose(base, parents), questions) == values


def test_a_broken_run_goes_on_and_ends_the_same(
    base: Path, parents: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, questions = compose(base, parents), asked(20)
    whole = learn(made, questions)
    monkeypatch.setattr(learning, "_SAVE_EVERY", 1)
    step, left = learning._step, [5]

    def breaking(*args: Any) -> float:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return step(*args)

    monkeypatch.setattr(learning, "_step", breaking)
    with pytest.raises(KeyboardInterrupt):
        learn(made, questions, tmp_path)
    left[0] = 7  # what is left of twelve; one more would break it again
    assert learn(made, questions, tmp_path) == whole
    left[0] = 12  # other questions begin anew
    assert learn(made, asked(19), tmp_path) != whole
    (tmp_path / LEARNED_FILE).write_bytes(b"no state")
    with pytest.raises(FormatError, match=r"learned.safetensors is no state .*; remove it"):
        learn(made, questions, tmp_path)


@pytest.mark.parametrize("start", [(0.0, 0.5), (0.5, 0.0), (0.0, 0.0)])
def test_a_coefficient_of_nothing_is_learned_too(
    base: Path, parents: list[Path], start: tuple[float, float]
) -> None:
    made = compose(base, parents)
    store = FeatureStore()
    values = learn_coefficients(*made, {PAIR: asked(8)}, start, steps=2, store=store, identity="x")
    assert all(number not in start for value in values for number in value)  # type: ignore[union-attr]


def test_other_answers_begin_anew(base: Path, parents: list[Path], tmp_path: Path) -> None:
    made, questions = compose(base, parents), asked(8)
    first = learn(made, questions, tmp_path, steps=2)
    others = [attrs.evolve(one, answer=1) for one in questions]
    assert learn(made, others, tmp_path, steps=2) == learn(made, others, steps=2) != first


def test_nothing_is_learned_from_no_questions(base: Path, parents: list[Path]) -> None:
    with pytest.raises(InputError, match="cannot be learned from no questions"):
        learn(compose(base, parents), [])


def test_weights_are_kept_folded_once_and_freed_whatever_happens(
    base: Path, parents: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = compose(base, parents)
    nested = pytest.raises(ModalloyError, match="kept folded already, for one set")
    with model.folded_for(PAIR), nested, model.folded_for({"sight"}):
        pass
    fold, calls = torch.addmm, [3]

    def breaking(*args: Any) -> torch.Tensor:
        calls[0] -= 1
        if not calls[0]:
            raise MemoryError
        return fold(*args)

    monkeypatch.setattr(torch, "addmm", breaking)
    with pytest.raises(MemoryError), model.folded_for(PAIR):
        pass
    assert all(one.folded is None for one in model.modules() if isinstance(one, StreamLinear))


def test_a_search_by_gradient_judges_on_other_questions(
    base: Path, parents: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, questions = compose(base, parents), asked(20)
    monkeypatch.setattr(learning, "RATE", 0.2)
    seen: list[Any] = []
    own = learning.learn_coefficients

    def learning_from(model: Any, processor: Any, taught: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(question.id for question in taught[PAIR])
        return own(model, processor, taught, *args, **kwargs)

    monkeypatch.setattr("modalloy.evaluation.search.learn_coefficients", learning_from)
    result = search_coefficients(*made, questions, strategy="gradient", trials=8)
    (one,) = result.subsets
    assert (len(seen), one.n) == (16, 4)
    assert {trial.n for trial in one.trials} == {4}
    assert next(trial.values for trial in one.trials) == {"sight": 0.5, "sound": 0.5}
    best = max(one.trials, key=lambda trial: trial.score.value if trial.score else -9.0)
    assert one.chosen == best.values
    assert result.learned_from is not None
    assert (result.learned_from["steps"], result.learned_from["n"]) == (8, 16)
    assert result.record()["learned_from"] == result.learned_from
    result.apply(made[0])
    assert made[0].coefficients.row(frozenset({"sight"})) == (1.0, 0.0)


def test_learning_needs_a_base_that_scores_options_at_once(
    base: Path, parents: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "takes_trees", lambda _: False)
    with pytest.raises(SpecError, match="cannot be learned by gradient over this base"):
        learn(compose(base, parents), asked(4))
