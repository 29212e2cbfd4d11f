"""Names of tensors in ModelCompose checkpoints, and which adapter serves which stream.

Facts from the released code (THUNLP-MT/ModelCompose, commit 7846997): ``multimodal_llama.py`` for
the layers, ``merge_unimodal_modelcompose.py`` for what a merge leaves in a checkpoint.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from modalloy.errors import DeltaError, FormatError
from modalloy.interop.accounting import some_patterns
from modalloy.interop.modelcompose_settings import DECOUPLED, Settings

TEXT = "default"
"""Their name of the text stream's adapter."""

EXPECTED_NAMES = (
    "'model.layers.0.self_attn.q_proj.lora_A.default.weight' and "
    "'model.modal_projectors.vision.0.weight'"
)
LORA = re.compile(
    r"(?P<module>model\.layers\.\d+\.(?:self_attn\.[qkvo]|mlp\.(?:gate|up|down))_proj)"
    r"\.lora_(?P<factor>[AB])\.(?P<adapter>[a-z0-9-]+)\.weight"
)
PROJECTOR = re.compile(r"model\.modal_projectors\.(?P<modality>[a-z0-9]+)\.(?P<key>.+)")
TOKENS = re.compile(r"(?P<end>prefix|suffix)_tokens\.(?P<owner>[a-z0-9-]+)")


@attrs.frozen
class Stream:
    """An adapter, and what its scale is multiplied by."""

    adapter: str
    factor: float = 1.0


@attrs.frozen(kw_only=True)
class Plan:
    """Which adapter serves which stream.

    Attributes:
        text: By modality, what it adds to the text stream.
        own: By modality, what its own tokens run on; empty unless decoupled.
        shared: Whether all of ``text`` are one adapter, which counts once.
    """

    text: Mapping[str, Stream]
    own: Mapping[str, Stream]
    shared: bool


def make_plan(settings: Settings, adapters: Iterable[str]) -> Plan:
    """Say which adapter serves which stream, as the released layers do.

    Args:
        settings: What config.json says.
        adapters: Names of the adapters that there are pairs of.

    Raises:
        DeltaError: The released code would leave an adapter out without a word.
    """
    known = set(settings.modalities)
    held = set(adapters)
    merged = {f"{TEXT}-{name}" for name in known}
    strangers = sorted(held - known - merged - {TEXT})
    if strangers:
        raise DeltaError(
            f"{settings.path.parent} holds an adapter {strangers[0]!r}; config.json names the "
            f"modalities {', '.join(sorted(known))}, so no token would run on it"
        )
    unknown = sorted(settings.reset.keys() - known - merged - {TEXT})
    if unknown:
        raise DeltaError(
            f"{settings.path}: reset_scaling_weights names {unknown[0]!r}, which is no adapter; "
            f"expected {', '.join(sorted(known | merged | {TEXT}))}"
        )
    by_modality = any(f"{TEXT}-" in name for name in settings.reset)
    _check_dropped(settings, held, by_modality=by_modality)
    text = {}
    for name in sorted(known):
        adapter = f"{TEXT}-{name}" if by_modality else TEXT
        if adapter in held:
            text[name] = Stream(adapter, settings.reset.get(adapter, 1.0))
    own = {}
    if settings.strategy in DECOUPLED:
        own = {n: Stream(n, settings.reset.get(n, 1.0)) for n in sorted(known & held)}
    return Plan(text=text, own=own, shared=not by_modality)


def _check_dropped(settings: Settings, held: set[str], *, by_modality: bool) -> None:
    """Refuse adapters that the released layers would drop or never use."""
    merged = sorted(name for name in held if name.startswith(f"{TEXT}-"))
    if merged and not by_modality:
        names = ",".join(f"{name}=1" for name in merged)
        raise DeltaError(
            f"{settings.path.parent} holds the text deltas {', '.join(merged)}, of a merge by "
            "'online-merge-sum' or 'online-merge-mean'. The released layers are never told of "
            "them (merge_default_weights does not reach them, and loading is not strict), so its "
            "text stream runs on the base alone. Merge again with coefficients, "
            f"--strategy online-merge-reset-{names} (1 each for the sum, 1/{len(merged)} for the "
            "mean), or convert the single checkpoints and compose them"
        )
    if by_modality and TEXT in held:
        raise DeltaError(
            f"{settings.path.parent} holds the adapter {TEXT!r}, and its reset_scaling_weights is "
            f"about {TEXT}-MODALITY; the released layers would load the former and never use it. "
            "It is of a checkpoint that alone had a text delta: merge again, or convert the single "
            "checkpoints and compose them"
        )
    unused = sorted(held & settings.modalities.keys())
    if unused and settings.strategy not in DECOUPLED:
        raise DeltaError(
            f"{settings.path.parent} holds adapters of {', '.join(unused)}, and lora_strategy "
            f"{settings.strategy!r} runs every token on {TEXT!r}; the released code would load "
            "them and never use them. Expected lora_strategy 'modal' or 'modal+language'"
        )


def group_adapters(names: Iterable[str]) -> dict[str, dict[str, dict[str, str]]]:
    """Return names of LoRA factors by adapter, module and ``"A"`` or ``"B"``."""
    adapters: dict[str, dict[str, dict[str, str]]] = {}
    for name in names:
        match = LORA.fullmatch(name)
        if match is not None:
            modules = adapters.setdefault(match["adapter"], {})
            modules.setdefault(match["module"], {})[match["factor"]] = name
    return adapters


def check_complete(
    source: Path, adapter: str, modules: Mapping[str, Mapping[str, str]], base: Iterable[str]
) -> None:
    """Check that an adapter has both factors for every projection of every layer.

    Args:
        source: The checkpoint, for messages.
        adapter: Name of the adapter.
        modules: Names of its factors by module.
        base: Names of the base's tensors.

    Raises:
        FormatError: A factor is missing: the checkpoint was cut short.
    """
    shape = re.compile(LORA.pattern.partition(r"\.lora_")[0] + r"\.weight")
    wanted = [name.removesuffix(".weight") for name in base if shape.fullmatch(name)]
    lacking = [name for name in wanted if set(modules.get(name, ())) != {"A", "B"}]
    lacking += [name for name, factors in modules.items() if set(factors) != {"A", "B"}]
    if lacking:
        raise FormatError(
            f"{source}: adapter {adapter!r} lacks a factor of {len(set(lacking))} of "
            f"{len(wanted)} projections of the base, such as {some_patterns(lacking[:1])}; it is "
            "not whole, or is of another base",
            path=source,
        )
