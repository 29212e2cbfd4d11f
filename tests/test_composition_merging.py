"""The invariants of a composition, for methods that make a merged delta."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import modalloy
from composing import BOTH, CLOSE, HEAR, SEE, TEXT, compose, embeds, logits, oracle
from modalloy.composition.coefficients import Coefficients
from modalloy.composition.layers import StreamLinear
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair, read_adapter
from modalloy.errors import SpecError
from test_merging import by_hand_ties, dense_swudi
from tiny import FAMILIES, tiny_base
from toy import toy_parent, toy_registry

METHODS = {
    "ties": "naive",
    "factor-mean": "naive",
    "damc-ties": "decoupled",
    "swudi": "decoupled",
    "mmer": "naive",
}
"""Strategy of the parents that each method is tested on."""

ROUTED = ("damc-ties", "swudi", "mmer")
"""Methods that know the rule ``"presence"``."""


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base", family=request.param, seed=3)


def make(base: Path, root: Path, method: str) -> dict[str, Path]:
    strategy = METHODS[method]
    return {
        "sight": toy_parent(root / "p1", base, "sight", strategy=strategy, seed=1, prefix=2),
        "sound": toy_parent(root / "p2", base, "sound", strategy=strategy, seed=2, suffix=1),
    }


def dense(delta: Mapping[str, torch.Tensor]) -> LowRankDelta:
    """Whole matrices in the form that the oracle reads."""
    eye = {name: torch.eye(matrix.shape[1]) for name, matrix in delta.items()}
    return LowRankDelta({n: LowRankPair(eye[n], matrix, 1.0) for n, matrix in delta.items()})


def merge(method: str, parents: Mapping[str, Path]) -> LowRankDelta:
    """The merged text delta, by definitions that the package does not share."""
    deltas = [read_adapter(path / "text_adapter") for _, path in sorted(parents.items())]
    merged = {}
    for name in deltas[0]:
        pairs = [delta.pairs[name] for delta in deltas]
        whole = [pair.dense() for pair in pairs]
        if method == "swudi":
            rank = sum(pair.rank for pair in pairs)
            merged[name] = dense_swudi(whole, round(0.85 * rank), 300.0)
        elif method == "factor-mean":
            a, b = pairs[0].A + pairs[1].A, pairs[0].B + pairs[1].B
            merged[name] = pairs[0].scale * (b / 2) @ (a / 2)
        else:
            merged[name] = by_hand_ties(whole, 0.2)
    return dense(merged)


def own_deltas(
    method: str, parents: Mapping[str, Path], merged: LowRankDelta
) -> dict[str, LowRankDelta]:
    """What a modality's tokens run on."""
    if method != "mmer":
        return {name: read_adapter(p / "modality_adapter") for name, p in parents.items()}
    own = {}
    for name, path in parents.items():
        masked = {}
        for module, pair in read_adapter(path / "text_adapter").pairs.items():
            tau, whole = pair.dense(), merged.pairs[module].dense()
            keep = (tau * whole > 0) & (tau.abs() >= (whole - tau).abs())
            masked[module] = whole * keep
        own[name] = dense(masked)
    return own


@pytest.mark.parametrize("method", ["ties", "factor-mean"])
def test_every_token_runs_on_the_merged_delta(base: Path, tmp_path: Path, method: str) -> None:
    parents = make(base, tmp_path, method)
    model, processor = compose(base, list(parents.values()), method=method)
    assert model.coefficients == Coefficients(("merged",), (1.0,), rule="merged")
    batch = processor.apply_chat_template([BOTH])
    masked = [(merge(method, parents), torch.tensor(1.0))]
    goal = oracle(base, embeds(model, batch), batch["attention_mask"], masked)
    torch.testing.assert_close(logits(model, batch), goal, **CLOSE)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("method", ROUTED)
def test_several_modalities_run_on_the_merged_delta(
    base: Path, tmp_path: Path, method: str, *, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = make(base, tmp_path, method)
    model, processor = compose(base, list(parents.values()), method=method, coefficients="presence")
    monkeypatch.setattr(StreamLinear, "_stacking_pays", lambda *_: stacked)
    batch = processor.apply_chat_template([SEE, HEAR, BOTH, TEXT], add_generation_prompt=True)
    merged = merge(method, parents)
    own = own_deltas(method, parents, merged)
    types = batch["mm_token_type_ids"]
    groups = {n: read_adapter(p / "text_adapter") for n, p in parents.items()}
    rows = {"sight": [1.0, 0, 0, 0], "sound": [0, 1.0, 0, 0], "merged": [0, 0, 1.0, 0]}
    masked = [
        (delta, (torch.tensor(rows[name])[:, None] * (types == 0))[..., None])
        for name, delta in (groups | {"merged": merged}).items()
    ]
    masked += [(own[n], (types == model.type_ids[n])[..., None].float()) for n in parents]
    goal = oracle(base, embeds(model, batch), batch["attention_mask"], masked)
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(logits(model, batch)[kept], goal[kept], **CLOSE)


@pytest.mark.parametrize("method", ROUTED)
def test_text_alone_is_the_base_to_the_bit(base: Path, tmp_path: Path, method: str) -> None:
    parents = make(base, tmp_path, method)
    model, processor = compose(base, list(parents.values()), method=method, coefficients="presence")
    batch = processor.apply_chat_template(TEXT)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        goal = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.equal(logits(model, batch), goal)


@pytest.mark.parametrize("method", ["damc-ties", "swudi"])
def test_one_modality_present_restores_its_parent(base: Path, tmp_path: Path, method: str) -> None:
    parents = make(base, tmp_path, method)
    together, processor = compose(base, list(parents.values()), method=method)
    for name, messages in (("sight", SEE), ("sound", HEAR)):
        alone, own = compose(base, [parents[name]])
        batch = processor.apply_chat_template(messages)
        goal = logits(alone, own.apply_chat_template(messages))
        torch.testing.assert_close(logits(together, batch), goal, **CLOSE)


def test_mmer_takes_the_merged_delta_for_every_prompt(base: Path, tmp_path: Path) -> None:
    parents = make(base, tmp_path, "mmer")
    model, processor = compose(base, list(parents.values()), method="mmer")
    assert model.coefficients.rule == "merged"
    batch = processor.apply_chat_template([SEE])
    merged = merge("mmer", parents)
    types = batch["mm_token_type_ids"]
    own = own_deltas("mmer", parents, merged)["sight"]
    masked = [(merged, (types == 0)[..., None].float()), (own, (types != 0)[..., None].float())]
    goal = oracle(base, embeds(model, batch), batch["attention_mask"], masked)
    torch.testing.assert_close(logits(model, batch), goal, **CLOSE)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_parents_changes_no_bit(base: Path, tmp_path: Path, method: str) -> None:
    paths = list(make(base, tmp_path, method).values())
    first, processor = compose(base, paths, method=method)
    second, other = compose(
        base, paths[::-1], method=method, registry=toy_registry("sound", "sight")
    )
    batch = processor.apply_chat_template([SEE, BOTH])
    again = other.apply_chat_template([SEE, BOTH])
    assert torch.equal(logits(first, batch), logits(second, again))
    assert first.config.to_dict() == second.config.to_dict()
    assert first.provenance == second.provenance


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_it_says_the_same(base: Path, tmp_path: Path, method: str) -> None:
    parents = make(base, tmp_path, method)
    model, processor = compose(base, list(parents.values()), method=method)
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, reader = modalloy.load(tmp_path / "out", registry=toy_registry())
    batch = processor.apply_chat_template([SEE, BOTH], add_generation_prompt=True)
    reread = reader.apply_chat_template([SEE, BOTH], add_generation_prompt=True)
    assert torch.equal(logits(model, batch), logits(again, reread))
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**batch, **options), again.generate(**reread, **options))
    assert again.provenance == model.provenance
    assert again.coefficients == model.coefficients


def test_long_answers_are_decoded_on_folded_weights(base: Path, tmp_path: Path) -> None:
    parents = make(base, tmp_path, "damc-ties")
    model, processor = compose(base, list(parents.values()), method="damc-ties")
    batch = processor.apply_chat_template([BOTH], add_generation_prompt=True)
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    folded = model.generate(**batch, **options)
    assert model.router.runs_folded
    model.folding.limit = 0
    plain = model.generate(**batch, **options)
    torch.testing.assert_close(torch.stack(folded.logits), torch.stack(plain.logits), **CLOSE)


def test_what_the_record_says(base: Path, tmp_path: Path) -> None:
    parents = make(base, tmp_path, "damc-ties")
    options = {"rank": 6, "density": 0.5}
    model, _ = compose(base, list(parents.values()), method="damc-ties", method_options=options)
    record = model.provenance
    assert record["method_options"] == {"density": 0.5, "rank": 6, "scale": 1.0}
    assert model.config.method_options == record["method_options"]
    errors = record["merge"]["relative_error"]
    assert 0 < errors["mean"] < errors["worst"] < 1
    assert {entry["rank"] for entry in model.config.merged_delta} == {6}
    fates = {(row["source"], row["part"]): row["fate"] for row in record["accounting"]}
    assert fates["p1", "text delta"] == "merged by damc-ties, and kept beside it"
    assert fates["p1", "modality delta"] == "kept as its own stream"
    assert fates["method damc-ties", "merged text delta"] == "made here"
    exact, _ = compose(base, list(parents.values()), method="damc-ties")
    assert exact.provenance["merge"]["relative_error"] == {"mean": 0.0, "worst": 0.0}
    layer = exact.language_model.get_submodule("model.layers.0.mlp.up_proj")
    assert [rank for _, rank, _ in layer.text_layout] == [4, 4, 32]


def test_parents_of_an_undecoupled_merge_leave_no_deltas_behind(base: Path, tmp_path: Path) -> None:
    parents = make(base, tmp_path, "ties")
    model, _ = compose(base, list(parents.values()), method="ties")
    layer = model.language_model.get_submodule("model.layers.0.mlp.up_proj")
    assert [rank for _, rank, _ in layer.text_layout] == [32]
    assert not layer.modality_A
    fates = {row["part"]: row["fate"] for row in model.provenance["accounting"]}
    assert fates["text delta"] == "merged by ties"


def test_connectors_alone_leave_the_base_as_it_is(base: Path, tmp_path: Path) -> None:
    parents = make(base, tmp_path, "ties")
    model, processor = compose(base, list(parents.values()), method="naive", coefficients="zero")
    batch = processor.apply_chat_template([BOTH, SEE])
    goal = oracle(base, embeds(model, batch), batch["attention_mask"], [])
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(logits(model, batch)[kept], goal[kept], **CLOSE)


def test_coefficients_that_are_set_are_checked_used_and_saved(base: Path, tmp_path: Path) -> None:
    parents = make(base, tmp_path, "damc-ties")
    model, processor = compose(base, list(parents.values()), method="damc-ties")
    batch = processor.apply_chat_template([BOTH], add_generation_prompt=True)
    before = logits(model, batch)
    both = frozenset({"sight", "sound"})
    half = {"sight": 0.25, "sound": 0.0, "merged": 0.5}
    model.coefficients = {both: half}
    changed, _ = compose(
        base, list(parents.values()), method="damc-ties", coefficients={both: half}
    )
    assert torch.equal(logits(model, batch), logits(changed, batch))
    assert not torch.allclose(before, logits(model, batch))
    assert model.coefficients == changed.coefficients
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, _ = modalloy.load(tmp_path / "out", registry=toy_registry())
    assert again.coefficients == changed.coefficients
    assert again.provenance == model.provenance
    assert again.provenance["coefficients"] == changed.provenance["coefficients"]
    model.coefficients = "presence"
    assert torch.equal(logits(model, batch), before)
    for wrong, message in (
        ("uniform", "'uniform' are not known to this merge method; expected 'presence', 'merged'"),
        ({"sight": 1.0, "sound": 1.0}, "missing or unknown: merged"),
        (Coefficients(("sight",), (1.0,)), "are for sight, the groups of this composition are sig"),
        (Coefficients(("sight", "sound", "merged"), (float("nan"), 0, 0)), "a finite number"),
    ):
        with pytest.raises(SpecError, match=message):
            model.coefficients = wrong
    assert model.coefficients.rule == "presence", "what is refused changes nothing"


def test_setting_coefficients_drops_folded_weights(base: Path, tmp_path: Path) -> None:
    parents = make(base, tmp_path, "swudi")
    model, processor = compose(base, list(parents.values()), method="swudi")
    batch = processor.apply_chat_template([SEE], add_generation_prompt=True)
    model.generate(**batch, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    layer = model.language_model.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.folded is not None
    model.coefficients = "merged"
    assert layer.folded is None
