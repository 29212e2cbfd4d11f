"""Writing a trained parent's directory."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from modalloy.checkpoints.new_directory import new_directory
from modalloy.composition.layers import StreamLinear
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair, write_adapter
from modalloy.parent import (
    CONNECTOR_FILE,
    MODALITY_ADAPTER,
    TEXT_ADAPTER,
    ParentManifest,
    write_manifest,
)


def write_parent(
    model: ModalloyForConditionalGeneration, manifest: ParentManifest, output: Path
) -> ParentManifest:
    """Write a parent directory, whole or not at all.

    Args:
        model: The parent's composition, trained.
        manifest: What to say about it; hashes are added.
        output: The directory to write; must not exist, or be empty.

    Returns:
        The manifest that was written.

    Raises:
        FormatError: It cannot be written; nothing is left behind.
    """
    state = model.connectors[manifest.modality].state_dict()
    connector = {name: value.to(torch.bfloat16).contiguous().cpu() for name, value in state.items()}
    with new_directory(output) as partial:
        for folder, delta in _deltas(model, manifest.modality).items():
            write_adapter(partial / folder, delta, base_id=manifest.base.id)
        save_file(connector, partial / CONNECTOR_FILE)
        return write_manifest(partial, manifest)


def _deltas(model: ModalloyForConditionalGeneration, modality: str) -> dict[str, LowRankDelta]:
    """Return the trained deltas in bfloat16, by adapter directory."""
    tables: dict[str, dict[str, LowRankPair]] = {TEXT_ADAPTER: {}, MODALITY_ADAPTER: {}}
    for name, layer in model.language_model.named_modules():
        if not isinstance(layer, StreamLinear):
            continue
        if layer.text_A is not None and layer.text_B is not None:
            scale = layer.text_layout[0][2]
            tables[TEXT_ADAPTER][name] = _pair(layer.text_A, layer.text_B, scale)
        if modality in layer.modality_A:
            tables[MODALITY_ADAPTER][name] = _pair(
                layer.modality_A[modality],
                layer.modality_B[modality],
                layer.modality_scale[modality],
            )
    return {folder: LowRankDelta(pairs) for folder, pairs in tables.items() if pairs}


def _pair(a: torch.Tensor, b: torch.Tensor, scale: float) -> LowRankPair:
    def stored(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(torch.bfloat16).cpu()

    return LowRankPair(stored(a), stored(b), scale)
