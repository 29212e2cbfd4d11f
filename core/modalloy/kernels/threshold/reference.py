"""The k-th largest magnitude in plain PyTorch: what the other backends are held to."""

import torch

MAGNITUDE = 0x7FFFFFFF
"""The bits of a float32 number that are not its sign."""


def kth_largest(
    base: torch.Tensor, parent: torch.Tensor, count: int, *, is_delta: bool
) -> torch.Tensor:
    """Return the magnitude, see :func:`modalloy.kernels.threshold.kth_largest`.

    Args:
        base: Any shape and floating-point type.
        parent: Likewise, of the base's shape.
        count: From 1 to the number of elements.
        is_delta: Whether ``parent`` is the delta itself.

    Returns:
        Float32 without dimensions.
    """
    delta = parent.float() if is_delta else parent.float() - base.float()
    # Integers: NaN has a place among them, and all backends agree which.
    bits = delta.view(torch.int32).flatten() & MAGNITUDE
    return bits.kthvalue(bits.numel() - count + 1).values.view(torch.float32)
