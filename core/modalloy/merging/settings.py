"""A recipe's settings for one tensor: by model, by layer, by the tensor's name."""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from modalloy.errors import SpecError, nearest
from modalloy.tensor_method import Parameter, TensorMethod

_GREATEST = 3.4028234663852886e38
"""Of float32, which all arithmetic is done in."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,9})\.")


def layer_of(tensor: str) -> int | None:
    """Return the number of the decoder layer that a tensor belongs to; ``None`` if to none."""
    found = _LAYER.search(tensor)
    return int(found[1]) if found else None


def depth_of(tensor: str, layers: int) -> float:
    """Return where gradients stand for a tensor: 0 in the first layer and outside, 1 in the last.

    Args:
        tensor: Its name.
        layers: Number of decoder layers.
    """
    layer = layer_of(tensor)
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0


def check_settings(method: TensorMethod, settings: Mapping[str, Any], where: str) -> None:
    """Check the settings of a recipe or of one of its models.

    Args:
        method: The recipe's.
        settings: By name.
        where: What they belong to, for messages.

    Raises:
        SpecError: One is unknown to the method, or is no value, gradient or list of filters.
    """
    for name, setting in settings.items():
        if name not in method.parameters:
            known = sorted(method.parameters)
            raise SpecError(
                f"{where}: merge method {method.name!r} has no parameter {name!r}; it takes "
                f"{', '.join(known) or 'none'}.{nearest(str(name), known)}",
                subject=method.name,
            )
        _check(method.parameters[name], setting, f"{where}: parameter {name!r}")


def find_setting(
    parameter: Parameter, scopes: Sequence[Mapping[str, Any]], tensor: str, depth: float
) -> float | bool | None:
    """Return a parameter's value for a tensor.

    Args:
        parameter: Of the method.
        scopes: Settings, those that go before others first.
        tensor: The tensor's name.
        depth: From :func:`depth_of`.

    Returns:
        The value; ``None`` where it has no default and no scope says one for this tensor.
    """
    for settings in scopes:
        if parameter.name in settings:
            value = _value(settings[parameter.name], tensor, depth)
            if value is not None:
                return value
    return parameter.default


def _value(setting: Any, tensor: str, depth: float) -> Any:
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return setting if isinstance(setting, bool) else _number(setting)
    if all(isinstance(one, Mapping) for one in setting):
        for one in setting:
            pattern = one.get("filter")
            if pattern in (None, "*") or pattern in tensor:
                return _value(one["value"], tensor, depth)
        return None
    place = depth * (len(setting) - 1)
    if isinstance(setting[0], bool):
        return setting[int(place)]
    left = int(place)
    right = min(left + 1, len(setting) - 1)
    share = place - left
    return (1 - share) * _number(setting[left]) + share * _number(setting[right])


def _number(value: float | str) -> float:
    """Return a number; YAML takes ``1e-3``, without a point, for text. What is none is NaN."""
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _check(parameter: Parameter, setting: Any, where: str) -> None:
    """Check a setting as it stands in a recipe."""
    if isinstance(setting, Mapping):
        unknown = sorted(map(str, setting.keys() - {"filter", "value"}))
        if unknown or "value" not in setting:
            hint = nearest(unknown[0], ("filter", "value")) if unknown else ""
            raise SpecError(
                f"{where}: a filter has the keys 'filter' and 'value', found "
                f"{', '.join(map(str, setting))}.{hint}"
            )
        if not isinstance(setting.get("filter"), str | None):
            raise SpecError(f"{where}: 'filter' must be part of a tensor's name")
        if isinstance(setting["value"], Mapping) or _filters(setting["value"]):
            raise SpecError(f"{where}: a filter within a filter means nothing")
        _check(parameter, setting["value"], where)
    elif isinstance(setting, list):
        if not setting:
            raise SpecError(f"{where}: a gradient needs a value at least, found an empty list")
        if len({isinstance(one, Mapping) for one in setting}) > 1:
            raise SpecError(f"{where}: filters and plain values stand in one list; use one kind")
        for one in setting:
            if isinstance(one, list):
                raise SpecError(f"{where}: a list within a list means nothing")
            _check(parameter, one, where)
    else:
        _check_scalar(parameter, setting, where)


def _filters(setting: Any) -> bool:
    return isinstance(setting, list) and any(isinstance(one, Mapping) for one in setting)


def _check_scalar(parameter: Parameter, value: Any, where: str) -> None:
    if isinstance(parameter.default, bool):
        if not isinstance(value, bool):
            raise SpecError(f"{where} must be true or false, found {value!r}")
        if parameter.fixed and value != parameter.default:
            raise SpecError(f"{where} can only be {parameter.default}, which is what is done")
        return
    if type(value) not in (int, float, str) or not abs(_number(value)) <= _GREATEST:
        raise SpecError(f"{where} must be a finite number, found {reprlib.repr(value)}")
    value = _number(value)
    if not parameter.low <= value <= parameter.high:
        raise SpecError(
            f"{where} must be from {parameter.low:g} to {parameter.high:g}, found {value!r}"
        )
