"""The magnitude that separates a delta's largest values from the rest."""

import torch

from modalloy.errors import SpecError
from modalloy.kernels.dispatch import Refusal, check_alike, choose

MAX_ELEMENTS = 2**34
"""The most that the Triton kernel counts: 2**31 in each copy of its histogram."""


def kth_largest(
    base: torch.Tensor,
    parent: torch.Tensor,
    count: int,
    *,
    is_delta: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """Return the ``count``-th largest of ``|parent - base|``, exactly.

    The magnitudes are ranked by their bits, which order float32 numbers from 0 to infinity as their
    values do and put NaN above infinity: a delta of k NaN has NaN for its k largest.

    Args:
        base: Any shape, contiguous; bfloat16, float16 or float32.
        parent: Likewise, of that shape on that device.
        count: From 1, the largest, to the number of elements, the smallest.
        is_delta: Whether ``parent`` is the delta itself; the base's values are not used then.
        backend: ``"auto"``, ``"reference"`` or ``"triton"``.

    Returns:
        Float32 without dimensions, on the device; neither backend waits for the device.

    Raises:
        SpecError: The tensors differ in shape or device, or have fewer than ``count`` elements.
        UnknownNameError: There is no such backend.
        BackendError: Triton was asked for by name and cannot run the call.
    """
    check_alike("kth_largest", {"base": base, "parent": parent})
    if not 1 <= count <= parent.numel():
        raise SpecError(
            f"kth_largest: count is {count}; expected 1 to the number of values, {parent.numel()}",
            subject="count",
        )
    refusals = []
    if parent.numel() > MAX_ELEMENTS:
        reason = f"there are {parent.numel()} elements, and its kernel counts {MAX_ELEMENTS}"
        refusals.append(Refusal(reason, "Split the tensor"))
    tensors = [parent] if is_delta else [base, parent]
    if choose(backend, tensors, op="kth_largest", refusals=refusals) == "triton":
        from modalloy.kernels.threshold.triton import kth_largest as run
    else:
        from modalloy.kernels.threshold.reference import kth_largest as run
    return run(base, parent, count, is_delta=is_delta)
