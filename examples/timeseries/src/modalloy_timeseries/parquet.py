"""Reading parquet files, by pyarrow, which is imported when one comes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from modalloy.errors import InputError
from numpy.typing import NDArray

from modalloy_timeseries.checking import TIME_NAMES, check_limit, make_series
from modalloy_timeseries.series import Series

MAGIC = b"PAR1"
"""First bytes of a parquet file."""

_ROWS = 1 << 14  # unpacked at a time


def read_parquet(data: bytes, limits: Mapping[str, int], what: str) -> Series:
    """Read a table of numbers, and perhaps one column of times or dates.

    What the file says of its size is checked before anything is unpacked, and what is unpacked is
    counted as it comes.

    Raises:
        InputError: pyarrow is not installed, the file is damaged, or a column holds no numbers.
        LimitError: There are too many values.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{what}: reading parquet needs pyarrow; pip install 'modalloy-timeseries[parquet]', "
            "or give the series as CSV"
        ) from error
    try:
        with parquet.ParquetFile(pa.BufferReader(data)) as file:
            check_limit("values", file.metadata.num_rows * len(file.schema_arrow), limits, what)
            names = list(map(str, file.schema_arrow.names))
            for field in file.schema_arrow:
                _check_type(pa, field, what)
            parts = list(_unpack(file, limits, what))
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: the parquet file is damaged or cut off ({error})") from error
    if not (parts and names):
        raise InputError(f"{what}: empty, there are no readings in it")
    columns = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    return _series(columns, names, what)


def _unpack(file: Any, limits: Mapping[str, int], what: str) -> Iterator[list[NDArray[np.float64]]]:
    """Yield a file's columns part by part, as long as there are not too many values."""
    unpacked = 0
    for batch in file.iter_batches(batch_size=_ROWS):
        unpacked += batch.num_rows * batch.num_columns
        check_limit("values", unpacked, limits, what)
        yield [_numbers(column) for column in batch.columns]


def _series(columns: list[NDArray[np.float64]], names: list[str], what: str) -> Series:
    timed = next((i for i, name in enumerate(names) if name.lower() in TIME_NAMES), None)
    kept = [index for index in range(len(names)) if index != timed]
    values = np.stack([columns[i] for i in kept], axis=1) if kept else np.empty((0, 0))
    times = None if timed is None else columns[timed]
    return make_series(values, [names[index] for index in kept], times, what)


def _check_type(pa: Any, field: Any, what: str) -> None:
    number = pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    moment = pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)
    if not (number or (moment and field.name.lower() in TIME_NAMES)):
        raise InputError(
            f"{what}: column {field.name!r} is of type {field.type}, expected numbers, or times in "
            f"a column named {', '.join(sorted(TIME_NAMES))}; leave it out"
        )


def _numbers(column: Any) -> NDArray[np.float64]:
    """Return a column as float64, times in seconds, NaN where there is nothing."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        moments = column.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False)
        seconds = moments.astype("datetime64[us]").astype(np.int64) / 1e6
        return np.where(np.isnat(moments), np.nan, seconds)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
