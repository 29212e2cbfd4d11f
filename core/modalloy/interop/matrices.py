"""How well matrices were compressed, one by one and by decoder layer."""

from collections.abc import Iterable

import attrs


@attrs.frozen
class MatrixRecord:
    """How well one matrix was compressed.

    Attributes:
        tensor: Its name in the base.
        shape: (O, I).
        rank: Of its pair.
        error: Relative Frobenius error of the pair, rounding included.
        norm: Frobenius norm of the delta.
    """

    tensor: str
    shape: tuple[int, int]
    rank: int
    error: float
    norm: float

    @property
    def layer(self) -> int | None:
        """Number of the decoder layer that it is in; ``None`` outside of them."""
        numbers = [int(part) for part in self.tensor.split(".") if part.isdigit()]
        return numbers[0] if numbers else None


def total_error(matrices: Iterable[MatrixRecord]) -> float:
    """Return the relative Frobenius error over several matrices."""
    found = tuple(matrices)
    lost = sum((one.error * one.norm) ** 2 for one in found)
    size = sum(one.norm**2 for one in found)
    return (lost / size) ** 0.5 if size else 0.0


def by_layer(matrices: Iterable[MatrixRecord]) -> dict[int | None, tuple[MatrixRecord, ...]]:
    """Return matrices by decoder layer, in order; what is outside of them comes last."""
    table: dict[int | None, list[MatrixRecord]] = {}
    for one in matrices:
        table.setdefault(one.layer, []).append(one)
    order = sorted(table, key=lambda layer: (layer is None, layer or 0))
    return {layer: tuple(table[layer]) for layer in order}
