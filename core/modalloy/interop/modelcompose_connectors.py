"""Connectors of ModelCompose checkpoints, and the learned tokens around their output.

Facts from the released code (THUNLP-MT/ModelCompose, commit 7846997):
``multimodal_projector/builder.py`` and ``multimodal_llama.py``.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import attrs
import torch

from modalloy.composition.connecting import build_connector
from modalloy.connectors.qformer_options import NAME as QFORMER
from modalloy.errors import BaseMismatchError, DeltaError, FormatError, SpecError
from modalloy.interop.accounting import CONNECTOR, Accounting, some_patterns
from modalloy.interop.modelcompose_encoders import read_encoder
from modalloy.interop.modelcompose_layout import PROJECTOR, TOKENS
from modalloy.interop.modelcompose_settings import ModalitySettings, Settings
from modalloy.interop.pickles import Weights
from modalloy.modality import resolve
from modalloy.parent import ComponentConfig
from modalloy.registry import Registry

_HEADS = 12  # of the Q-Former: BERT's default, whatever its width
_BERT = "audio_Qformer.bert"
_BUFFERS = re.compile(rf"{re.escape(_BERT)}\.embeddings\.position_ids")


@attrs.frozen(kw_only=True)
class Connection:
    """A modality's connector, read.

    Attributes:
        spec: For the manifest.
        tensors: ``projection.*``, ``prefix``, ``suffix``.
        notes: What else there is to know.
    """

    spec: ComponentConfig
    tensors: Mapping[str, torch.Tensor]
    notes: tuple[str, ...]


def read_connection(
    name: str,
    settings: Settings,
    weights: Weights,
    accounting: Accounting,
    hidden: int,
    registry: Registry,
) -> Connection:
    """Read a modality's connector and learned tokens, and account for their tensors.

    Args:
        name: Their name of the modality.
        settings: What config.json says.
        weights: The checkpoint.
        accounting: Takes down what became of each tensor.
        hidden: D, hidden size of the base.
        registry: Supplies connector types.

    Raises:
        SpecError: The connector is of a type that has no counterpart.
        FormatError: A tensor is missing, or is not of the shape that config.json describes.
        BaseMismatchError: It leads to embeddings of another size than the base's.
    """
    one = settings.modalities[name]
    keys = {
        match["key"]: full
        for full in weights.names()
        if (match := PROJECTOR.fullmatch(full)) and match["modality"] == name
    }
    spec, renamed = _connector(settings, name, one, keys, weights)
    tensors: dict[str, torch.Tensor] = {}
    for key, full in keys.items():
        if key in renamed:
            accounting.place(full, CONNECTOR, f"connector {spec.type!r}")
            tensors[f"projection.{renamed[key]}"] = weights.tensor(full)
        elif _BUFFERS.fullmatch(key):
            accounting.skip(full, "counts positions, which the connector does for itself")
    if not tensors:
        raise FormatError(
            f"{weights.source} has no connector of {name}: no tensor is named "
            f"model.modal_projectors.{name}.*",
            path=weights.source,
        )
    count = registry.connector(spec.type).output_tokens
    if count is not None:
        resolve(count)(spec.config, (read_encoder(name, settings).shape or (1,))[0])
    notes = _add_tokens(name, one, weights, accounting, hidden, tensors)
    _check(settings, name, spec, tensors, hidden, registry)
    return Connection(spec=spec, tensors=tensors, notes=notes)


def _connector(
    settings: Settings, name: str, one: ModalitySettings, keys: Iterable[str], weights: Weights
) -> tuple[ComponentConfig, Mapping[str, str]]:
    """Return our connector, and our key of each of its keys."""
    if one.projector == "linear":
        return ComponentConfig(type="linear"), {key: key for key in ("weight", "bias")}
    mlp = re.fullmatch(r"mlp(\d{1,2})x_gelu", one.projector)
    if mlp and int(mlp[1]) > 0:
        same = [f"{2 * i}.{part}" for i in range(int(mlp[1])) for part in ("weight", "bias")]
        return ComponentConfig(type="mlp", config={"depth": int(mlp[1])}), {k: k for k in same}
    qformer = re.fullmatch(r"qformer_(\d{1,4})N_(\d{1,2})L", one.projector)
    if qformer:
        renamed = {key: new for key in keys if (new := qformer_key(key)) is not None}
        read = _shape_reader(name, weights)
        options = {
            "queries": int(qformer[1]),
            "layers": int(qformer[2]),
            "width": read("audio_query_tokens", 3)[2],
            "heads": _HEADS,
            "positions": read("audio_position_embedding.weight", 2)[0],
            "intermediate": read(f"{_BERT}.encoder.layer.0.intermediate_query.dense.weight", 2)[0],
        }
        return ComponentConfig(type=QFORMER, config=options), renamed
    raise SpecError(
        f"{settings.path}: the projector of {name} is {one.projector!r}; connectors are 'linear', "
        "'mlpNx_gelu' and 'qformer_{N}N_{L}L'"
        + (": this one trains nothing" if one.projector == "identity" else ""),
        subject=one.projector,
    )


def _shape_reader(name: str, weights: Weights) -> Callable[[str, int], tuple[int, ...]]:
    def read(key: str, axes: int) -> tuple[int, ...]:
        full = f"model.modal_projectors.{name}.{key}"
        if full not in weights or len(weights.shape(full)) != axes:
            found = weights.shape(full) if full in weights else "none"
            raise FormatError(
                f"{weights.source}: the Q-Former of {name} needs {full!r} with {axes} axes, "
                f"found {found}",
                path=weights.source,
            )
        return weights.shape(full)

    return read


_QFORMER_PARTS = MappingProxyType(
    {
        "self.query": "query",
        "self.key": "key",
        "self.value": "value",
        "output.dense": "output",
        "output.LayerNorm": "norm",
    }
)
_QFORMER_BLOCKS = MappingProxyType(
    {"attention": "self_attention", "crossattention": "cross_attention"}
)
_QFORMER_LINEAR = MappingProxyType(
    {
        "intermediate_query.dense": "up",
        "output_query.dense": "down",
        "output_query.LayerNorm": "norm",
    }
)
_QFORMER_TOP = MappingProxyType(
    {
        "audio_query_tokens": "query_tokens",
        "audio_position_embedding.weight": "position_embedding.weight",
        "audio_llama_proj.weight": "output.weight",
        "audio_llama_proj.bias": "output.bias",
        f"{_BERT}.embeddings.LayerNorm.weight": "norm.weight",
        f"{_BERT}.embeddings.LayerNorm.bias": "norm.bias",
    }
)
_QFORMER_LAYER = re.compile(
    rf"{re.escape(_BERT)}\.encoder\.layer\.(?P<number>\d+)\.(?P<part>.+)\.(?P<kind>weight|bias)"
)


def qformer_key(key: str) -> str | None:
    """Return our name of a tensor of their Q-Former, whatever its modality; ``None`` for others.

    Their class is the one of Video-LLaMA's audio branch, hence its tensors' names.
    """
    if key in _QFORMER_TOP:
        return _QFORMER_TOP[key]
    match = _QFORMER_LAYER.fullmatch(key)
    if match is None:
        return None
    block, _, part = match["part"].partition(".")
    ours = _QFORMER_LINEAR.get(match["part"])
    if block in _QFORMER_BLOCKS and part in _QFORMER_PARTS:
        ours = f"{_QFORMER_BLOCKS[block]}.{_QFORMER_PARTS[part]}"
    return None if ours is None else f"layers.{match['number']}.{ours}.{match['kind']}"


def _add_tokens(
    name: str,
    one: ModalitySettings,
    weights: Weights,
    accounting: Accounting,
    hidden: int,
    tensors: dict[str, torch.Tensor],
) -> tuple[str, ...]:
    """Add the learned tokens of a modality to its connector's tensors; return notes."""
    notes = []
    dtype = next(iter(tensors.values())).dtype
    for end, count in (("prefix", one.prefix), ("suffix", one.suffix)):
        full = f"{end}_tokens.{name}"
        if full in weights and (not count or weights.shape(full) != (1, count, hidden)):
            raise FormatError(
                f"{weights.source}: {full!r} is {weights.shape(full)}; config.json and the base "
                f"make it {(1, count, hidden) if count else 'none (0 tokens)'}",
                path=weights.source,
            )
        if full in weights:
            accounting.place(full, CONNECTOR, f"{end} of the connector")
            tensors[end] = weights.tensor(full)[0]
        elif count:
            tensors[end] = torch.zeros(count, hidden, dtype=dtype)
            notes.append(
                f"{name}: the checkpoint has no {full!r}; the {count} tokens are zeros, as the "
                "released code starts them"
            )
    return tuple(notes)


def skip_text_tokens(weights: Weights, accounting: Accounting) -> None:
    """Account for the learned tokens of the text stream, which are built and never used."""
    for full in weights.names():
        match = TOKENS.fullmatch(full)
        if match is not None and match["owner"].startswith("default"):
            accounting.skip(full, f"text has no {match['end']}: the released code never reads it")


def _check(
    settings: Settings,
    name: str,
    spec: ComponentConfig,
    tensors: Mapping[str, torch.Tensor],
    hidden: int,
    registry: Registry,
) -> None:
    """Check that the tensors are those of the connector that will be built for them."""
    one = settings.modalities[name]
    entry = {"connector": attrs.asdict(spec)}
    entry |= {"prefix_tokens": one.prefix, "suffix_tokens": one.suffix}  # type: ignore[dict-item]
    with torch.device("meta"):
        module = build_connector(entry, one.features, hidden, registry)
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    lacking, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if lacking or extra:
        problem = f"lacks {some_patterns(lacking)}" if lacking else f"has {some_patterns(extra)}"
        raise FormatError(
            f"{settings.path.parent}: the connector of {name}, {one.projector!r} by config.json, "
            f"{problem}; the checkpoint is damaged, or config.json is another's",
            path=settings.path,
        )
    wrong = next((key for key in sorted(expected) if expected[key] != found[key]), None)
    if wrong is None:
        return
    message = (
        f"{settings.path.parent}: {wrong!r} of the connector of {name} is {found[wrong]}; "
        f"{one.features} features of its encoder and the base's hidden size {hidden} make it "
        f"{expected[wrong]}"
    )
    if hidden not in found[wrong] and hidden in expected[wrong]:
        raise BaseMismatchError(
            f"{message}: it was trained for a base of another size",
            parent=name,
            expected=str(expected[wrong]),
            found=str(found[wrong]),
        )
    raise DeltaError(message, tensor=wrong)
