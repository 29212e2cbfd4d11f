"""Which backend runs an operation, and what all operations ask of their tensors."""

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from modalloy.errors import SpecError, UnknownNameError

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "triton")
"""What ``backend=`` understands."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What the Triton kernels read and write."""

MAX_PARENTS = 16
"""The most parents that one Triton kernel takes: each is a pointer and a copy of the loop."""


class BackendError(SpecError):
    """A backend that was asked for by name cannot run this call.

    Attributes:
        backend: The backend asked for.
        reason: Why it cannot.
    """

    def __init__(self, message: str, *, backend: str, reason: str, subject: str) -> None:
        super().__init__(message, subject=subject)
        self.backend = backend
        self.reason = reason


class Refusal(NamedTuple):
    """Why a kernel does not take a call, as the end of "cannot run: ", and what would help."""

    reason: str
    remedy: str


def choose(
    backend: str, tensors: Sequence[torch.Tensor], *, op: str, refusals: Sequence[Refusal] = ()
) -> Literal["reference", "triton"]:
    """Return the backend that runs a call.

    Args:
        backend: ``"auto"`` takes Triton where all tensors are on a CUDA or HIP device, Triton is
            installed and its kernel takes the call, and else the reference.
        tensors: All tensors of the call.
        op: The operation's name, for messages.
        refusals: What the operation's kernel does not take of this call, besides its types.

    Raises:
        UnknownNameError: There is no such backend.
        BackendError: Triton was asked for by name and cannot run the call.
    """
    if backend not in BACKENDS:
        raise UnknownNameError("kernel backend", backend, BACKENDS)
    on_gpu = all(one.is_cuda for one in tensors)
    if backend == "reference" or (backend == "auto" and not on_gpu):
        return "reference"
    refusal = next(iter([*_unmet(tensors, on_gpu=on_gpu), *refusals]), None)
    if refusal is None:
        return "triton"
    if backend == "triton":
        raise BackendError(
            f"{op} was asked to run on the backend 'triton' and cannot: {refusal.reason}. "
            f"{refusal.remedy}, or pass backend='reference'.",
            backend=backend,
            reason=refusal.reason,
            subject=op,
        )
    _log_once(op, refusal.reason)
    return "reference"


def _unmet(tensors: Sequence[torch.Tensor], *, on_gpu: bool) -> list[Refusal]:
    """Return what keeps any Triton kernel from running on ``tensors``."""
    found = []
    if importlib.util.find_spec("triton") is None:
        found.append(Refusal("the package 'triton' is not installed", "Install it"))
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        where = next(one.device for one in tensors if not one.is_cuda)
        found.append(
            Refusal(
                f"a tensor is on the device '{where}', where only Triton's interpreter runs",
                "Move all tensors to a GPU, set TRITON_INTERPRET=1 before triton is imported",
            )
        )
    if strange := next((one.dtype for one in tensors if one.dtype not in DTYPES), None):
        known = ", ".join(map(_short, DTYPES))
        found.append(
            Refusal(
                f"a tensor is {_short(strange)}, and its kernel reads {known}",
                "Convert the tensor",
            )
        )
    return found


@functools.cache
def _log_once(op: str, reason: str) -> None:
    """Log why a call on a GPU does not run on Triton; the same reason only once."""
    logger.info("%s runs on the reference backend: %s", op, reason)


def parent_refusals(parents: Sequence[torch.Tensor], out_dtype: torch.dtype) -> tuple[Refusal, ...]:
    """Return what a kernel that streams over parents does not take of a call."""
    found = []
    if len(parents) > MAX_PARENTS:
        found.append(
            Refusal(
                f"there are {len(parents)} parents, and its kernel takes at most {MAX_PARENTS}",
                "Merge fewer parents at a time",
            )
        )
    return (*found, *output_refusals(out_dtype))


def output_refusals(out_dtype: torch.dtype) -> tuple[Refusal, ...]:
    """Return why a kernel does not write ``out_dtype``, if it does not."""
    if out_dtype in DTYPES:
        return ()
    known = ", ".join(map(_short, DTYPES))
    return (
        Refusal(
            f"out_dtype is {_short(out_dtype)}, and its kernel writes {known}",
            "Ask for one of these",
        ),
    )


def check_alike(op: str, named: dict[str, torch.Tensor]) -> None:
    """Check that an operation's tensors can be walked through in step.

    Args:
        op: The operation's name, for messages.
        named: The tensors and what they are called.

    Raises:
        SpecError: A tensor is not floating or not contiguous, or differs from the first in shape
            or device.
    """
    (first_name, first), *_ = named.items()
    for name, one in named.items():
        if not one.is_floating_point():
            problem = f"is {_short(one.dtype)}; expected a floating-point type"
        elif one.shape != first.shape:
            problem = f"has shape {tuple(one.shape)} where {first_name} has {tuple(first.shape)}"
        elif one.device != first.device:
            problem = f"is on {one.device} where {first_name} is on {first.device}; move one"
        elif not one.is_contiguous():
            problem = f"is not contiguous (strides {one.stride()}); call .contiguous() on it"
        else:
            continue
        raise SpecError(f"{op}: {name} {problem}", subject=op)


def check_lengths(op: str, count: int, named: dict[str, int]) -> None:
    """Check that there is one entry per parent in each list of ``named`` lengths.

    Raises:
        SpecError: There is no parent, or a list has another length.
    """
    if count == 0:
        raise SpecError(f"{op}: no tensors were given; expected at least one", subject=op)
    for name, length in named.items():
        if length != count:
            raise SpecError(
                f"{op}: {name} has {length} entries for {count} parents; give one per parent",
                subject=op,
            )


def float32(values: Sequence[float]) -> tuple[float, ...]:
    """Return ``values`` rounded to float32, so that each backend starts from the same numbers."""
    return tuple(torch.tensor(values, dtype=torch.float32).tolist())


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
