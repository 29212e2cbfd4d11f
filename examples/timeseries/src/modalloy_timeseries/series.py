"""A sensor series: columns of numbers over time, with gaps."""

import attrs
import numpy as np
from numpy.typing import NDArray


@attrs.frozen(eq=False)
class Series:
    """Readings of one or more sensors.

    Attributes:
        values: ``(n, C)`` float64, one column a sensor; NaN where a reading is missing.
        names: Of the columns.
        times: ``(n,)`` float64, seconds since the first reading, strictly increasing; ``None``
            where nothing is known but the order.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]
    times: NDArray[np.float64] | None = None
