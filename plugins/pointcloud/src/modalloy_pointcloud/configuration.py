"""What ``parent.json`` may say about a point-cloud encoder, checked without torch."""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import attrs

from modalloy.errors import FormatError, SpecError
from modalloy.structured import structure

MOST = 1 << 16
"""The largest number that a size of an encoder may be."""

C = TypeVar("C")


@attrs.frozen(kw_only=True)
class PointNetConfig:
    """The light encoder that comes with this plugin.

    Attributes:
        tokens: K, tokens of one cloud.
        features: F, features of one token.
        model: Packaged weights, ``weights/pointnet_<model>.safetensors``.
        points: Points that the encoder sees of a cloud.
        colours: Whether it sees their colours as well.
    """

    tokens: int = 4
    features: int = 256
    model: str = "household"
    points: int = 512
    colours: bool = True


@attrs.frozen(kw_only=True)
class PointBertConfig:
    """A Point-BERT-style transformer over groups of neighbouring points.

    Attributes:
        model: A ``.safetensors`` file, a directory that holds ``model.safetensors``, or a Hub id.
        tokens: K, tokens of one cloud: ``groups + 1`` with pool ``"none"``, 1 or 2 else.
        features: F, features of one token: ``width``.
        revision: Branch, tag or commit of the Hub repository.
        points: Points that are seen of a cloud.
        colours: Whether points carry colours (6 numbers a point) or not (3).
        groups: Groups that a cloud is cut into.
        group_size: Points of a group, nearest to its centre.
        patch_width: Width of a group's embedding before it is brought to ``width``.
        width: Hidden size of the transformer.
        depth: Its layers.
        heads: Its attention heads.
        pool: ``"none"`` for all tokens, the class token first; ``"cls"`` for the class token;
            ``"max"`` for the maximum over the groups; ``"cls+max"`` for both, in that order.
    """

    model: str
    tokens: int = 513
    features: int = 384
    revision: str | None = None
    points: int = 8192
    colours: bool = True
    groups: int = 512
    group_size: int = 32
    patch_width: int = 256
    width: int = 384
    depth: int = 12
    heads: int = 6
    pool: Literal["none", "cls", "max", "cls+max"] = "none"


DEFAULT_POINTNET = {
    "model": "household",
    "points": 512,
    "colours": True,
    "tokens": 4,
    "features": 256,
}
"""Configuration of the packaged encoder, as the packaged parents' ``parent.json`` holds it."""


def pointnet_config(config: Mapping[str, Any]) -> PointNetConfig:
    """Check the configuration of encoder ``pointnet``.

    Raises:
        SpecError: A key is unknown or of the wrong type, or a value makes no sense.
    """
    parsed = _parse(config, PointNetConfig, "encoder 'pointnet'")
    _check_positive(
        "encoder 'pointnet'",
        tokens=parsed.tokens,
        features=parsed.features,
        points=parsed.points,
    )
    return parsed


def point_bert_config(config: Mapping[str, Any]) -> PointBertConfig:
    """Check the configuration of encoder ``point-bert``.

    Raises:
        SpecError: A key is missing, unknown or of the wrong type, or values do not agree.
    """
    subject = "encoder 'point-bert'"
    parsed = _parse(config, PointBertConfig, subject)
    sizes = ("tokens", "features", "points", "groups", "group_size", "patch_width")
    _check_positive(subject, **{name: getattr(parsed, name) for name in sizes})
    _check_positive(subject, width=parsed.width, depth=parsed.depth, heads=parsed.heads)
    made = {"none": parsed.groups + 1, "cls": 1, "max": 1, "cls+max": 2}[parsed.pool]
    _check_equal(subject, "tokens", parsed.tokens, made, f"pool {parsed.pool!r} makes")
    _check_equal(subject, "features", parsed.features, parsed.width, "width makes")
    for name in ("groups", "group_size"):
        if getattr(parsed, name) > parsed.points:
            raise SpecError(
                f"{subject}: {name} is {getattr(parsed, name)}, more than the {parsed.points} "
                "points of a cloud; raise points or lower it",
                subject=subject,
            )
    if parsed.width % parsed.heads:
        raise SpecError(
            f"{subject}: width {parsed.width} cannot be cut into {parsed.heads} heads; make it a "
            "multiple of heads",
            subject=subject,
        )
    return parsed


def pointnet_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``pointnet``."""
    parsed = pointnet_config(config)
    return parsed.tokens, parsed.features


def point_bert_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``point-bert``."""
    parsed = point_bert_config(config)
    return parsed.tokens, parsed.features


def _parse(config: Mapping[str, Any], kind: type[C], subject: str) -> C:
    try:
        return structure(dict(config), kind, subject)
    except FormatError as error:
        raise SpecError(str(error), subject=subject) from error


def _check_positive(subject: str, **values: int) -> None:
    bad = {name: value for name, value in values.items() if value <= 0}
    if bad:
        raise SpecError(f"{subject}: must be positive, found {bad}", subject=subject)
    # A damaged or hostile number must not become an allocation.
    huge = {name: value for name, value in values.items() if value > MOST}
    if huge:
        raise SpecError(f"{subject}: must be at most {MOST}, found {huge}", subject=subject)


def _check_equal(subject: str, name: str, found: int, made: int, why: str) -> None:
    if found != made:
        raise SpecError(
            f"{subject}: {name} is {found}, but {why} {made}; set {name} to {made}",
            subject=subject,
        )
