"""What the header of a PLY file says of its data."""

from typing import Any

import attrs
import numpy as np

from modalloy.errors import InputError

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_HEADER = 1 << 16


@attrs.frozen
class Property:
    """One property; ``counter`` is the type of a list's length, ``None`` for a single number."""

    name: str
    kind: np.dtype[Any]
    counter: np.dtype[Any] | None


@attrs.define
class Element:
    """One element: as many rows as ``count``, of these properties."""

    name: str
    count: int
    properties: list[Property] = attrs.Factory(list)


def read_header(data: bytes, what: str) -> tuple[str, list[Element], int]:
    """Read a PLY file's header.

    Args:
        data: The whole file.
        what: The input, for messages.

    Returns:
        The format, the elements in their order, and where the data begin.

    Raises:
        InputError: The header is cut off or damaged.
    """
    end = data.find(b"end_header", 0, _HEADER)
    newline = data.find(b"\n", end)
    if end < 0 or newline < 0:
        raise InputError(f"{what}: the PLY header has no end; the file is damaged or cut off")
    form, elements = "", list[Element]()
    for number, raw in enumerate(data[:end].decode("latin-1").splitlines()):
        words = raw.split() or ["comment"]
        try:
            if words[0] == "format" and words[1] in _ORDERS:
                form = words[1]
            elif words[0] == "element":
                elements.append(Element(words[1], int(words[2])))
            elif words[0] == "property":
                elements[-1].properties.append(_property(words, _ORDERS[form]))
            elif words[0] not in ("ply", "comment", "obj_info"):
                raise ValueError(words[0])  # noqa: TRY301
        except (ValueError, LookupError) as error:
            raise InputError(
                f"{what}: line {number + 1} of the PLY header, {raw[:60]!r}, is not understood"
            ) from error
    _check_header(form, elements, what)
    return form, elements, newline + 1


def _check_header(form: str, elements: list[Element], what: str) -> None:
    problem = ""
    for element in elements:
        names = [prop.name for prop in element.properties]
        if element.count < 0 or (element.count and not names):
            problem = f"gives element {element.name!r} no properties or a negative count"
        elif len(set(names)) < len(names):
            problem = f"gives element {element.name!r} a property twice"
    if len({element.name for element in elements}) < len(elements):
        problem = "names an element twice"
    if not form:
        problem = "states no format"
    if problem:
        raise InputError(f"{what}: the PLY header {problem}; the file is damaged")


def _property(words: list[str], order: str) -> Property:
    if words[1] == "list":
        counter = np.dtype(order + _TYPES[words[2]])
        if counter.kind == "f":
            raise ValueError(words[2])
        return Property(words[4], np.dtype(order + _TYPES[words[3]]), counter)
    return Property(words[2], np.dtype(order + _TYPES[words[1]]), None)
