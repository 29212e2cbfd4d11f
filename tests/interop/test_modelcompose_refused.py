"""ModelCompose checkpoints that cannot become parents: what is said, and that nothing is left."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from interop.modelcompose_fixtures import (
    State,
    lora_state,
    make_config,
    make_state,
    save,
    write_checkpoint,
)
from modalloy import Registry
from modalloy.errors import (
    BaseMismatchError,
    DeltaError,
    FormatError,
    ModalloyError,
    SpecError,
)
from modalloy.interop import writing
from modalloy.interop.convert import convert
from tiny import tiny_base


def changed(**changes: Any) -> dict[str, Any]:
    return {**make_config("vision", "modal+language", "linear"), **changes}


STATE = make_state("vision", "modal+language", "linear", 2)
Q0 = "model.layers.0.self_attn.q_proj.lora_"


def without(*parts: str) -> State:
    return {k: v for k, v in STATE.items() if not any(part in k for part in parts)}


REFUSED: list[tuple[State, Mapping[str, Any], type[ModalloyError], str]] = [
    (STATE, changed(layer_local_tokens=True), SpecError, "layer_local_tokens is set: learned tok"),
    (STATE, changed(seperate_layernorm=True), SpecError, "seperate_layernorm is set: norms were"),
    (STATE, changed(lora_strategy="all"), SpecError, "lora_strategy is 'all', .* modal, modal.lan"),
    (STATE, changed(lora_r=0), FormatError, "lora_r must be a positive integer, found 0"),
    (STATE, changed(lora_r=8), FormatError, "are not of the rank that config.json says, 8"),
    (STATE, changed(lora_alpha="x"), FormatError, "lora_alpha must be a positive number"),
    (STATE, changed(mm_vision_encoder=None), FormatError, "config.json names no encoder"),
    (STATE, changed(mm_vision_encoder=3), FormatError, "mm_vision_encoder must be a name, found 3"),
    (STATE, changed(mm_vision2_encoder="clip"), SpecError, "second vision encoder"),
    (STATE, changed(mm_vision_encoder="EVA02_CLIP_L_336_psz14_s6B.pt"), SpecError, "known is a CL"),
    (STATE, changed(mm_vision_select_feature="cls_patch"), SpecError, "without the class token"),
    (STATE, changed(mm_vision_select_layer="x"), FormatError, "select_layer must be an integer"),
    (
        STATE,
        changed(mm_projector_type="identity"),
        SpecError,
        "'identity'; connectors are 'linear'",
    ),
    (STATE, changed(mm_projector_type="mlp2x_gelu"), FormatError, "has no connector of vision"),
    (STATE, changed(mm_projector_type="qformer_3N_2L"), FormatError, "needs .*audio_query_tokens"),
    (
        STATE,
        changed(mm_hidden_size=9),
        DeltaError,
        "'projection.weight' of the connector .* 9 feat",
    ),
    (STATE, changed(local_prefix_tokens=4), FormatError, r"'prefix_tokens.vision' is \(1, 2, 32\)"),
    (STATE, changed(local_prefix_tokens=0), FormatError, r"make it none \(0 tokens\)"),
    (STATE, changed(local_suffix_tokens=-1), FormatError, "local_suffix_tokens must be from 0"),
    (STATE, changed(reset_scaling_weights="vision"), FormatError, "has 'vision', expected NAME=N"),
    (
        STATE,
        changed(reset_scaling_weights="sight=1"),
        DeltaError,
        "names 'sight', which is no adap",
    ),
    (STATE, changed(reset_scaling_weights="default-vision=1"), DeltaError, "never use it"),
    (STATE, changed(lora_strategy="same"), DeltaError, "runs every token on 'default'; the rel"),
    (
        {**STATE, **lora_state("audio", torch.Generator())},
        changed(),
        DeltaError,
        "holds an adapter 'audio'; config.json names the modalities vision",
    ),
    (without("lora_"), changed(), DeltaError, "nothing placed. None of its 6 tensors changes the"),
    (without(f"{Q0}A.vision"), changed(), FormatError, "'vision' lacks a factor of 1 of 14 proj"),
    (
        without("layers.1."),
        changed(),
        FormatError,
        "'default' lacks a factor of 7 of 14 projections",
    ),
    (
        without("projectors"),
        changed(),
        FormatError,
        "has no connector of vision: no tensor is named",
    ),
    (without("vision.bias"), changed(), FormatError, "lacks 'projection.bias'"),
    (
        {**STATE, "model.embed_tokens.weight": torch.zeros(2)},
        changed(),
        DeltaError,
        "1 of 63 tensors have no place and would be lost: 'model.embed_tokens.weight'",
    ),
    (
        {**STATE, "model.modal_projectors.vision.scale": torch.zeros(2)},
        changed(),
        DeltaError,
        "1 of 63 tensors have no place .*'model.modal_projectors.vision.scale'; expected names",
    ),
]


@pytest.mark.parametrize(
    ("state", "config", "kind", "message"), REFUSED, ids=[r[3] for r in REFUSED]
)
def test_what_is_refused(
    base: Path,
    registry: Registry,
    tmp_path: Path,
    state: State,
    config: Mapping[str, Any],
    kind: type[ModalloyError],
    message: str,
) -> None:
    source = save(tmp_path / "in", state, config, "adapter_model.safetensors")
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    with pytest.raises(kind, match=message) as caught:
        convert(source, tmp_path / "out", base=base, registry=registry)
    assert str(source) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"], "nothing is left behind"
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def test_another_base(registry: Registry, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in")
    with pytest.raises(SpecError, match=r"holds no LLM; give the base .*'vicuna-7b-v1.5'"):
        convert(source, tmp_path / "out", registry=registry)
    for family in ("phi3", "qwen3"):
        other = tiny_base(tmp_path / family, family=family)
        if family == "qwen3":
            convert(source, tmp_path / "fits", base=other, registry=registry)
            continue
        with pytest.raises(BaseMismatchError, match=r"the base 'phi3' has none there; take the ba"):
            convert(source, tmp_path / "out", base=other, registry=registry)


def test_a_connector_for_a_base_of_another_size(
    base: Path, registry: Registry, tmp_path: Path
) -> None:
    state = make_state("vision", "none", "linear", 2)
    stem = "model.modal_projectors.vision."
    kept = {f"{stem}weight": torch.zeros(64, 6), f"{stem}bias": torch.zeros(64)}
    kept |= {"prefix_tokens.default": state["prefix_tokens.default"]}
    config = {**make_config("vision", "none", "linear"), "local_prefix_tokens": 0}
    source = save(tmp_path / "in", kept, config, "adapter_model.safetensors")
    with pytest.raises(BaseMismatchError, match="was trained for a base of another size"):
        convert(source, tmp_path / "out", base=base, registry=registry)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_stops_half_way_leaves_nothing(
    base: Path,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    source = write_checkpoint(tmp_path / "in")

    def stop(directory: Path, _: object) -> None:
        assert (directory / "connector.safetensors").is_file()
        raise error

    monkeypatch.setattr(writing, "write_manifest", stop)
    kind = FormatError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(kind):
        convert(source, tmp_path / "deep" / "out", base=base, registry=registry)
    assert not (tmp_path / "deep").exists()


def test_out_must_be_free(base: Path, registry: Registry, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in")
    (tmp_path / "out").mkdir()
    convert(source, tmp_path / "out", base=base, registry=registry)
    content = json.loads((tmp_path / "out" / "parent.json").read_text())
    with pytest.raises(FormatError, match="exists and is no empty directory"):
        convert(source, tmp_path / "out", base=base, registry=registry)
    assert json.loads((tmp_path / "out" / "parent.json").read_text()) == content


def test_two_conversions_agree_to_the_byte(base: Path, registry: Registry, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", "audio", projector="qformer_3N_2L")
    for name in ("one", "two"):
        convert(source, tmp_path / name, base=base, registry=registry)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
