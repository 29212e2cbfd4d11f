"""ModelCompose checkpoints become parents that compute what the released code computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import modalloy
from composing import CLOSE
from interop.modelcompose_fixtures import (
    ENCODERS,
    FEATURES,
    HIDDEN,
    PROJECTORS,
    State,
    connect,
    make_config,
    make_state,
    merge,
    oracle,
    save,
    write_checkpoint,
)
from modalloy import Registry
from modalloy.cli.search import read_table
from modalloy.composition.compose import compose
from modalloy.errors import (
    DeltaError,
    FormatError,
    MissingComponentError,
    SpecError,
    UnknownNameError,
)
from modalloy.interop.convert import convert
from modalloy.parent import read_manifest, verify_files
from toy import ask

OURS = {"vision": "vision", "audio": "audio", "video": "video", "point": "pointcloud"}
STRATEGIES = ("modal+language", "modal", "same", "none")


def random_embeds(length: int = 24, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, length, HIDDEN, generator=torch.Generator().manual_seed(11))


def spans(model: Any, *names: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Masks of a few tokens of each modality, and the types that say the same."""
    masks, types = {}, torch.zeros(2, 24, dtype=torch.long)
    for number, name in enumerate(names):
        mask = torch.zeros(2, 24, dtype=torch.bool)
        mask[:, 2 + 6 * number : 6 + 6 * number] = True
        mask[1, 1] = number == 0  # rows differ
        masks[name] = mask
        types[mask] = model.type_ids[OURS[name]]
    return masks, types


def run(model: Any, embeds: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(inputs_embeds=embeds, mm_token_type_ids=types).logits
    return logits


def compose_parents(base: Path, made: Any, registry: Registry, coefficients: Any) -> Any:
    parents = [parent.directory for parent in made.parents]
    names = [parent.manifest.modality for parent in made.parents]
    return compose(
        base,
        modalities=names,
        parents=parents,
        method=made.method,
        coefficients=coefficients,
        registry=registry,
    )


# The Q-Former has fewer positions than a video has tokens: see below.
PAIRS = [(m, p) for m in ENCODERS for p in PROJECTORS if (m, p) != ("video", "qformer_3N_2L")]


@pytest.mark.parametrize(("modality", "projector"), PAIRS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_single_checkpoint_computes_what_it_did(
    base: Path, registry: Registry, tmp_path: Path, strategy: str, modality: str, projector: str
) -> None:
    source = write_checkpoint(tmp_path / "in", modality, strategy, projector, seed=5)
    made = convert(source, tmp_path / "out", base=base, registry=registry)
    (parent,) = made.parents
    assert parent.directory == tmp_path / "out"
    assert parent.manifest == read_manifest(parent.directory)
    verify_files(parent.directory, parent.manifest)
    assert parent.manifest.strategy == ("naive" if strategy == "same" else "decoupled")
    naive = made.method == "naive"
    model, _ = compose_parents(base, made, registry, "sum" if naive else "uniform")
    state = load_file(source / "adapter_model.safetensors")
    config = make_config(modality, strategy, projector)
    embeds = random_embeds()
    for names in ((modality,), ()):
        masks, types = spans(model, *names)
        goal = oracle(base, state, config, embeds, masks)
        torch.testing.assert_close(run(model, embeds, types), goal, **CLOSE)
    features = torch.randn(3, 7, FEATURES[modality], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model.connect(OURS[modality], features)
    torch.testing.assert_close(found, connect(state, modality, projector, features), **CLOSE)


def test_more_tokens_than_the_connector_has_positions(
    base: Path, registry: Registry, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "in", "video", projector="qformer_3N_2L")
    with pytest.raises(SpecError, match="has 600 positions, its encoder gives 2056 tokens"):
        convert(source, tmp_path / "out", base=base, registry=registry)


def test_the_oracle_tells_streams_apart(base: Path, tmp_path: Path) -> None:
    state = make_state("vision", "modal+language", "linear", 5)
    config = make_config("vision", "modal+language", "linear")
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[:, 3:6] = True
    embeds = random_embeds()
    routed = oracle(base, state, config, embeds, {"vision": mask})
    plain = oracle(base, {}, config, embeds, {"vision": mask})
    everywhere = oracle(base, state, {**config, "lora_strategy": "same"}, embeds, {"vision": mask})
    assert not torch.allclose(routed[:, :3], plain[:, :3], atol=1e-2)
    torch.testing.assert_close(routed[:, :3], everywhere[:, :3], **CLOSE)
    assert not torch.allclose(routed[:, 3:6], everywhere[:, 3:6], atol=1e-2)


def three(strategy: str, projector: str = "linear") -> list[tuple[State, dict[str, Any]]]:
    return [
        (make_state(m, strategy, projector, seed), make_config(m, strategy, projector))
        for seed, m in enumerate(("vision", "audio", "point"))
    ]


RESET = "reset-default-vision=0.5,default-audio=0.3,default-point=0.2"
MERGES = {
    f"online-merge-{RESET}": ("modal+language", {"vision": 0.5, "audio": 0.3, "pointcloud": 0.2}),
    f"online-merge-{RESET},vision=0.7": (
        "modal+language",
        {"vision": 0.5, "audio": 0.3, "pointcloud": 0.2},
    ),
    f"convert-online-merge-{RESET}": ("same", {"vision": 0.5, "audio": 0.3, "pointcloud": 0.2}),
    "mean": ("modal+language", {"vision": 1 / 3, "audio": 1 / 3, "pointcloud": 1 / 3}),
    "sum": ("modal+language", {"vision": 1 / 3, "audio": 1 / 3, "pointcloud": 1 / 3}),
    "convert-mean": ("same", {"vision": 1 / 3, "audio": 1 / 3, "pointcloud": 1 / 3}),
}


@pytest.mark.parametrize("how", MERGES)
def test_a_merged_checkpoint_composes_to_what_it_was(
    base: Path, registry: Registry, tmp_path: Path, how: str
) -> None:
    strategy, values = MERGES[how]
    state, config = merge(three(strategy), how)
    source = save(tmp_path / "in", state, config, "adapter_model.safetensors")
    made = convert(source, tmp_path / "out", base=base, registry=registry)
    assert {p.manifest.modality: p.directory.name for p in made.parents} == {
        name: name for name in values
    }
    assert made.coefficients == pytest.approx(values)
    assert made.coefficients_file == tmp_path / "out" / "coefficients.json"
    table = read_table(made.coefficients_file, "damc", {})
    assert len(table) == 8
    model, _ = compose_parents(base, made, registry, table)
    embeds = random_embeds()
    for names in (("vision", "audio", "point"), ("audio",), ("vision", "point"), ()):
        masks, types = spans(model, *names)
        goal = oracle(base, state, config, embeds, masks)
        torch.testing.assert_close(run(model, embeds, types), goal, **CLOSE)


@pytest.mark.parametrize("third", ["same", "none"])
@pytest.mark.parametrize("how", ["mean", "sum", f"online-merge-{RESET}"])
def test_merged_naive_checkpoints_stay_naive(
    base: Path, registry: Registry, tmp_path: Path, how: str, third: str
) -> None:
    state, config = merge([*three("same")[:2], three(third)[2]], how)
    source = save(tmp_path / "in", state, config, "adapter_model.safetensors")
    made = convert(source, tmp_path / "out", base=base, registry=registry)
    assert made.method == "naive"
    assert made.coefficients_file is None
    model, _ = compose_parents(base, made, registry, made.coefficients)
    masks, types = spans(model, "vision", "audio", "point")
    embeds = random_embeds()
    goal = oracle(base, state, config, embeds, masks)
    torch.testing.assert_close(run(model, embeds, types), goal, **CLOSE)


def test_one_modality_of_a_merged_checkpoint(
    base: Path, registry: Registry, tmp_path: Path
) -> None:
    state, config = merge(three("modal+language"), f"online-merge-{RESET},audio=0.7")
    source = save(tmp_path / "in", state, config, "adapter_model.safetensors")
    made = convert(source, tmp_path / "out", base=base, modality="audio", registry=registry)
    (parent,) = made.parents
    assert parent.manifest.modality == "audio"
    assert made.coefficients is None
    model, _ = compose_parents(base, made, registry, "uniform")
    alone = {k: v for k, v in state.items() if "vision" not in k and "point" not in k}
    masks, types = spans(model, "audio")
    embeds = random_embeds()
    goal = oracle(base, alone, config, embeds, masks)
    torch.testing.assert_close(run(model, embeds, types), goal, **CLOSE)
    reasons = {row.reason for row in made.accounting if ".vision" in row.tensor}
    assert reasons == {"of another modality than audio, which was asked for"}
    with pytest.raises(UnknownNameError, match="'smell'; known: audio, pointcloud, vision"):
        convert(source, tmp_path / "b", base=base, modality="smell", registry=registry)


@pytest.mark.parametrize("how", ["online-merge-sum", "online-merge-mean"])
def test_text_deltas_that_the_released_layers_would_drop(
    base: Path, registry: Registry, tmp_path: Path, how: str
) -> None:
    state, config = merge(three("modal+language"), how)
    source = save(tmp_path / "in", state, config, "adapter_model.safetensors")
    with pytest.raises(DeltaError, match="layers are never told of them") as caught:
        convert(source, tmp_path / "out", base=base, registry=registry)
    assert "online-merge-reset-default-audio=1,default-point=1,default-vision=1" in str(
        caught.value
    )
    assert not (tmp_path / "out").exists()


def test_every_tensor_is_accounted_for(base: Path, registry: Registry, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", "audio", projector="qformer_3N_2L")
    state = load_file(source / "adapter_model.safetensors")
    buffer = "model.modal_projectors.audio.audio_Qformer.bert.embeddings.position_ids"
    state[buffer] = torch.arange(512)[None]
    save(
        source,
        state,
        make_config("audio", "modal+language", "qformer_3N_2L"),
        "adapter_model.safetensors",
    )
    made = convert(source, tmp_path / "out", base=base, registry=registry)
    assert [row.tensor for row in made.accounting] == sorted(state)
    fates = {row.tensor: (row.fate, row.reason) for row in made.accounting}
    stem = "model.layers.1.mlp.up_proj.lora_B."
    assert fates[f"{stem}default.weight"] == ("text delta", "of text tokens")
    assert fates[f"{stem}audio.weight"] == ("modality delta", "of audio tokens")
    assert fates["prefix_tokens.audio"] == ("connector", "prefix of the connector")
    assert fates["prefix_tokens.default"][0] == "skipped"
    assert fates[buffer] == ("skipped", "counts positions, which the connector does for itself")
    record = made.parents[0].manifest.training
    assert record["converted_from"] == "ModelCompose"
    assert record["tensors"]["text delta"] == record["tensors"]["modality delta"] == 28
    assert sorted(record["files"]) == ["adapter_model.safetensors", "config.json"]
    assert record["settings"]["base"] == "vicuna-7b-v1.5"
    assert "somebody" not in (tmp_path / "out" / "parent.json").read_text()
    assert "somewhere" not in (tmp_path / "out" / "parent.json").read_text()


EXPECTED_ENCODERS = {
    "vision": ("clip", [576, 6]),
    "audio": ("beats", [512, 5]),
    "video": ("languagebind-video", [2056, 7]),
    "point": ("pointbert-v1.2", [513, 4]),
}


@pytest.mark.parametrize("modality", ENCODERS)
def test_encoders_are_named_and_shaped(
    base: Path, registry: Registry, tmp_path: Path, modality: str
) -> None:
    source = write_checkpoint(tmp_path / "in", modality)
    manifest = convert(source, tmp_path / "out", base=base, registry=registry).parents[0].manifest
    assert (manifest.encoder.type, manifest.encoder.shape) == EXPECTED_ENCODERS[modality]
    assert (manifest.prefix_tokens, manifest.suffix_tokens) == (2, 3)
    if modality == "vision":
        assert manifest.encoder.config == {
            "model": "openai/clip-vit-large-patch14-336",
            "tokens": 576,
            "features": 6,
            "image_size": 336,
            "layer": -2,
        }
        shape = registry.encoder("clip").output_shape
        assert modalloy.modality.resolve(shape)(manifest.encoder.config) == (576, 6)


def test_it_runs_without_its_encoder_and_says_which_is_missing(
    base: Path, registry: Registry, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "in", "audio", projector="qformer_3N_2L", seed=3)
    made = convert(source, tmp_path / "out", base=base, registry=registry)
    model, processor = compose_parents(base, made, registry, None)
    assert model.config.modalities["audio"]["tokens"] == 2 + 3 + 3
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    again, reader = modalloy.load(tmp_path / "model", registry=registry)
    masks, types = spans(again, "audio")
    embeds = random_embeds()
    state = load_file(source / "adapter_model.safetensors")
    goal = oracle(base, state, make_config("audio", "modal+language", ""), embeds, masks)
    torch.testing.assert_close(run(again, embeds, types), goal, **CLOSE)
    import numpy as np

    sound = {"array": np.zeros(16000, dtype=np.float32), "sampling_rate": 16000}
    for asked in (processor, reader):
        with pytest.raises(MissingComponentError, match="the encoder 'beats', which no installed"):
            asked.apply_chat_template(ask(("audio", sound), "what is it"))


def test_learned_tokens_that_are_not_there_are_zeros(
    base: Path, registry: Registry, tmp_path: Path
) -> None:
    state = make_state("vision", "same", "linear", 1)
    kept = {k: v for k, v in state.items() if not k.startswith("suffix_tokens")}
    source = save(
        tmp_path / "in", kept, make_config("vision", "same", "linear"), "adapter_model.safetensors"
    )
    made = convert(source, tmp_path / "out", base=base, registry=registry)
    held = load_file(tmp_path / "out" / "connector.safetensors")
    assert torch.equal(held["prefix"], state["prefix_tokens.vision"][0])
    assert torch.equal(held["suffix"], torch.zeros(3, HIDDEN))
    assert made.notes[0].startswith("vision: the checkpoint has no 'suffix_tokens.vision'")


def test_tokens_of_a_modality_s_own(base: Path, registry: Registry, tmp_path: Path) -> None:
    state = make_state("vision", "same", "linear", 1)
    state["prefix_tokens.vision"] = state["prefix_tokens.vision"][:, :1]
    config = {**make_config("vision", "same", "linear"), "local_vision_prefix_tokens": 1}
    source = save(tmp_path / "in", state, config, "adapter_model.safetensors")
    manifest = convert(source, tmp_path / "out", base=base, registry=registry).parents[0].manifest
    assert (manifest.prefix_tokens, manifest.suffix_tokens) == (1, 3)


def test_a_connector_alone(base: Path, registry: Registry, tmp_path: Path) -> None:
    state = make_state("vision", None, "mlp2x_gelu", 1)
    kept = {k: v for k, v in state.items() if "projector" in k}
    config = make_config("vision", None, "mlp2x_gelu")
    config |= {"local_prefix_tokens": 0, "local_suffix_tokens": 0}
    source = save(tmp_path / "in", kept, config, "mm_projector.bin")
    with pytest.raises(FormatError, match=r"mm_projector.bin is a pickle, .*--allow-pickle"):
        convert(source, tmp_path / "out", base=base, registry=registry)
    made = convert(source, tmp_path / "out", base=base, allow_pickle=True, registry=registry)
    assert {row.fate for row in made.accounting} == {"connector"}
    model, _ = compose_parents(base, made, registry, None)
    masks, types = spans(model, "vision")
    embeds = random_embeds()
    goal = oracle(base, {}, config, embeds, masks)
    torch.testing.assert_close(run(model, embeds, types), goal, **CLOSE)


def test_values_keep_their_dtype(base: Path, registry: Registry, tmp_path: Path) -> None:
    state = make_state("vision", "modal+language", "linear", 1)
    half = {name: value.to(torch.bfloat16) for name, value in state.items()}
    config = make_config("vision", "modal+language", "linear")
    source = save(tmp_path / "in", half, config, "adapter_model.bin")
    convert(source, tmp_path / "out", base=base, allow_pickle=True, registry=registry)
    for file in ("connector", "text_adapter/adapter_model", "modality_adapter/adapter_model"):
        tensors = load_file(tmp_path / "out" / f"{file}.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    key = "model.layers.0.self_attn.q_proj.lora_A"
    found = tensors[f"base_model.{key.replace('model.', 'model.model.', 1)}.weight"]
    assert torch.equal(found, half[f"{key}.vision.weight"])


def test_what_lies_in_a_second_file(base: Path, registry: Registry, tmp_path: Path) -> None:
    state = make_state("vision", "same", "linear", 1)
    config = make_config("vision", "same", "linear")
    ends = {name: value for name, value in state.items() if "_tokens." in name}
    rest = {name: value for name, value in state.items() if name not in ends}
    source = save(tmp_path / "in", rest, config, "adapter_model.safetensors")
    save(source, ends, config, "non_lora_trainables.safetensors")
    save(source, rest, config, "mm_projector.safetensors")
    made = convert(source, tmp_path / "out", base=base, registry=registry)
    assert [row.tensor for row in made.accounting] == sorted(state)
    assert made.notes == (
        "mm_projector lies beside adapter_model and was not read, as in the released code",
    )
    assert sorted(made.parents[0].manifest.training["files"]) == [
        "adapter_model.safetensors",
        "config.json",
        "non_lora_trainables.safetensors",
    ]
