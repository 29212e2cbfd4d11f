"""What a plugin declares: modalities, encoders, connectors and merge methods.

All values are frozen and validated when made. They are cheap: nothing here imports torch, and
what does is named by a *target*, ``"package.module:attribute"``, that is imported when first
used. Targets come from plugin code only, never from a file, recipe or configuration.
"""

import importlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from modalloy.errors import SpecError

API_VERSION = 1
"""Version of the contract between host and plugins; raised when a hook or a spec changes."""

TEXT_TYPE_ID = 0
"""Value of ``mm_token_type_ids`` for text tokens."""

RESERVED_TYPE_IDS = MappingProxyType({"image": 1, "video": 2, "audio": 3, "point_cloud": 4})
"""Values of ``mm_token_type_ids`` by content type: 1 to 3 are transformers', 4 is ours."""

MERGED = "merged"
"""Name of the text group that a merge method makes; no modality may have it."""

Target = str | Callable[..., Any]
"""A callable, or ``"package.module:attribute"`` naming one that is imported when first used."""

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_.][a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def resolve(target: Target) -> Callable[..., Any]:
    """Return the callable that ``target`` is or names.

    Raises:
        SpecError: The module cannot be imported, whatever it raises, or has no such attribute.
    """
    if not isinstance(target, str):
        return target
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        plain = isinstance(error, ImportError | AttributeError)
        why = str(error) if plain else f"{type(error).__name__}: {error}"
        raise SpecError(f"target {target!r} cannot be loaded: {why}", subject=target) from error


def is_name(value: object) -> bool:
    """Whether something is lower-case words joined by ``-``, ``_`` or ``.``."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def check_name(instance: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    """Attrs validator: lower-case words joined by ``-``, ``_`` or ``.``.

    Raises:
        SpecError: It is something else.
    """
    if not is_name(value):
        raise SpecError(
            f"{type(instance).__name__}.{attribute.name} must be lower-case words joined by "
            f"'-', '_' or '.', such as 'vision' or 'point_cloud'; got {value!r}",
            subject=f"{type(instance).__name__} {value!r}",
        )


def _check_not_reserved(instance: object, _: "attrs.Attribute[str]", value: str) -> None:
    if value == MERGED:
        raise SpecError(
            f"{type(instance).__name__}.name {MERGED!r} is taken: it stands for the merged text "
            "delta wherever coefficients are named; choose another name",
            subject=f"{type(instance).__name__} {value!r}",
        )


def check_api_version(instance: Any, _: "attrs.Attribute[int]", value: int) -> None:
    """Attrs validator: the plugin speaks this host's contract.

    Raises:
        SpecError: It speaks another version.
    """
    if value != API_VERSION:
        subject = f"{type(instance).__name__} {instance.name!r}"
        older = isinstance(value, int) and value < API_VERSION
        raise SpecError(
            f"{subject} is written for plugin API {value!r}, this modalloy speaks API "
            f"{API_VERSION}; upgrade {'the plugin' if older else 'modalloy'}",
            subject=subject,
        )


def check_target(instance: Any, attribute: "attrs.Attribute[Any]", value: Target) -> None:
    """Attrs validator: a callable or a well-formed target.

    Raises:
        SpecError: It is neither.
    """
    if callable(value) or (isinstance(value, str) and _TARGET.fullmatch(value)):
        return
    raise SpecError(
        f"{type(instance).__name__} {instance.name!r}: {attribute.name} must be a callable or "
        f"'package.module:attribute'; got {value!r}",
        subject=f"{type(instance).__name__} {instance.name!r}",
    )


def _check_not_text(instance: Any, _: "attrs.Attribute[str]", value: str) -> None:
    if value == "text":
        raise SpecError(
            f"Modality {instance.name!r}: content type 'text' is every model's own; choose another",
            subject=f"Modality {instance.name!r}",
        )


def _check_placeholder(instance: Any, _: "attrs.Attribute[str]", value: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"<\|?[\w-]+\|?>", value):
        raise SpecError(
            f"Modality {instance.name!r}: placeholder must look like '<|image|>'; got {value!r}",
            subject=f"Modality {instance.name!r}",
        )


def _check_limits(instance: Any, _: "attrs.Attribute[Any]", value: Mapping[str, int]) -> None:
    bad = {k: v for k, v in value.items() if type(v) is not int or v <= 0}
    if bad or "bytes" not in value:
        raise SpecError(
            f"Modality {instance.name!r}: limits must hold 'bytes' and be positive integers; "
            f"got {dict(value)!r}",
            subject=f"Modality {instance.name!r}",
        )


def _check_options(instance: Any, _: "attrs.Attribute[Any]", value: Mapping[str, Any]) -> None:
    bad = {k: v for k, v in value.items() if type(v) not in (int, float) or not math.isfinite(v)}
    if bad or (value and instance.merge is None):
        raise SpecError(
            f"MergeMethod {instance.name!r}: options must be finite numbers by name, the defaults "
            f"of its merge function; got {dict(value)!r}"
            f"{' and no merge function' if instance.merge is None else ''}",
            subject=f"MergeMethod {instance.name!r}",
        )


def _freeze(value: Mapping[str, int]) -> Mapping[str, int]:
    return MappingProxyType(dict(value))


def _freeze_options(value: Mapping[str, float]) -> Mapping[str, float]:
    return MappingProxyType(dict(value))


def _strings(value: Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@attrs.frozen(kw_only=True)
class Modality:
    """A kind of input: how raw media of that kind is recognised, bounded and decoded.

    Attributes:
        name: Unique name, such as ``"vision"``.
        api_version: :data:`API_VERSION` that the plugin was written for.
        content_type: ``type`` of the content parts that it reads, such as ``"image"``.
        placeholder: Special token that stands for one embedding of an input in the prompt.
        read: Target ``(source: bytes | Path | Any, limits: Mapping[str, int]) -> decoded``.
            ``source`` is the bytes of a file, a path, or an object of the caller's (an array,
            a PIL image); ``decoded`` is whatever the modality's encoders take. Raises
            :class:`~modalloy.errors.InputError` on what it cannot read and
            :class:`~modalloy.errors.LimitError` on what is too large.
        limits: The largest input accepted; ``"bytes"`` is required, further keys are the
            modality's own (``"pixels"``, ``"seconds"``, ``"points"``).
        payload_keys: Keys of a content part that may hold the input itself, beside ``path``
            and ``base64``; defaults to the content type, as in ``{"type": "image", "image": x}``.
        token_type_id: Value in ``mm_token_type_ids``; ``None`` has one assigned per composition.
    """

    name: str = attrs.field(validator=[check_name, _check_not_reserved])
    api_version: int = attrs.field(validator=check_api_version)
    content_type: str = attrs.field(validator=[check_name, _check_not_text])
    placeholder: str = attrs.field(validator=_check_placeholder)
    read: Target = attrs.field(validator=check_target)
    limits: Mapping[str, int] = attrs.field(converter=_freeze, validator=_check_limits)
    payload_keys: tuple[str, ...] = attrs.field(
        default=attrs.Factory(lambda self: (self.content_type,), takes_self=True),
        converter=_strings,
    )
    token_type_id: int | None = attrs.field(
        default=attrs.Factory(
            lambda self: RESERVED_TYPE_IDS.get(self.content_type), takes_self=True
        )
    )

    @token_type_id.validator
    def _check_token_type_id(self, _: "attrs.Attribute[Any]", value: int | None) -> None:
        owner = {v: k for k, v in RESERVED_TYPE_IDS.items()}.get(value or 0)
        if value is not None and (value <= TEXT_TYPE_ID or owner not in (None, self.content_type)):
            raise SpecError(
                f"Modality {self.name!r}: token_type_id {value} is taken (0 text, 1 image, "
                "2 video, 3 audio, 4 point_cloud); leave it out to have one assigned",
                subject=f"Modality {self.name!r}",
            )


@attrs.frozen(kw_only=True)
class Encoder:
    """A kind of encoder: turns decoded inputs of one modality into features.

    The configuration is plain JSON data, stored in ``parent.json``. Everything about shapes
    follows from it alone, so that a prompt can be laid out before any weight is loaded.

    Attributes:
        name: Unique name that ``parent.json`` refers to, such as ``"timm"``.
        api_version: :data:`API_VERSION` that the plugin was written for.
        modality: Name of the modality whose decoded inputs it takes.
        build: Target ``(config: Mapping) -> torch.nn.Module``, weights included where they come
            from a library, a package or the Hub. The module maps the tensors of ``preprocess``,
            stacked over N items, to features ``(N, K, F)``.
        preprocess: Target ``(decoded, config: Mapping) -> dict[str, torch.Tensor]``: one item's
            tensors, without the batch axis, of shapes that depend on ``config`` alone.
        output_shape: Target ``(config: Mapping) -> (K, F)``: tokens per item and features per
            token. Must not import torch.
    """

    name: str = attrs.field(validator=check_name)
    api_version: int = attrs.field(validator=check_api_version)
    modality: str = attrs.field(validator=check_name)
    build: Target = attrs.field(validator=check_target)
    preprocess: Target = attrs.field(validator=check_target)
    output_shape: Target = attrs.field(validator=check_target)


@attrs.frozen(kw_only=True)
class Connector:
    """A kind of connector: turns an encoder's features into embeddings of the base.

    Attributes:
        name: Unique name that ``parent.json`` refers to, such as ``"mlp"``.
        api_version: :data:`API_VERSION` that the plugin was written for.
        build: Target ``(config: Mapping, features: int, hidden: int) -> torch.nn.Module``
            mapping ``(N, K, F)`` to ``(N, K', D)``.
        output_tokens: Target ``(config: Mapping, tokens: int) -> int``, K' from K; ``None``
            where the connector keeps the number of tokens. Must not import torch.
    """

    name: str = attrs.field(validator=check_name)
    api_version: int = attrs.field(validator=check_api_version)
    build: Target = attrs.field(validator=check_target)
    output_tokens: Target | None = attrs.field(
        default=None, validator=attrs.validators.optional(check_target)
    )


@attrs.frozen(kw_only=True)
class MergeMethod:
    """How parents' deltas become the streams of a composition.

    Each parent's text delta is a *group* of the text stream, with a coefficient of its own. A
    method with a ``merge`` function makes one more group, :data:`MERGED`: beside those of the
    parents if ``decoupled``, in their place if not.

    Attributes:
        name: Unique name, such as ``"damc"``.
        api_version: :data:`API_VERSION` that the plugin was written for.
        summary: One line for listings.
        strategies: Strategies of parents that it takes, the preferred one first.
        decoupled: Whether a modality's tokens run on their own parent's modality delta. If not,
            every token runs on the merged text delta.
        rules: Names of the coefficient rules that make sense with it, the default first.
        merge: Target ``(text: Mapping[str, LowRankDelta], own: Mapping[str, LowRankDelta],
            **options) -> Merged`` (:mod:`modalloy.merging.merged`), or ``None`` where
            coefficients alone do the merging. Both mappings are by name of the modality, sorted;
            ``own`` is empty unless decoupled.
        options: Default of each option that ``merge`` takes; an integer takes only integers.
    """

    name: str = attrs.field(validator=check_name)
    api_version: int = attrs.field(validator=check_api_version)
    summary: str
    strategies: tuple[str, ...] = attrs.field(converter=_strings)
    decoupled: bool
    rules: tuple[str, ...] = attrs.field(converter=_strings)
    merge: Target | None = attrs.field(
        default=None, validator=attrs.validators.optional(check_target)
    )
    options: Mapping[str, float] = attrs.field(
        factory=dict, converter=_freeze_options, validator=_check_options
    )
