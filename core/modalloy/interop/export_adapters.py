"""A composition's streams as deltas over its base: what PEFT adapters hold."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from modalloy.composition.layers import StreamLinear
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.streams import Routing
from modalloy.composition.vectors import TensorStreams
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair
from modalloy.errors import DeltaError


def text_delta(model: ModalloyForConditionalGeneration, routing: Routing) -> LowRankDelta:
    """Return the text stream's delta at fixed coefficients, the groups' ranks side by side.

    Args:
        model: The composition.
        routing: Of a pass of text, see :func:`modalloy.interop.export_plain.text_routing`.

    Returns:
        Pairs in float32, coefficients and scales in B; ranks that a coefficient of 0 silences are
        left out, and so are modules that are the base's then.

    Raises:
        DeltaError: A whole tensor is changed, which a pair cannot hold.
    """
    pairs = {}
    for name, module in model.language_model.named_modules():
        if isinstance(module, TensorStreams) and module.text is not None:
            _refuse_whole(name, "the text stream")
        if not isinstance(module, StreamLinear) or module.text_A is None or module.text_B is None:
            continue
        factors = routing.text_factors(module.text_layout, module.layer)
        if factors is None:
            continue
        start, stop, scale = factors
        used = scale[0].nonzero().squeeze(1)
        a = module.text_A[start:stop][used].detach().float()
        b = module.text_B[:, start:stop][:, used].detach().float() * scale[:, used]
        pairs[name] = LowRankPair(a, b, 1.0)
    return LowRankDelta(pairs)


def modality_delta(model: ModalloyForConditionalGeneration, modality: str) -> LowRankDelta:
    """Return the delta that a modality's tokens run on, its tensors as they are stored.

    Raises:
        DeltaError: A whole tensor is changed, which a pair cannot hold.
    """
    pairs = {}
    for name, module in model.language_model.named_modules():
        if isinstance(module, TensorStreams) and modality in module.own:
            _refuse_whole(name, f"the stream of {modality!r}")
        if isinstance(module, StreamLinear) and modality in module.modality_A:
            a, b = module.modality_A[modality], module.modality_B[modality]
            pairs[name] = LowRankPair(a.detach(), b.detach(), module.modality_scale[modality])
    return LowRankDelta(pairs)


def write_connector(connector: nn.Module, path: Path) -> int:
    """Write a connector as a parent's ``connector.safetensors``; return how many tensors it has."""
    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in connector.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})
    return len(tensors)


def _refuse_whole(name: str, stream: str) -> None:
    tensor = name.removesuffix("_streams")
    raise DeltaError(
        f"{stream} changes {tensor!r} as a whole (a norm, a bias or an embedding), which a PEFT "
        "adapter of low-rank pairs cannot hold; export the text stream with --format transformers "
        "--text-stream, or run the composition itself",
        tensor=tensor,
    )
