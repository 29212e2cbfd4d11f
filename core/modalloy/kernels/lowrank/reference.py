"""Folding of low-rank pairs in plain PyTorch: what the other backends are held to."""

import torch


def lowrank_fold(
    weight: torch.Tensor, b: torch.Tensor, a: torch.Tensor, out_dtype: torch.dtype
) -> torch.Tensor:
    """Return ``W + B @ A``, see :func:`modalloy.kernels.lowrank.lowrank_fold`.

    On a GPU, the product is as exact as ``torch.set_float32_matmul_precision`` says.

    Args:
        weight: ``(O, I)``, any floating-point type.
        b: ``(O, R)`` float32, factors included.
        a: ``(R, I)`` float32.
        out_dtype: The result's type.

    Returns:
        ``(O, I)``.
    """
    return (weight.float() + b @ a).to(out_dtype)
