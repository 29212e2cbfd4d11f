"""PEFT adapters become naive parents that compute what PEFT computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from composing import CLOSE
from modalloy.composition.compose import compose
from modalloy.errors import (
    BaseMismatchError,
    DeltaError,
    FormatError,
    ModalloyError,
    SpecError,
)
from modalloy.interop.convert import convert
from modalloy.parent import (
    CONNECTOR_FILE,
    ENCODER_FILE,
    ComponentConfig,
    read_manifest,
    verify_files,
    write_manifest,
)
from tiny import tiny_base, tiny_model
from toy import FEATURES, random_delta, toy_parent, toy_registry

# peft asks transformers under a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = torch.arange(3, 23).view(2, 10)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    path = tmp_path_factory.mktemp("components") / "sight"
    return toy_parent(path, base, "sight", seed=4, prefix=2)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("bases") / "untied", family="qwen3", seed=3)


def trained(directory: Path, family: str = "llama", **settings: Any) -> Any:
    """Write an adapter that peft made and saved, everything trainable changed; return its model."""
    defaults: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]}
    model: Any = get_peft_model(tiny_model(family, seed=3), LoraConfig(**defaults | settings))
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, value in sorted(model.named_parameters()):
            if value.requires_grad:
                value.add_(0.3 * torch.randn(value.shape, generator=draw))
    model.save_pretrained(directory)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def composed(base: Path, parent: Path) -> Any:
    model, _ = compose(base, parents=[parent], method="naive", registry=toy_registry("sight"))
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"up_proj": 9}},
        {"target_modules": "all-linear"},
    ],
)
def test_it_computes_what_peft_does(
    base: Path, components: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = trained(tmp_path / "in", **settings)
    made = convert(tmp_path / "in", tmp_path / "out", base=base, components=components)
    torch.testing.assert_close(logits(composed(base, tmp_path / "out")), logits(model), **CLOSE)
    assert {row.fate for row in made.accounting} == {"text delta"}
    assert [row.tensor for row in made.accounting] == sorted(load_file(tmp_path / "in" / WEIGHTS))


def test_it_takes_encoder_and_connector_of_its_components(
    base: Path, components: Path, tmp_path: Path
) -> None:
    trained(tmp_path / "in")
    made = convert(tmp_path / "in", tmp_path / "out", base=base, components=components)
    theirs, ours = read_manifest(components), made.parents[0].manifest
    verify_files(tmp_path / "out", ours)
    for name in ("modality", "base", "encoder", "connector", "prefix_tokens", "requires"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.strategy, ours.name, ours.scores) == ("naive", "in-sight", {})
    assert ours.licence == "unknown", "that of the components says nothing about the adapter"
    held, own = (load_file(path / CONNECTOR_FILE) for path in (components, tmp_path / "out"))
    assert held.keys() == own.keys()
    assert all(torch.equal(held[name], own[name]) for name in held)
    assert ours.training["converted_from"] == "PEFT adapter"
    assert ours.training["components"] == "sight-toy"
    assert sorted(ours.training["files"]) == [CONFIG, WEIGHTS]
    assert made.notes == ("encoder and connector are those of sight-toy",)


def test_an_encoder_s_own_file_comes_along(base: Path, components: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(components, tmp_path / "with")
    save_file({"x": torch.ones(1)}, copy / ENCODER_FILE)
    write_manifest(copy, read_manifest(copy))
    trained(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", base=base, components=copy)
    assert (tmp_path / "out" / ENCODER_FILE).read_bytes() == (copy / ENCODER_FILE).read_bytes()


@pytest.mark.parametrize("saved", [["lm_head"], ["norm", "embed_tokens"], ["lm_head", "norm"]])
def test_modules_that_were_trained_whole(untied: Path, tmp_path: Path, saved: list[str]) -> None:
    components = toy_parent(tmp_path / "sight", untied, "sight", seed=4)
    model = trained(tmp_path / "in", "qwen3", modules_to_save=saved)
    made = convert(tmp_path / "in", tmp_path / "out", base=untied, components=components)
    whole = [row.tensor for row in made.accounting if row.reason.startswith("whole")]
    held = load_file(tmp_path / "out" / "text_weights" / "model.safetensors")
    with safe_open(untied / "model.safetensors", "pt") as plain:
        # PEFT takes every module whose name ends so: all norms.
        ends = tuple(f"{name}.weight" for name in saved)
        assert set(held) == {name for name in plain.keys() if name.endswith(ends)}  # noqa: SIM118
    assert len(whole) == len(held)
    torch.testing.assert_close(logits(composed(untied, tmp_path / "out")), logits(model), **CLOSE)


def test_whole_modules_as_the_base_has_them_are_left_out(untied: Path, tmp_path: Path) -> None:
    components = toy_parent(tmp_path / "sight", untied, "sight", seed=4)
    trained(tmp_path / "in", "qwen3", modules_to_save=["lm_head"])
    state = load_file(tmp_path / "in" / WEIGHTS)
    state["base_model.model.lm_head.weight"] = load_file(untied / "model.safetensors")[
        "lm_head.weight"
    ]
    save_file(state, tmp_path / "in" / WEIGHTS)
    made = convert(tmp_path / "in", tmp_path / "out", base=untied, components=components)
    (row,) = (row for row in made.accounting if row.fate == "skipped")
    assert (row.tensor, row.reason) == ("base_model.model.lm_head.weight", "as the base has it")
    assert not (tmp_path / "out" / "text_weights").exists()


def write_adapter(
    path: Path, prefix: str, extra: dict[str, torch.Tensor] | None = None, **config: Any
) -> Path:
    """An adapter over one projection, named as a model with a tower names it."""
    path.mkdir()
    draw = torch.Generator().manual_seed(2)
    stem = f"base_model.model.{prefix}layers.0.self_attn.q_proj.lora_"
    tensors = {
        f"{stem}A.weight": torch.randn(4, 32, generator=draw),
        f"{stem}B.weight": torch.randn(32, 4, generator=draw),
        **(extra or {}),
    }
    save_file(tensors, path / WEIGHTS)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (path / CONFIG).write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model.model.", ""])
def test_names_of_models_with_towers(
    base: Path, components: Path, tmp_path: Path, prefix: str
) -> None:
    source = write_adapter(tmp_path / "in", prefix)
    convert(source, tmp_path / "out", base=base, components=components)
    state = load_file(tmp_path / "out" / "text_adapter" / WEIGHTS)
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    theirs = load_file(source / WEIGHTS)
    assert state.keys() == {f"{stem}A.weight", f"{stem}B.weight"}
    for name, tensor in theirs.items():
        assert torch.equal(state[stem + name.rpartition("lora_")[2]], tensor)


PROJECTOR = {
    "linear_1.weight": torch.full((32, FEATURES), 0.1),
    "linear_1.bias": torch.full((32,), 0.2),
    "linear_2.weight": torch.full((32, 32), 0.3),
    "linear_2.bias": torch.full((32,), 0.4),
}
OURS = {"linear_1": "projection.0", "linear_2": "projection.2"}


def mlp_components(path: Path, base: Path) -> Path:
    import attrs

    toy_parent(path, base, "sight", seed=4, prefix=2)
    connector = {"prefix": load_file(path / CONNECTOR_FILE)["prefix"]}
    for name, value in PROJECTOR.items():
        layer, _, kind = name.partition(".")
        connector[f"{OURS[layer]}.{kind}"] = torch.zeros_like(value)
    save_file(connector, path / CONNECTOR_FILE)
    manifest = attrs.evolve(
        read_manifest(path), connector=ComponentConfig(type="mlp", config={"depth": 2})
    )
    write_manifest(path, manifest)
    return path


@pytest.mark.parametrize("place", ["modules_to_save", "non_lora_trainables"])
def test_a_projector_takes_the_connector_s_place(base: Path, tmp_path: Path, place: str) -> None:
    components = mlp_components(tmp_path / "sight", base)
    if place == "modules_to_save":
        extra = {
            f"base_model.model.model.multi_modal_projector.{k}": v for k, v in PROJECTOR.items()
        }
        source = write_adapter(
            tmp_path / "in",
            "model.language_model.",
            extra,
            modules_to_save=["multi_modal_projector"],
        )
    else:
        source = write_adapter(tmp_path / "in", "model.")
        numbers = {"linear_1": "0", "linear_2": "2"}
        stem = "base_model.model.model.mm_projector"
        torch.save(
            {
                f"{stem}.{numbers[k.partition('.')[0]]}.{k.partition('.')[2]}": v
                for k, v in PROJECTOR.items()
            },
            source / "non_lora_trainables.bin",
        )
        with pytest.raises(FormatError, match=r"non_lora_trainables.bin is a pickle"):
            convert(source, tmp_path / "out", base=base, components=components)
    made = convert(source, tmp_path / "out", base=base, components=components, allow_pickle=True)
    found = load_file(tmp_path / "out" / CONNECTOR_FILE)
    for name, value in PROJECTOR.items():
        layer, _, kind = name.partition(".")
        assert torch.equal(found[f"{OURS[layer]}.{kind}"], value)
    assert torch.equal(found["prefix"], load_file(components / CONNECTOR_FILE)["prefix"])
    assert [row.fate for row in made.accounting].count("connector") == 4
    assert made.notes == ("the encoder is that of sight-toy, the connector the adapter's own",)


def test_a_pickled_adapter(base: Path, components: Path, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "in", "model.")
    torch.save(load_file(source / WEIGHTS), source / "adapter_model.bin")
    (source / WEIGHTS).rename(tmp_path / "plain.safetensors")
    with pytest.raises(FormatError, match=r"adapter_model.bin is a pickle"):
        convert(source, tmp_path / "out", base=base, components=components)
    assert not (tmp_path / "out").exists()
    made = convert(source, tmp_path / "out", base=base, components=components, allow_pickle=True)
    assert sorted(made.parents[0].manifest.training["files"]) == [CONFIG, "adapter_model.bin"]
    held = load_file(tmp_path / "out" / "text_adapter" / WEIGHTS)
    plain = load_file(tmp_path / "plain.safetensors")
    assert all(torch.equal(held[name], plain[name]) for name in plain)


VISION = "base_model.model.model.vision_tower.encoder.layers.0.q_proj.lora_A.weight"
NORM = "base_model.model.model.norm.weight"
REFUSED: list[tuple[str, dict[str, torch.Tensor], dict[str, Any], type[ModalloyError], str]] = [
    ("model.", {VISION: torch.ones(4, 8)}, {}, DeltaError, "changes the encoder, which a delta"),
    ("model.", {}, {"use_dora": True}, DeltaError, f"{CONFIG}: use_dora is set"),
    ("model.", {}, {"peft_type": "IA3"}, DeltaError, "peft_type is 'IA3'; only 'LORA'"),
    ("model.", {}, {"r": 5}, FormatError, f"has rank 4, {CONFIG} says 5"),
    ("model.", {}, {"modules_to_save": ["lm_head"]}, FormatError, "'lm_head' was trained whole"),
    ("model.", {}, {"modules_to_save": "x"}, FormatError, "must be a list of names"),
    ("thinker.", {}, {}, BaseMismatchError, "'thinker.layers.0.self_attn.q_proj' .* none there"),
    (
        "model.",
        {NORM: torch.ones(7)},
        {},
        BaseMismatchError,
        r"\(7,\), the base 'base' has \(32,\)",
    ),
    (
        "model.",
        {"base_model.model.lm_head.weight": torch.ones(3, 3)},
        {},
        BaseMismatchError,
        "'base_model.model.lm_head.weight' is for a tensor .* none there",
    ),
    (
        "model.",
        {"base_model.model.model.multi_modal_projector.linear_1.weight": torch.ones(32, 5)},
        {},
        DeltaError,
        r"no part of the connector of .* \(linear\); take components with the connector",
    ),
    (
        "model.",
        {"base_model.model.model.layers.1.mlp.up_proj.lora_A.weight": torch.ones(4, 32)},
        {},
        FormatError,
        "model.layers.1.mlp.up_proj has no lora_B",
    ),
]


@pytest.mark.parametrize(
    ("prefix", "extra", "config", "kind", "message"), REFUSED, ids=[r[4] for r in REFUSED]
)
def test_what_is_refused(
    base: Path,
    components: Path,
    tmp_path: Path,
    prefix: str,
    extra: dict[str, torch.Tensor],
    config: dict[str, Any],
    kind: type[ModalloyError],
    message: str,
) -> None:
    source = write_adapter(tmp_path / "in", prefix, extra, **config)
    with pytest.raises(kind, match=message) as caught:
        convert(source, tmp_path / "out", base=base, components=components)
    assert str(source) in str(caught.value), "no temporary path is named"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_part_of_a_projector(base: Path, tmp_path: Path) -> None:
    components = mlp_components(tmp_path / "sight", base)
    extra = {
        f"base_model.model.model.multi_modal_projector.{name}": value
        for name, value in PROJECTOR.items()
        if name != "linear_2.bias"
    }
    source = write_adapter(tmp_path / "in", "model.", extra)
    with pytest.raises(FormatError, match=r"its projector lacks 'projection.2.bias'"):
        convert(source, tmp_path / "out", base=base, components=components)


def test_what_an_adapter_lacks(base: Path, components: Path, untied: Path, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "in", "model.", base_model_name_or_path="some/vicuna")
    with pytest.raises(SpecError, match=r"holds no LLM; .* \(adapter_config.json says 'some/vicun"):
        convert(source, tmp_path / "out", components=components)
    with pytest.raises(SpecError, match="no encoder and no connector; name with --components"):
        convert(source, tmp_path / "out", base=base)
    with pytest.raises(BaseMismatchError, match="'sight-toy' was tuned from another base"):
        convert(source, tmp_path / "out", base=untied, components=components)
    with pytest.raises(SpecError, match="is a PEFT adapter, to which 'modality' does not apply"):
        convert(source, tmp_path / "out", base=base, components=components, modality="sight")


def test_the_toy_delta_round_trip(base: Path, components: Path, tmp_path: Path) -> None:
    from modalloy.deltas.lowrank import read_adapter
    from modalloy.deltas.lowrank import write_adapter as write

    delta = random_delta(tiny_model(seed=3), seed=9)
    write(tmp_path / "in", delta, base_id="base")
    convert(tmp_path / "in", tmp_path / "out", base=base, components=components)
    again = read_adapter(tmp_path / "out" / "text_adapter")
    assert again.pairs.keys() == delta.pairs.keys()
    for name, pair in delta.pairs.items():
        assert torch.equal(again.pairs[name].A, pair.A)
        assert torch.equal(again.pairs[name].B, pair.B)
        assert again.pairs[name].scale == pytest.approx(pair.scale)
