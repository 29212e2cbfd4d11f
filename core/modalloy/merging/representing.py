"""Dense deltas as low-rank pairs: exactly, or truncated with the error on record."""

import torch

from modalloy.deltas.lowrank import LowRankPair


def exact_pair(delta: torch.Tensor) -> LowRankPair:
    """Return a pair whose product is ``delta (O, I)`` to the bit: one factor is an identity."""
    outs, ins = delta.shape
    eye = torch.eye(min(outs, ins), dtype=delta.dtype)
    return LowRankPair(delta, eye, 1.0) if outs <= ins else LowRankPair(eye, delta, 1.0)


def truncated_pair(delta: torch.Tensor, rank: int) -> tuple[LowRankPair, float]:
    """Return the pair of a rank that is nearest to a delta (Eckart and Young, 1936).

    Args:
        delta: ``(O, I)`` float32.
        rank: Of the result; a rank that holds everything gives :func:`exact_pair`.

    Returns:
        The pair, and the Frobenius norm of what it lacks relative to that of ``delta``.
    """
    if rank >= min(delta.shape):
        return exact_pair(delta), 0.0
    tall = delta.shape[0] > delta.shape[1]
    wide = (delta.T if tall else delta).double()
    # The singular vectors of the short side alone: far cheaper than a whole decomposition.
    basis = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:]
    other = basis.T @ wide
    size = float(wide.norm())
    error = float((wide - basis @ other).norm()) / size if size else 0.0
    basis, other = basis.float().contiguous(), other.float().contiguous()
    if tall:
        return LowRankPair(basis.T.contiguous(), other.T.contiguous(), 1.0), error
    return LowRankPair(other, basis, 1.0), error
