"""PLY files, ASCII and binary: vertices, faces and their colours; nothing else is looked at."""

import io
import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import attrs
import numpy as np
from numpy.typing import NDArray

from modalloy.errors import InputError
from modalloy_pointcloud.arrays import read_rows
from modalloy_pointcloud.checks import check_limit
from modalloy_pointcloud.ply_header import Element, Property, read_header
from modalloy_pointcloud.surface import Mesh, triangulate

_CORNERS = ("vertex_indices", "vertex_index")
_COLOURS = (
    ("red", "green", "blue"),
    ("r", "g", "b"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
)


@attrs.frozen(eq=False)
class _Table:
    """An element's content: single numbers by name, lists by name as (values, lengths)."""

    columns: dict[str, NDArray[Any]]
    lists: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]


def read_ply(data: bytes, limits: Mapping[str, int], what: str) -> Mesh:
    """Read a PLY file; the header's counts are checked before anything behind it is read.

    Args:
        data: The whole file.
        limits: ``"points"`` bounds the vertices, ``"faces"`` the faces and triangles.
        what: The input, for messages.

    Raises:
        InputError: The file is damaged, cut off, or has no coordinates.
        LimitError: There are too many vertices or faces.
    """
    form, elements, start = read_header(data, what)
    for element in elements:
        check_limit("faces" if element.name == "face" else "points", element.count, limits, what)
    wanted = [n for n, element in enumerate(elements) if element.name in ("vertex", "face")]
    lines = _lines(data, start) if form == "ascii" else iter(())
    tables: dict[str, _Table] = {}
    for element in elements[: max(wanted, default=-1) + 1]:
        if form == "ascii":
            tables[element.name] = _read_ascii(element, lines, what)
        else:
            tables[element.name], start = _read_binary(element, data, start, what)
    return _mesh(tables, limits, what)


def _lines(data: bytes, start: int) -> Iterator[bytes]:
    stream = io.BytesIO(data)
    stream.seek(start)
    return (line for raw in stream if (line := raw.strip()))


def _read_ascii(element: Element, lines: Iterator[bytes], what: str) -> _Table:
    rows = list(itertools.islice(lines, element.count))
    if len(rows) < element.count:
        raise _cut_off(element, what)
    properties = element.properties
    if not rows or all(prop.counter is None for prop in properties):
        values = read_rows(rows, what) if rows else np.zeros((0, len(properties)))
        if values.shape[1] != len(properties):
            raise _bad_row(element, 0, what)
        columns = {p.name: _cast(values[:, n], p, what) for n, p in enumerate(properties)}
        return _Table(columns, {})
    return _walk(element, (iter(row.split()) for row in rows), what)


def _walk(element: Element, rows: Iterator[Iterator[bytes]], what: str) -> _Table:
    """Read rows of text that hold lists."""
    singles: dict[str, list[float]] = {p.name: [] for p in element.properties if not p.counter}
    values: dict[str, list[int]] = {p.name: [] for p in element.properties if p.counter}
    lengths: dict[str, list[int]] = {name: [] for name in values}
    for number, row in enumerate(rows):
        try:
            for prop in element.properties:
                if prop.counter is None:
                    singles[prop.name].append(float(next(row)))
                    continue
                length = int(next(row))
                items = list(itertools.islice(row, length))
                if len(items) != length:
                    raise ValueError(length)  # noqa: TRY301
                # Lists of fractions, such as texture coordinates, are stepped over.
                values[prop.name] += map(int, items) if prop.kind.kind != "f" else [0] * length
                lengths[prop.name].append(length)
        except (ValueError, StopIteration) as error:
            raise _bad_row(element, number, what) from error
    known = {p.name: p for p in element.properties}
    return _Table(
        {name: _cast(np.array(column), known[name], what) for name, column in singles.items()},
        {
            name: (_int64(items, what), _int64(lengths[name], what))
            for name, items in values.items()
        },
    )


def _cast(values: NDArray[np.float64], prop: Property, what: str) -> NDArray[Any]:
    """Bring numbers read as text to their declared type."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are reported later
        cast_ = values.astype(prop.kind)
    if prop.kind.kind != "f" and not (cast_ == values).all():
        raise InputError(
            f"{what}: PLY property {prop.name!r} is declared as {prop.kind}, and its values reach "
            f"from {values.min():g} to {values.max():g}; the file is damaged"
        )
    return cast_


def _int64(items: list[int], what: str) -> NDArray[np.int64]:
    try:
        return np.array(items, dtype=np.int64)
    except OverflowError as error:
        raise InputError(f"{what}: a face names a vertex beyond 64 bits ({error})") from error


def _read_binary(element: Element, data: bytes, start: int, what: str) -> tuple[_Table, int]:
    """Return an element's content and where the next one begins."""
    if not element.count:
        return _Table({p.name: np.zeros(0) for p in element.properties if not p.counter}, {}), start
    first = _row_type(element, data, start, what)
    end = start + first.itemsize * element.count
    lists = [prop for prop in element.properties if prop.counter is not None]
    if end <= len(data):
        rows = np.frombuffer(data, first, element.count, start)
        counters = [rows[f"{prop.name} length"] for prop in lists]
        if all((counter == counter[0]).all() for counter in counters):
            lengths = {p.name: counter for p, counter in zip(lists, counters, strict=True)}
            values = {prop.name: rows[prop.name].reshape(-1) for prop in element.properties}
            return _table(element, values, lengths), end
    elif not lists:
        raise _cut_off(element, what)
    return _walk_binary(element, data, start, what)


def _walk_binary(element: Element, data: bytes, start: int, what: str) -> tuple[_Table, int]:
    """Read rows whose lists differ in length: find each value's place, then take all at once."""
    places: dict[str, list[int]] = {prop.name: [] for prop in element.properties}
    lengths: dict[str, list[int]] = {prop.name: [] for prop in element.properties}
    position = start
    for _ in range(element.count):
        for prop in element.properties:
            length = 1
            if prop.counter is not None:
                length = _length(prop.counter, data, position)
                position += prop.counter.itemsize
            places[prop.name].append(position)
            lengths[prop.name].append(length)
            position += length * prop.kind.itemsize
            if length < 0 or position > len(data):
                raise _cut_off(element, what)
    counts = {name: np.array(each) for name, each in lengths.items()}
    values = {
        p.name: _take(p.kind, data, places[p.name], counts[p.name]) for p in element.properties
    }
    return _table(element, values, counts), position


def _length(counter: np.dtype[Any], data: bytes, position: int) -> int:
    order = {"<": "little", ">": "big"}.get(counter.byteorder, sys.byteorder)
    raw = data[position : position + counter.itemsize]
    return int.from_bytes(raw, cast("Literal['little', 'big']", order), signed=counter.kind == "i")


def _take(
    kind: np.dtype[Any], data: bytes, places: list[int], lengths: NDArray[np.int64]
) -> NDArray[Any]:
    """Return the values of all lists, of which each begins at its place in ``data``."""
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    starts = np.repeat(np.array(places), lengths) + within * kind.itemsize
    raw = np.frombuffer(data, np.uint8)[starts[:, None] + np.arange(kind.itemsize)]
    return raw.reshape(-1).view(kind)


def _row_type(element: Element, data: bytes, start: int, what: str) -> np.dtype[Any]:
    """Return the layout of the row that begins at ``start``, which depends on its lists."""
    fields: list[Any] = []
    position = start
    for prop in element.properties:
        length = 1
        if prop.counter is not None:
            if position + prop.counter.itemsize > len(data):
                raise _cut_off(element, what)
            length = int(np.frombuffer(data, prop.counter, 1, position)[0])
            fields.append((f"{prop.name} length", prop.counter))
            position += prop.counter.itemsize
        position += length * prop.kind.itemsize
        if length < 0 or position > len(data):
            raise _cut_off(element, what)
        fields.append((prop.name, prop.kind, (length,)))
    return np.dtype(fields)


def _table(
    element: Element, values: Mapping[str, NDArray[Any]], lengths: Mapping[str, NDArray[Any]]
) -> _Table:
    columns, lists = {}, {}
    for prop in element.properties:
        if prop.counter is None:
            columns[prop.name] = values[prop.name]
        elif prop.kind.kind != "f":
            lists[prop.name] = (
                values[prop.name].astype(np.int64),
                lengths[prop.name].astype(np.int64),
            )
    return _Table(columns, lists)


def _mesh(tables: Mapping[str, _Table], limits: Mapping[str, int], what: str) -> Mesh:
    vertex, face = tables.get("vertex"), tables.get("face")
    if vertex is None or not {"x", "y", "z"} <= set(vertex.columns):
        found = "no element 'vertex'" if vertex is None else f"only {sorted(vertex.columns)}"
        raise InputError(f"{what}: a PLY file needs vertices with x, y and z; found {found}")
    vertices = np.stack([vertex.columns[axis] for axis in "xyz"], axis=1)
    name = next((name for name in _CORNERS if face and name in face.lists), None)
    if face is None or name is None:
        return Mesh(vertices, np.zeros((0, 3), dtype=np.int64), _rgb(vertex))
    faces, polygon = triangulate(*face.lists[name], limits, what)
    face_rgb = _rgb(face)
    return Mesh(vertices, faces, _rgb(vertex), None if face_rgb is None else face_rgb[polygon])


def _rgb(table: _Table) -> NDArray[Any] | None:
    """Return colours, integers as fractions of their type's largest value."""
    for names in _COLOURS:
        if set(names) <= set(table.columns):
            rgb = np.stack([table.columns[name] for name in names], axis=1)
            return rgb if rgb.dtype.kind == "f" else rgb / np.iinfo(rgb.dtype).max
    return None


def _cut_off(element: Element, what: str) -> InputError:
    return InputError(
        f"{what}: the PLY header promises {element.count:,} of {element.name!r}, the data end "
        "before; the file is damaged or cut off"
    )


def _bad_row(element: Element, number: int, what: str) -> InputError:
    return InputError(
        f"{what}: row {number} of PLY element {element.name!r} does not hold its properties "
        f"{', '.join(prop.name for prop in element.properties)}; the file is damaged"
    )
