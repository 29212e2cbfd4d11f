"""What becomes of every tensor of a composition that is exported."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from modalloy.composition.layers import StreamLinear
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.streams import Routing
from modalloy.composition.vectors import StreamEmbedding, TensorStreams

_SILENT = "left out: every coefficient of it is 0"


def account(
    model: ModalloyForConditionalGeneration, routing: Routing, to: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Say of every tensor of a composition where it goes; before anything is folded.

    Args:
        model: The composition.
        routing: Of a pass of text, see :func:`modalloy.interop.export_plain.text_routing`.
        to: ``"transformers"`` or ``"peft"``.

    Returns:
        Rows for people (``part``, ``tensors``, ``fate``), encoders included, and the fate of each
        tensor by name.
    """
    fates = {name: _fate(model, name, routing, to) for name in _names(model)}
    counts = Counter((part, fate) for part, fate in fates.values())
    rows: list[dict[str, Any]] = [
        {"part": part, "tensors": count, "fate": fate} for (part, fate), count in counts.items()
    ]
    for modality, entry in model.config.modalities.items():
        held = modality in model.encoders.files
        where = "its file is the composition's" if held else "its plugin opens it"
        fate = f"left out: encoder type {entry['encoder']['type']!r}; {where}"
        rows.append({"part": f"encoder of {modality}", "tensors": None, "fate": fate})
    return rows, {name: fate for name, (_, fate) in fates.items()}


def _names(model: ModalloyForConditionalGeneration) -> Iterator[str]:
    """Yield the name of every tensor, one that has two names (a tied head) once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name


def _fate(
    model: ModalloyForConditionalGeneration, name: str, routing: Routing, to: str
) -> tuple[str, str]:
    """Return the part that a tensor belongs to, and what becomes of it."""
    top, _, rest = name.partition(".")
    if top == "connectors":
        modality = rest.partition(".")[0]
        fate = f"written to {modality}/connector.safetensors"
        if to == "transformers":
            fate = "left out: turns inputs into embeddings, and a model of text takes none"
        return f"connector of {modality}", fate
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    holder = model.get_submodule(path.rpartition(".")[0])
    if leaf in {"text", "text_A", "text_B"}:
        fate = "folded into the weights" if to == "transformers" else "written to text/"
        return "text deltas", fate if _at_work(owner, holder, routing) else _SILENT
    if isinstance(holder, StreamLinear | TensorStreams):
        fate = f"written to {leaf}/"
        if to == "transformers":
            fate = f"left out: tokens of {leaf} inputs run on it, and a model of text has none"
        return f"own delta of {leaf}", fate
    if to == "peft":
        return "base", f"left out: as in the base ({model.config.base['id']})"
    streams = owner if leaf == "weight" else None
    beside = getattr(owner, f"{leaf}_streams", None)
    tuned = isinstance(streams, StreamLinear) and _at_work(streams, owner, routing)
    tuned = tuned or (beside is not None and _at_work(beside, owner, routing))
    return "base", "text deltas folded into it" if tuned else "copied"


def _at_work(streams: Any, holder: Any, routing: Routing) -> bool:
    """Whether a layer's text deltas change anything at these coefficients."""
    first = isinstance(holder, StreamEmbedding)  # has the first layer's coefficients
    layer = max(streams.layer, 0) if first else streams.layer
    return routing.text_factors(streams.text_layout, layer) is not None
