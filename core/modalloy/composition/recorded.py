"""Reading ``modalloy.json`` of a composition: what it has to hold, whoever wrote it."""

from pathlib import Path
from typing import Any

import attrs

from modalloy.checkpoints.safe_files import check_file, read_object
from modalloy.composition.coefficients import Coefficients
from modalloy.composition.record import FORMAT_VERSION
from modalloy.errors import FormatError, SpecError
from modalloy.parent import BaseReference
from modalloy.structured import structure

PROVENANCE_FILE = "modalloy.json"
_KEYS = frozenset({"modalloy", "base", "method", "coefficients", "parents", "accounting"})


def _check_merge(_: object, attribute: "attrs.Attribute[Any]", value: dict[str, Any]) -> None:
    for name, one in value.items():
        numbers = one.values() if isinstance(one, dict) else ()
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(
                f"of {attribute.name!r} must hold numbers under {name!r}, found {one!r}"
            )


@attrs.frozen(kw_only=True)
class _Coefficients:
    rule: str
    default: dict[str, Any]
    table: dict[str, dict[str, Any]]


@attrs.frozen(kw_only=True)
class _Plugin:
    distribution: str | None
    version: str | None
    sha256: str | None = None


@attrs.frozen(kw_only=True)
class RecordedParent:
    """A parent as a composition remembers it; the attributes are those of its manifest."""

    name: str
    source: str
    modality: str
    strategy: str
    licence: str
    plugin: _Plugin
    requires: str | None
    base: BaseReference
    files: dict[str, str]
    training: dict[str, Any]
    scores: dict[str, Any]


@attrs.frozen(kw_only=True)
class _Fate:
    source: str
    part: str
    tensors: int | None
    fate: str


@attrs.frozen(kw_only=True)
class Recorded:
    """The content of ``modalloy.json``, see :func:`modalloy.composition.record.provenance`."""

    format_version: int
    modalloy: str
    base: BaseReference
    method: str
    method_options: dict[str, float] = attrs.Factory(dict)
    merge: dict[str, Any] = attrs.field(factory=dict, validator=_check_merge)
    coefficients: _Coefficients
    parents: list[RecordedParent]
    accounting: list[_Fate]
    search: dict[str, Any] | None = None


def read_provenance(directory: Path) -> dict[str, Any]:
    """Return the content of ``modalloy.json``.

    Raises:
        FormatError: It is missing, no JSON, of another format version, or does not hold what it
            has to.
        UnsafePathError: It is a link that leads outside.
    """
    path = directory / PROVENANCE_FILE
    check_file(directory, PROVENANCE_FILE)
    try:
        data = read_object(path)
    except (OSError, FormatError) as error:
        unread = isinstance(error, OSError) or error.__cause__ is not None
        problem = "cannot be read as JSON" if unread else "does not describe a composition"
        raise FormatError(f"{path} {problem}: {error}", path=path) from error
    if data.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"{path}: format_version must be {FORMAT_VERSION}, found "
            f"{data.get('format_version')!r}; upgrade modalloy or compose anew",
            path=path,
        )
    lacking = sorted(_KEYS - data.keys())
    if lacking:
        raise FormatError(
            f"{path} does not describe a composition: it lacks {', '.join(lacking)}", path=path
        )
    structured(data, path)
    return data


def _known(data: Any, kind: type[attrs.AttrsInstance]) -> Any:
    names = {field.name for field in attrs.fields(kind)}
    return {k: v for k, v in data.items() if k in names} if isinstance(data, dict) else data


def structured(data: dict[str, Any], path: Path) -> Recorded:
    """Return the content of ``modalloy.json`` as values.

    Further keys of the whole and of a parent are left alone: a later modalloy may say more.

    Raises:
        FormatError: It does not hold what it has to.
    """
    data = _known(data, Recorded)
    if isinstance(data.get("parents"), list):
        data["parents"] = [_known(one, RecordedParent) for one in data["parents"]]
    recorded = structure(data, Recorded, path)
    try:
        Coefficients.from_dict(data["coefficients"])
    except SpecError as error:
        raise FormatError(f"{path}: {error}", path=path) from error
    return recorded
