"""What every encoder of this plugin takes: points in space, with or without colours."""

import attrs
import numpy as np
from numpy.typing import NDArray


@attrs.frozen(eq=False)
class PointCloud:
    """The surface of one object or scene, as points.

    Clouds are taken as upright with z up; the heading is free and so is the unit of length.

    Attributes:
        xyz: Shape ``(n, 3)``, float32, n > 1, all finite.
        rgb: Shape ``(n, 3)``, float32, 0 to 1; ``None`` where there are no colours.
    """

    xyz: NDArray[np.float32]
    rgb: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, indices: NDArray[np.int64]) -> "PointCloud":
        """Return the points at ``indices``, in that order, repetitions included."""
        return PointCloud(self.xyz[indices], None if self.rgb is None else self.rgb[indices])
