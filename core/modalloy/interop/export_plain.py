"""A composition's text stream as a plain language model: deltas in its weights, tokens as before.

The model is changed in place, layer by layer, so that no more than one layer is held twice.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from modalloy.checkpoints.safe_files import read_object
from modalloy.composition.coefficients import Coefficients, Value
from modalloy.composition.folding import fold_text
from modalloy.composition.layers import StreamLinear
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.streams import Routing, route
from modalloy.composition.vectors import StreamEmbedding, StreamNorm, TensorStreams
from modalloy.errors import FormatError

STREAMED = (StreamEmbedding, StreamLinear, StreamNorm)
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def text_routing(model: ModalloyForConditionalGeneration, row: tuple[Value, ...]) -> Routing:
    """Return the routing of a pass of text at fixed coefficients.

    Args:
        model: The composition.
        row: One coefficient per group of text deltas, in their order.
    """
    fixed = Coefficients(tuple(model.config.text_deltas()), row)
    types = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    present = torch.zeros(1, len(model.type_ids), dtype=torch.bool, device=model.device)
    return route(types, present, model.type_ids, fixed, decoupled=model.config.decoupled)


@torch.no_grad()
def fold_model(model: ModalloyForConditionalGeneration, routing: Routing) -> PreTrainedModel:
    """Put the text deltas into the weights of a composition's language model.

    Each weight is summed in float32 and rounded once, to its own dtype.

    Args:
        model: The composition; its language model is taken from it.
        routing: Of a pass of text, see :func:`text_routing`.

    Returns:
        The language model, with the layers that transformers gives it.
    """
    language_model = model.language_model
    head, embedding = (
        language_model.get_output_embeddings(),
        language_model.get_input_embeddings(),
    )
    tied = head is not None and head.weight is embedding.weight
    for name, module in list(language_model.named_modules()):
        if isinstance(module, STREAMED):
            language_model.set_submodule(name, _folded(module, routing))
    if tied:
        _tie_again(language_model)
    language_model.generation_config = model.generation_config
    return language_model


def _folded(module: nn.Module, routing: Routing) -> nn.Module:
    """Return the base's own kind of layer, with the weights of a stream-aware one folded."""
    if isinstance(module, StreamLinear):
        fold_text(module, routing)
        plain: nn.Module = nn.Linear(
            module.in_features, module.out_features, bias=module.bias is not None, device="meta"
        )
        folded = {"weight": module.folded, "bias": _sum(module, "bias", routing)}
        module.folded = None
    elif isinstance(module, StreamNorm):
        plain = module._norm[0]  # noqa: SLF001 - the layer whose place it took
        folded = {kind: _sum(module, kind, routing) for kind in ("weight", "bias")}
    else:
        folded = {"weight": _sum(module, "weight", routing)}
        plain = cast("StreamEmbedding", module).become_plain()
    for kind, value in folded.items():
        kept = getattr(module, kind)
        if kept is not None:
            setattr(plain, kind, kept if value is None else nn.Parameter(value))
    return plain


def _sum(module: nn.Module, kind: str, routing: Routing) -> torch.Tensor | None:
    """Return a tensor of a layer with its text deltas; ``None`` where it has none."""
    streams: TensorStreams | None = getattr(module, f"{kind}_streams", None)
    if streams is None or streams.text is None:
        return None
    # The embedding runs before the layers, and takes the first one's coefficients.
    layer = max(streams.layer, 0) if isinstance(module, StreamEmbedding) else streams.layer
    factors = routing.text_factors(streams.text_layout, layer)
    if factors is None:
        return None
    start, stop, scale = factors
    plain: torch.Tensor = getattr(module, kind)
    total = plain.float()
    for index in range(start, stop):
        total = total + scale[0, index - start] * streams.text[index].float()
    return total.to(plain.dtype)


def _tie_again(model: PreTrainedModel) -> None:
    """Have head and embedding share one weight again, or say that they do not any more."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if head.weight is embedding.weight:
        return
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        return
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def strip_tokenizer(directory: Path, placeholders: Collection[str]) -> list[str]:
    """Take the placeholders out of a saved tokenizer; their ids lie beyond the base's own.

    A placeholder that the base's tokenizer had itself stays: it is not among the last.

    Args:
        directory: Where the tokenizer was saved.
        placeholders: Of the composition's modalities.

    Returns:
        What was taken out.

    Raises:
        FormatError: The tokenizer is not of the kind whose file lists its added tokens.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FormatError(
            f"{path.name} was not written: the tokenizer is of a kind that cannot be edited; open "
            "it with the tokenizers library first",
            path=path,
        )
    data = read_object(path)
    dropped = []
    added = sorted(data["added_tokens"], key=lambda token: token["id"])
    while added and added[-1]["content"] in placeholders:
        dropped.append(added.pop()["content"])
    data["added_tokens"] = added
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    config = directory / "tokenizer_config.json"
    settings = _stripped(read_object(config), dropped)
    config.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return sorted(dropped)


def _stripped(settings: dict[str, Any], dropped: Collection[str]) -> dict[str, Any]:
    """Return a tokenizer's settings without the tokens and without the composition's processor."""
    settings.pop("processor_class", None)
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        kept = {key: token for key, token in decoder.items() if token["content"] not in dropped}
        settings["added_tokens_decoder"] = kept
    for key in _LISTS:
        if isinstance(settings.get(key), list):
            settings[key] = [token for token in settings[key] if token not in dropped]
    return settings
