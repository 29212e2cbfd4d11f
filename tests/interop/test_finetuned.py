"""Whole fine-tuned models become parents, and the composition gives their own logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import modalloy
from composing import CLOSE, logits
from interop.wholes import AUDIO, FAMILIES, IMAGE, LAYOUTS, VIDEO, whole_model
from modalloy import Registry
from modalloy.base import resolve_base
from modalloy.interop.accounting import group_rows, totals
from modalloy.interop.convert import convert
from modalloy.parent import read_manifest
from tiny import tiny_base
from toy import ask

SIZES = {"qwen2_vl": 56, "qwen2_5_vl": 56, "qwen3_vl": 64}


def prepared(tmp_path: Path, family: str, **options: Any) -> tuple[Path, Path, Any]:
    """A tiny base, a parent converted from a model tuned from it, and that model."""
    base = tmp_path / FAMILIES[family]
    if not base.exists():
        tiny_base(base, family=FAMILIES[family], seed=3)
    model = whole_model(tmp_path / family, family, base, layout=options.pop("layout", "saved"))
    options = {"image_size": SIZES[family], **options} if family in SIZES else options
    out = tmp_path / f"{family}-parent"
    convert(tmp_path / family, out, base=base, **options)
    return base, out, model


def theirs(model: Any, batch: Any, placeholder: int, own: int) -> torch.Tensor:
    """Logits of the whole model on one prompt laid out by the composition's processor.

    Positions run one after another for all, which is what a plain base has.
    """
    ids = torch.where(batch["input_ids"] == placeholder, own, batch["input_ids"])
    positions = torch.arange(ids.shape[1])[None]
    extra: dict[str, Any] = {"position_ids": positions}
    kind = model.config.model_type
    if kind == "qwen2_audio":
        features = batch["audio_input_features"]
        mask = torch.ones(len(features), features.shape[2], dtype=torch.long)
        extra |= {"input_features": features, "feature_attention_mask": mask}
    elif kind == "video_llava" and own == VIDEO:
        extra["pixel_values_videos"] = batch["video_pixel_values"]
    elif kind == "video_llava":
        extra["pixel_values_images"] = batch["vision_pixel_values"]
    elif kind == "llava_next":
        return _without_tiles(model, ids, batch["vision_pixel_values"], positions, batch)
    elif kind == "llava":
        extra["pixel_values"] = batch["vision_pixel_values"]
    else:
        pixels = batch["vision_pixel_values"]
        side = int(pixels.shape[1] ** 0.5)
        extra["image_grid_thw"] = torch.tensor([[1, side, side]] * len(pixels))
        extra |= {"pixel_values": pixels.flatten(0, 1), "position_ids": positions.expand(3, 1, -1)}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=batch["attention_mask"], **extra).logits


def _without_tiles(
    model: Any, ids: torch.Tensor, pixels: torch.Tensor, positions: torch.Tensor, batch: Any
) -> torch.Tensor:
    """LLaVA-NeXT on one square a picture, which its own forward always cuts into tiles."""
    config = model.config
    with torch.no_grad():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features = states[config.vision_feature_layer][:, 1:]
        features = model.model.multi_modal_projector(features).flatten(0, 1)
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == IMAGE)[..., None], features)
        return model(
            inputs_embeds=embeds, attention_mask=batch["attention_mask"], position_ids=positions
        ).logits


CASES = {
    "llava": ("vision", IMAGE),
    "llava_next": ("vision", IMAGE),
    "qwen2_vl": ("vision", IMAGE),
    "qwen2_5_vl": ("vision", IMAGE),
    "qwen3_vl": ("vision", IMAGE),
    "qwen2_audio": ("audio", AUDIO),
    "video_llava": ("video", VIDEO),
}


def raw(modality: str, seed: int) -> tuple[str, Any]:
    """A content part: noise of one kind."""
    draw = np.random.default_rng(seed)
    if modality == "audio":
        return "audio", (draw.standard_normal(6400).astype(np.float32) * 0.1, 16_000)
    if modality == "video":
        return "video", draw.integers(0, 256, (9, 40, 40, 3), dtype=np.uint8)
    return "image", Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8))


def one_prompt(processor: Any, *parts: Any) -> Any:
    return processor.apply_chat_template([ask(*parts)], add_generation_prompt=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", sorted(CASES))
def test_a_composition_of_one_gives_the_models_own_logits(
    tmp_path: Path, family: str, layout: str
) -> None:
    modality, own = CASES[family]
    base, parent, model = prepared(tmp_path, family, layout=layout)
    composed, processor = modalloy.compose(base, modalities=[modality], parents=[parent])
    if family == "qwen3_vl":  # whose DeepStack a composition leaves out
        model.model.visual.deepstack_visual_indexes = []
    placeholder = composed.config.modalities[modality]["placeholder_id"]
    for parts in (("see", raw(modality, 0)), (raw(modality, 1), "what is it")):
        batch = one_prompt(processor, *parts)
        goal = theirs(model, batch, placeholder, own)
        torch.testing.assert_close(logits(composed, batch), goal, **CLOSE)


def test_the_picture_side_of_video_llava(tmp_path: Path) -> None:
    base, parent, model = prepared(tmp_path, "video_llava", modality="vision")
    composed, processor = modalloy.compose(base, modalities=["vision"], parents=[parent])
    batch = one_prompt(processor, "see", raw("vision", 0))
    placeholder = composed.config.modalities["vision"]["placeholder_id"]
    goal = theirs(model, batch, placeholder, IMAGE)
    torch.testing.assert_close(logits(composed, batch), goal, **CLOSE)


def test_two_families_over_one_base(tmp_path: Path) -> None:
    """Each gives its own model's logits on its own ground, whatever the other brings."""
    base, sees, llava = prepared(tmp_path, "llava")
    _, hears, qwen = prepared(tmp_path, "qwen2_audio")
    composed, processor = modalloy.compose(
        base, modalities=["audio", "vision"], parents=[sees, hears]
    )
    for modality, model, own in (("vision", llava, IMAGE), ("audio", qwen, AUDIO)):
        batch = one_prompt(processor, "a", raw(modality, 3), "b")
        placeholder = composed.config.modalities[modality]["placeholder_id"]
        goal = theirs(model, batch, placeholder, own)
        torch.testing.assert_close(logits(composed, batch), goal, **CLOSE)
    text = processor.apply_chat_template([ask("what is the time")])
    plain = resolve_base(base).model(torch.float32)
    with torch.no_grad():
        goal = plain(input_ids=text["input_ids"], attention_mask=text["attention_mask"]).logits
    assert torch.equal(logits(composed, text), goal)


def test_naivemc_of_two_families_is_the_mean_of_their_weights(tmp_path: Path) -> None:
    base, sees, llava = prepared(tmp_path, "llava")
    _, hears, qwen = prepared(tmp_path, "qwen2_audio")
    composed, processor = modalloy.compose(
        base, modalities=["audio", "vision"], parents=[sees, hears], method="naive"
    )
    batch = one_prompt(processor, raw("audio", 0), "and", raw("vision", 1), "the same?")
    media = {k: v for k, v in batch.items() if k.startswith(("audio_", "vision_"))}
    mean = resolve_base(base).model(torch.float32)
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            inner = name.removeprefix("model.")
            tuned = [m.model.language_model.get_parameter(inner) for m in (llava, qwen)]
            parameter.copy_((tuned[0] + tuned[1]) / 2)
        embeds = composed.embed(batch["input_ids"], batch["mm_token_type_ids"], media)
        goal = mean(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits(composed, batch), goal, **CLOSE)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("through", ["the model", "the parent"])
def test_a_compressed_parent_serves_damc(tmp_path: Path, through: str) -> None:
    """Less error with more rank, none with all of it, and the error on record."""
    base, whole, model = prepared(tmp_path, "llava")
    source = tmp_path / "llava" if through == "the model" else whole
    batch, goal, distances = None, torch.empty(0), []
    for rank in (4, 16, 32):
        out = tmp_path / f"rank-{rank}"
        made = convert(source, out, base=base, rank=rank)
        composed, processor = modalloy.compose(base, modalities=["vision"], parents=[out])
        assert composed.config.decoupled
        if batch is None:
            batch = one_prompt(processor, "see", raw("vision", 0))
            placeholder = composed.config.modalities["vision"]["placeholder_id"]
            goal = theirs(model, batch, placeholder, IMAGE)
        distances.append(relative(logits(composed, batch), goal))
        record = read_manifest(out).training["compression"]
        record = record if through == "the model" else record["text_weights"]
        assert record["rank"] == rank
        assert len(record["matrices"]) == 14
        errors = {one["tensor"]: one["error"] for one in record["matrices"]}
        assert set(errors) == {n for n in errors if n.endswith("_proj.weight")}
        assert all(error < 1e-5 for error in errors.values()) is (rank == 32)
        assert any(note.startswith("compressed 14 matrices to rank") for note in made.notes)
    assert distances[0] > 2 * distances[1] > 2e-4
    assert distances[2] < 1e-4


def test_energy_says_how_much_is_kept(tmp_path: Path) -> None:
    base, _, _ = prepared(tmp_path, "llava")
    convert(tmp_path / "llava", tmp_path / "out", base=base, energy=0.9)
    record = read_manifest(tmp_path / "out").training["compression"]
    kept = [1 - one["error"] ** 2 for one in record["matrices"]]
    assert all(0.9 - 1e-5 <= share < 1 for share in kept)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_tensor_is_accounted_for(tmp_path: Path, family: str) -> None:
    base = tiny_base(tmp_path / "base", family=FAMILIES[family], seed=3)
    whole_model(tmp_path / "model", family, base)
    from safetensors import safe_open

    made = convert(tmp_path / "model", tmp_path / "out", base=base)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {row.tensor for row in made.accounting} == names
    counts = totals(made.accounting)
    assert counts["text delta"] >= 20
    assert counts["encoder"] > 10
    assert counts["connector"] in (2, 4)
    assert sum(counts.values()) == len(names)
    assert all(row.reason for row in group_rows(made.accounting))
    manifest = read_manifest(tmp_path / "out")
    assert manifest.strategy == "naive"
    assert manifest.training["converted_from"] == "fine-tuned model"
    registry = Registry.discover()
    encoder = registry.encoder(manifest.encoder.type)
    from modalloy.modality import resolve

    assert list(resolve(encoder.output_shape)(manifest.encoder.config)) == manifest.encoder.shape
