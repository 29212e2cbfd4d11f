"""From parsed JSON or YAML to declared values, strictly, with errors that name the key."""

import re
import reprlib
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.cols import list_structure_factory
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from modalloy.errors import FormatError, nearest

T = TypeVar("T")

_UNIONS: tuple[Any, ...] = (Union, UnionType)


def structure(data: object, kind: type[T], path: Path | str) -> T:
    """Build ``kind`` from parsed data; unknown keys and wrong types are errors.

    Args:
        data: What a JSON or YAML parser returned.
        kind: An attrs class.
        path: The file it came from, for messages.

    Returns:
        The value.

    Raises:
        FormatError: A key is missing, unknown, or of the wrong type; all are listed.
    """
    if not isinstance(data, dict):
        raise FormatError(
            f"{path}: expected a mapping of keys, found {type(data).__name__}", path=path
        )
    try:
        return _CONVERTER.structure(data, kind)
    except (ClassValidationError, IterableValidationError) as error:
        problems = "; ".join(_explain(error, ""))
        # Without the cause, a tree of exceptions that says the same.
        raise FormatError(f"{path}: {problems}", path=path) from None


_EXPONENT = " (YAML takes an exponent without a point before it for text: write 2.0e-3)"


def _is_exponent(value: object) -> bool:
    return (
        isinstance(value, str)
        and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.IGNORECASE) is not None
    )


def _strict(kind: type) -> Any:
    """Return a cattrs hook that accepts ``kind`` and nothing that merely converts to it."""

    def hook(value: object, _: object) -> object:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            hint = _EXPONENT if kind is float and _is_exponent(value) else ""
            raise ValueError(f"must be {kind.__name__}, found {reprlib.repr(value)}{hint}")
        return value

    return hook


def _optional(value: object, kind: Any) -> object:
    """Structure ``X | None`` and ``X | Y`` of primitives, which cattrs would guess at."""
    members = [member for member in get_args(kind) if member is not type(None)]
    if value is None and len(members) < len(get_args(kind)):
        return None
    if len(members) == 1:
        return _CONVERTER.structure(value, members[0])
    for member in members:
        origin = get_origin(member) or member
        if isinstance(value, origin):
            return _CONVERTER.structure(value, member)
    names = " or ".join(getattr(member, "__name__", str(member)) for member in members)
    raise ValueError(f"must be {names}, found {reprlib.repr(value)}")


def _make_list_hook(kind: Any, converter: Converter) -> Any:
    """Return a cattrs hook for ``list[X]`` that does not take a string for a list of letters."""
    inner = list_structure_factory(kind, converter)

    def hook(value: object, _: object) -> object:
        if type(value) is not list:
            raise ValueError(f"must be list, found {reprlib.repr(value)}")
        return inner(value, kind)

    return hook


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _make_converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    for kind in (str, int, float, bool):
        converter.register_structure_hook(kind, _strict(kind))
    converter.register_structure_hook(Path, lambda value, _: Path(_strict(str)(value, None)))
    converter.register_structure_hook_func(lambda kind: _origin(kind) in _UNIONS, _optional)
    factory: Any = converter.register_structure_hook_factory  # its types know no Any
    factory(lambda kind: _origin(kind) is list, _make_list_hook)
    return converter


def _meant(key: str, known: list[str]) -> str:
    found = nearest(key, known)
    return f".{found}" if found else ""


def _explain(error: BaseException, where: str) -> list[str]:
    """Return one sentence per problem, each starting with the key concerned."""
    if isinstance(error, ForbiddenExtraKeysError):
        known = [a.alias for a in attrs.fields(error.cl)]
        return [
            f"{_join(where, str(key))} is not a known key (known: {', '.join(sorted(known))})"
            f"{_meant(str(key), known)}"
            for key in sorted(error.extra_fields, key=str)
        ]
    if isinstance(error, KeyError):
        return [f"{where or error.args[0]} is missing"]
    if not isinstance(error, ExceptionGroup):
        return [f"{where or 'value'} {error}"]
    problems = []
    for child in error.exceptions:
        notes = getattr(child, "__notes__", [])
        name = next((str(n.name) for n in notes if hasattr(n, "name")), None)
        index = next((str(n.index) for n in notes if hasattr(n, "index")), None)
        problems += _explain(child, _join(where, name or index or ""))
    return problems


def _join(where: str, name: str) -> str:
    return ".".join(part for part in (where, name) if part)


_CONVERTER = _make_converter()
