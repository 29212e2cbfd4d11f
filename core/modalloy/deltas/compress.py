"""Compressing a dense delta into a low-rank pair, with what is lost on record.

A fine-tuned matrix differs from the base's in all its values, yet mostly along few directions. The
nearest matrix of a rank is the truncated singular value decomposition (Eckart and Young, 1936). Of
large matrices a randomised one is taken (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm
4.4), whose error is measured, not estimated.
"""

import hashlib

import attrs
import torch

from modalloy.deltas.lowrank import LowRankPair
from modalloy.errors import SpecError

EXACT = 1024
"""Up to this short side, all singular values are computed."""
POWER = 3
"""Power iterations of the randomised decomposition: the spectra of deltas decay slowly."""
_FIRST = 64
"""Directions that are tried first where energy is the limit."""
_CHUNK = 1 << 22
"""Elements that are turned into float64 at a time."""
OVERSAMPLING = 32
"""Directions that it tries beyond those that are kept."""


@attrs.frozen(kw_only=True)
class Compression:
    """How far deltas are compressed.

    Attributes:
        rank: At most this many directions of each matrix; ``None`` sets no limit.
        energy: As many directions as hold this share of the squared norm; ``None`` takes all that
            ``rank`` allows.
        seed: Of the randomised decomposition.
    """

    rank: int | None = None
    energy: float | None = None
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        """Check the values.

        Raises:
            SpecError: There is no limit at all, or one is out of range.
        """
        if self.rank is None and self.energy is None:
            raise SpecError("give rank, energy or both: how far to compress", subject="rank")
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise SpecError(f"rank must be a positive integer, found {self.rank!r}", subject="rank")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise SpecError(
                f"energy must be above 0 and at most 1, found {self.energy!r}", subject="energy"
            )


@attrs.frozen(eq=False)
class Compressed:
    """A compressed delta.

    Attributes:
        pair: Its factors, the singular values shared out evenly between them; ``None`` where the
            delta is 0.
        error: Frobenius norm of what the pair lacks, its rounding included, relative to the
            delta's.
        energy: Share of the delta's squared norm that the pair holds, 1 - error^2.
    """

    pair: LowRankPair | None
    error: float

    @property
    def energy(self) -> float:
        """Share of the squared norm that is kept."""
        return 1.0 - self.error**2

    @property
    def rank(self) -> int:
        """R; 0 where the delta is 0."""
        return 0 if self.pair is None else self.pair.rank


def compress(
    delta: torch.Tensor,
    limits: Compression,
    name: str = "",
    dtype: torch.dtype = torch.float32,
) -> Compressed:
    """Return the pair of least error within the limits.

    Args:
        delta: ``(O, I)`` float32.
        limits: How far to go.
        name: The tensor's; the randomised decomposition draws by it, so that the result depends
            neither on order nor on company.
        dtype: Of the pair's factors; their rounding counts into the error.
    """
    size = _square_norm(delta)
    if size == 0.0:
        return Compressed(None, 0.0)
    tall = delta.shape[0] > delta.shape[1]
    wide = delta.T if tall else delta
    left, right, values = _directions(wide, limits, name, size)
    # A singular value is the root of its square; each factor takes the root of that.
    roots = values.sqrt().sqrt()
    left, right = left * roots, right / roots[:, None]
    b, a = (right.T, left.T) if tall else (left, right)
    pair = LowRankPair(a.to(dtype).contiguous(), b.to(dtype).contiguous(), 1.0)
    return Compressed(pair, (_lost(delta, pair) / size) ** 0.5)


def _square_norm(matrix: torch.Tensor) -> float:
    """Return the squared Frobenius norm, summed in float64 a few rows at a time."""
    return sum(float(rows.double().square().sum()) for rows in matrix.split(_rows(matrix)))


def _lost(delta: torch.Tensor, pair: LowRankPair) -> float:
    """Return the squared Frobenius norm of what a pair lacks, a few rows at a time."""
    a, count = pair.scale * pair.A.float(), _rows(delta)
    parts = zip(delta.split(count), pair.B.split(count), strict=True)
    return sum(_square_norm(rows - b.float() @ a) for rows, b in parts)


def _rows(matrix: torch.Tensor) -> int:
    """Return how many rows are taken at a time."""
    return max(1, _CHUNK // max(1, matrix.shape[1]))


def _directions(
    wide: torch.Tensor, limits: Compression, name: str, size: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the singular directions of a matrix ``(m, n)`` that are kept, the largest first.

    Where energy is the limit, directions are tried until they hold it.

    Returns:
        Left ones ``(m, k)``, right ones times their singular values ``(k, n)``, and the squared
        singular values ``(k,)``; float64.
    """
    short = wide.shape[0]
    wanted = limits.rank or _FIRST
    while short > EXACT and 2 * (wanted + OVERSAMPLING) < short:
        q = _range(wide, wanted + OVERSAMPLING, name, limits.seed)
        small = (q.T @ wide).double()
        values, vectors = _decompose(small)
        if limits.rank is not None or _holds(values[:wanted], limits, size):
            kept = _how_many(values, limits, size)
            vectors = vectors[:, :kept]
            return q.double() @ vectors, vectors.T @ small, values[:kept]
        # The spectrum is flat: what is tried next costs as much as all of it.
        wanted = short if wanted > short // 8 else 2 * wanted
    values, vectors = _decompose(wide)
    kept = _how_many(values, limits, size)
    vectors = vectors[:, :kept]
    columns = wide.split(max(1, _CHUNK // short), dim=1)
    right = torch.cat([vectors.T @ part.double() for part in columns], dim=1)
    return vectors, right, values[:kept]


def _holds(values: torch.Tensor, limits: Compression, size: float) -> bool:
    return limits.energy is None or float(values.sum()) >= limits.energy * size


def _range(wide: torch.Tensor, tried: int, name: str, seed: int) -> torch.Tensor:
    """Return orthonormal columns ``(m, tried)`` near to the largest left directions."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    draws = torch.randn(wide.shape[1], tried, generator=generator)
    q = torch.linalg.qr(wide @ draws).Q
    for _ in range(POWER):
        q = torch.linalg.qr(wide.T @ q).Q
        q = torch.linalg.qr(wide @ q).Q
    return q


def _decompose(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared singular values ``(m,)`` and left directions ``(m, m)``, float64.

    Formed from ``matrix @ matrix.T``, a few columns at a time, the largest first.
    """
    short = matrix.shape[0]
    gram = torch.zeros(short, short, dtype=torch.float64)
    for part in matrix.split(max(1, _CHUNK // short), dim=1):
        columns = part.double()
        gram.addmm_(columns, columns.T)
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _how_many(values: torch.Tensor, limits: Compression, size: float) -> int:
    kept = int((values > values[0] * 1e-14).sum())
    if limits.energy is not None:
        held = values.cumsum(0) >= limits.energy * size * (1 - 1e-12)
        kept = min(kept, int(held.int().argmax()) + 1 if bool(held.any()) else kept)
    return kept if limits.rank is None else min(kept, limits.rank)
