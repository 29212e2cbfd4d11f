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
    size = float(delta.double().square().sum())
    if size == 0.0:
        return Compressed(None, 0.0)
    tall = delta.shape[0] > delta.shape[1]
    wide = delta.T if tall else delta
    left, right, values = _directions(wide, limits, name, size)
    kept = _how_many(values, limits, size)
    # A singular value is the root of its square; each factor takes the root of that.
    roots = values[:kept].sqrt().sqrt()
    left, right = left[:, :kept] * roots, right[:kept] / roots[:, None]
    b, a = (right.T, left.T) if tall else (left, right)
    pair = LowRankPair(a.to(dtype).contiguous(), b.to(dtype).contiguous(), 1.0)
    lost = float((delta - pair.dense()).double().square().sum())
    return Compressed(pair, (lost / size) ** 0.5)


def _directions(
    wide: torch.Tensor, limits: Compression, name: str, size: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return singular directions of a matrix ``(m, n)``, the largest first, float64.

    Where energy is the limit, directions are tried until they hold it.

    Returns:
        Left ones ``(m, k)``, right ones times their singular values ``(k, n)``, and the squared
        singular values ``(k,)``.
    """
    short = wide.shape[0]
    wanted = limits.rank or 64
    while True:
        tried = wanted + OVERSAMPLING
        if short <= EXACT or 2 * tried >= short:
            return _decompose(torch.eye(short, dtype=torch.float64), wide.double())
        q = _range(wide, tried, name, limits.seed)
        left, right, values = _decompose(q.double(), (q.T @ wide).double())
        if limits.rank is not None or limits.energy is None:
            return left, right, values
        if float(values[:wanted].sum()) >= limits.energy * size:
            return left, right, values
        wanted *= 2


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


def _decompose(
    q: torch.Tensor, small: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the directions of ``q @ small``, see :func:`_directions`."""
    values, vectors = torch.linalg.eigh(small @ small.T)
    vectors = vectors.flip(1)
    return q @ vectors, vectors.T @ small, values.flip(0).clamp(min=0)


def _how_many(values: torch.Tensor, limits: Compression, size: float) -> int:
    kept = int((values > values[0] * 1e-14).sum())
    if limits.energy is not None:
        held = values.cumsum(0) >= limits.energy * size * (1 - 1e-12)
        kept = min(kept, int(held.int().argmax()) + 1 if bool(held.any()) else kept)
    return kept if limits.rank is None else min(kept, limits.rank)
