"""What a PEFT adapter holds: pairs, tensors of the base that were trained whole, a projector."""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import torch
from safetensors.torch import save_file

from modalloy.base import Base
from modalloy.checkpoints.reader import CheckpointReader
from modalloy.deltas.lowrank import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LowRankDelta,
    LowRankPair,
    read_adapter,
)
from modalloy.errors import BaseMismatchError, DeltaError, FormatError
from modalloy.interop.accounting import CONNECTOR, TEXT_DELTA, Accounting
from modalloy.interop.pickles import Weights
from modalloy.parent import ParentManifest

_PREFIX = "base_model.model."
_LORA = re.compile(
    re.escape(_PREFIX) + r"(?P<module>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight"
)
_TOWER = re.compile(r"(?:^|\.)(vision_tower|vision_model|visual|audio_tower|audio_encoder)\.")
_PROJECTOR = re.compile(r"(?:^|\.)(multi_modal_projector|mm_projector)\.(?P<key>.+)$")

# The language model of a model with a tower, by the name of it in a language model alone.
_LANGUAGE = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.lm_head.", "lm_head."),
    ("", ""),
    ("", "model."),
)
# LLaVA's projector, in transformers and in the authors' own code, by the keys of connector "mlp".
_MLP_KEYS: Mapping[str, str] = MappingProxyType(
    {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in (("linear_1", 0), ("linear_2", 2), ("0", 0), ("2", 2))
        for kind in ("weight", "bias")
    }
)


@attrs.frozen(kw_only=True)
class Components:
    """An existing parent that supplies encoder and connector.

    Attributes:
        directory: The parent directory.
        manifest: Its manifest.
        connector: Its connector's tensors.
    """

    directory: Path
    manifest: ParentManifest
    connector: Mapping[str, torch.Tensor]


@attrs.frozen(kw_only=True)
class AdapterContent:
    """What an adapter holds.

    Attributes:
        text: Pairs, by names of the base's modules.
        weights: Tensors of the base that were trained whole, by the base's names.
        connector: The components' connector, or what the adapter has in its place.
    """

    text: LowRankDelta
    weights: Mapping[str, torch.Tensor]
    connector: Mapping[str, torch.Tensor]


def read_content(
    weights: Weights,
    config: Mapping[str, Any],
    base: Base,
    components: Components,
    accounting: Accounting,
) -> AdapterContent:
    """Sort an adapter's tensors into pairs, whole tensors of the base, and a connector.

    Args:
        weights: The adapter.
        config: Content of its configuration.
        base: The base.
        components: Supplies the connector that a projector must fit.
        accounting: Takes down what became of each tensor.

    Raises:
        FormatError: A tensor is malformed, or one that should be there is not.
        DeltaError: The adapter is not a plain LoRA, or changes an encoder or another connector.
        BaseMismatchError: The base has no such tensor, or one of another shape.
    """
    _check_towers(weights)
    factors = [name for name in weights.names() if ".lora_" in name]
    others = [name for name in weights.names() if ".lora_" not in name]
    _check_saved(weights, config, others)
    with CheckpointReader(base.path) as plain:
        text = _read_pairs(weights, config, factors, base, plain, accounting)
        whole: dict[str, torch.Tensor] = {}
        own: dict[str, torch.Tensor] = {}
        for name in others:
            match = _PROJECTOR.search(name)
            if match is not None:
                key = _connector_key(weights, name, match["key"], components)
                own[key] = weights.tensor(name)
                accounting.place(name, CONNECTOR, f"connector {components.manifest.connector.type}")
            else:
                _take_whole(weights, name, plain, base, accounting, whole)
    connector = components.connector
    if own:
        connector = _replace_connector(weights.source, own, components)
    return AdapterContent(text=text, weights=whole, connector=connector)


def _check_towers(weights: Weights) -> None:
    """Refuse an adapter that changes a tower: a parent's encoder is as it was trained.

    Raises:
        DeltaError: It does.
    """
    tower = next((name for name in weights.names() if _TOWER.search(name)), None)
    if tower is not None:
        raise DeltaError(
            f"{weights.source}: {tower!r} changes the encoder, which a delta of the language model "
            "cannot hold; merge the adapter into its model first (PEFT's merge_and_unload) and "
            "convert that",
            tensor=tower,
        )


def _check_saved(weights: Weights, config: Mapping[str, Any], others: Iterable[str]) -> None:
    """Check that every module that was trained whole is there.

    Raises:
        FormatError: One is not.
    """
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        path = weights.source / CONFIG_FILE
        raise FormatError(f"{path}: modules_to_save must be a list of names", path=path)
    held = list(others)
    for module in saved:
        if not any(f"{module}." in name for name in held):  # PEFT matches ends, not whole words
            raise FormatError(
                f"{weights.source}: {CONFIG_FILE} says that {module!r} was trained whole "
                "(modules_to_save), and no tensor of it is there; save the adapter again",
                path=weights.source,
            )


def _read_pairs(
    weights: Weights,
    config: Mapping[str, Any],
    names: Sequence[str],
    base: Base,
    plain: CheckpointReader,
    accounting: Accounting,
) -> LowRankDelta:
    """Read the pairs, by names of the base's modules.

    Scales are worked out, and what is no plain LoRA is refused, by
    :func:`~modalloy.deltas.lowrank.read_adapter`, which is given the pairs alone.
    """
    source = weights.source
    with tempfile.TemporaryDirectory(prefix="modalloy-") as temporary:
        place = Path(temporary)
        alone = {**config, "modules_to_save": None}
        (place / CONFIG_FILE).write_text(json.dumps(alone), encoding="utf-8")
        save_file({name: weights.tensor(name).contiguous() for name in names}, place / WEIGHTS_FILE)
        try:
            delta = read_adapter(place)
        except FormatError as error:
            raise type(error)(_by_source(error, place, source), path=source) from error
        except DeltaError as error:
            raise DeltaError(_by_source(error, place, source), tensor=error.tensor) from error
    by_module = {
        (match["module"], match["factor"]): name for name in names if (match := _LORA.match(name))
    }
    pairs: dict[str, LowRankPair] = {}
    for module, pair in delta.pairs.items():
        target = _target(f"{module}.weight", plain)
        layer = None if target is None else plain.shape(target)
        shape = (pair.B.shape[0], pair.A.shape[1])
        if target is None or layer != shape:
            raise _misfit(source, f"the pair of {module!r}", shape, layer, base)
        for factor in "AB":
            accounting.place(by_module[module, factor], TEXT_DELTA, "of all tokens")
        pairs[target.removesuffix(".weight")] = pair
    return LowRankDelta(pairs)


def _by_source(error: Exception, place: Path, source: Path) -> str:
    return str(error).replace(str(place), str(source))


def _target(name: str, plain: CheckpointReader) -> str | None:
    """Return the base's name of a tensor, or ``None`` where it has none such."""
    for theirs, ours in _LANGUAGE:
        target = ours + name.removeprefix(theirs)
        if name.startswith(theirs) and target in plain:
            return target
    return None


def _misfit(
    source: Path, what: str, shape: tuple[int, ...], found: tuple[int, ...] | None, base: Base
) -> BaseMismatchError:
    return BaseMismatchError(
        f"{source}: {what} is for a tensor {shape}, the base {base.id!r} has "
        f"{found or 'none'} there; take the base that the adapter was tuned from",
        parent=str(source),
        expected=str(shape),
        found=str(found),
    )


def _take_whole(
    weights: Weights,
    name: str,
    plain: CheckpointReader,
    base: Base,
    accounting: Accounting,
    whole: dict[str, torch.Tensor],
) -> None:
    """Take a tensor of the base that was trained whole, unless it is as the base has it."""
    stripped = name.removeprefix(_PREFIX).replace(".modules_to_save.default.", ".")
    target = _target(stripped, plain)
    shape = weights.shape(name)
    if target is None or plain.shape(target) != shape:
        raise _misfit(
            weights.source,
            f"{name!r}",
            shape,
            None if target is None else plain.shape(target),
            base,
        )
    tensor = weights.tensor(name)
    if torch.equal(tensor.float(), plain.tensor(target).float()):
        accounting.skip(name, "as the base has it")
        return
    accounting.place(name, TEXT_DELTA, "whole, of all tokens")
    whole[target] = tensor


def _connector_key(weights: Weights, name: str, key: str, components: Components) -> str:
    """Return our key of a tensor of LLaVA's projector.

    Raises:
        DeltaError: It is of another connector than the components'.
    """
    spec = components.manifest.connector
    ours = f"projection.{_MLP_KEYS.get(key, key)}"
    fits = spec.type == "mlp" and not spec.config.get("norm") and key in _MLP_KEYS
    held = components.connector.get(ours)
    if not fits or held is None or tuple(held.shape) != weights.shape(name):
        raise DeltaError(
            f"{weights.source}: {name!r} {weights.shape(name)} is of a projector that was trained "
            f"beside the pairs, and is no part of the connector of {components.directory} "
            f"({spec.type}); take components with the connector that the adapter was trained with",
            tensor=name,
        )
    return ours


def _replace_connector(
    source: Path, own: Mapping[str, torch.Tensor], components: Components
) -> dict[str, torch.Tensor]:
    """Return the components' connector with the adapter's own projection."""
    held = {key for key in components.connector if key.startswith("projection.")}
    if held != own.keys():
        lacking = sorted(held - own.keys())
        raise FormatError(
            f"{source}: its projector lacks {lacking[0]!r} of the components' connector; save the "
            "adapter again",
            path=source,
        )
    return {**components.connector, **own}
