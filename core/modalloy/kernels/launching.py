"""How the streaming kernels are launched."""

import functools

import torch

THREADS = 128
"""Threads of a program, as a rule: each reads 8 of 1024 elements, 128 bits of bfloat16."""


def streaming_options(device: torch.device, threads: int = THREADS) -> dict[str, int | bool]:
    """Return the launch options of a kernel that passes once over its tensors.

    Args:
        device: Of the tensors; a CPU stands for Triton's interpreter, which ignores them.
        threads: Of one program.
    """
    return {
        "num_warps": threads // _warp_size(device),
        "num_stages": 1,  # nothing is staged in shared memory
        "enable_fp_fusion": False,  # it would round once where the contract rounds twice
    }


@functools.cache
def _warp_size(device: torch.device) -> int:
    """Return how many threads a warp has: 32, or 64 on AMD's CDNA."""
    if device.type != "cuda":
        return 32
    return int(torch.cuda.get_device_properties(device).warp_size)
