"""The Triton kernels compiled for a GPU that is not there, and what the machine code shows.

Run as ``python compiled.py TARGET`` with one of ``TARGETS``. Kernels are compiled by the very calls
that launch them, only not launched: so types, alignments and options are those of real calls.
Prints one line per kernel; fails at the first finding.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from modalloy.kernels import launching
from modalloy.kernels.lowrank.triton import lowrank_fold
from modalloy.kernels.sparse.rule import make_rule
from modalloy.kernels.sparse.triton import delta_merge
from modalloy.kernels.threshold.triton import kth_largest
from modalloy.kernels.weighted.triton import weighted_sum

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
BF16, FP32 = torch.bfloat16, torch.float32
SIZE = 8192

# What the code shows: widths of loads and of stores, registers, spilled ones, fused
# multiply-adds, accesses to shared memory.
Shown = tuple[list[int], list[int], int, int, list[str], list[str]]

found: list[Any] = []
launch = jit.JITFunction.run


class Driver:
    """A driver of a GPU that is not there."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """Stand for the launch of a kernel."""
    found.append(launch(kernel, *args, grid=grid, warmup=True, **kwargs))


def tensors(count: int, dtype: torch.dtype, size: int = SIZE) -> list[torch.Tensor]:
    return [torch.zeros(size, dtype=dtype) for _ in range(count)]


def weighted(
    count: int, dtype: torch.dtype, out_dtype: torch.dtype, size: int = SIZE, **options: Any
) -> None:
    weighted_sum(tensors(count, dtype, size), (0.5,) * count, out_dtype=out_dtype, **options)


def sparse(
    count: int, dtype: torch.dtype, out_dtype: torch.dtype, size: int = SIZE, **options: Any
) -> None:
    base, *parents = tensors(count + 1, dtype, size)
    switches = dict.fromkeys(("gains", "lower", "upper", "density", "keys", "is_delta"))
    switches |= {"elect": False, "normalize": False, "scale": 1.0, "start": 0}
    rule = make_rule(base, parents, [0.5] * count, **(switches | options))
    delta_merge(base, parents, rule, out_dtype)


def everything(count: int) -> dict[str, Any]:
    return {
        "lower": torch.zeros(count),
        "upper": [1.0] * count,
        "density": [0.5] * count,
        "keys": list(range(count)),
        "elect": True,
        "normalize": True,
        "scale": 0.5,
        "start": 4096,
    }


def threshold(dtype: torch.dtype, *, is_delta: bool) -> None:
    base, parent = tensors(2, dtype)
    kth_largest(base, parent, 5, is_delta=is_delta)


def lowrank(dtype: torch.dtype, rank: int) -> None:
    lowrank_fold(
        torch.zeros(256, 512, dtype=dtype), torch.zeros(256, rank), torch.zeros(rank, 512), dtype
    )


CASES = {
    # name: (call, bits per access of the tensors read, of the tensor written)
    "weighted 3 bf16": (lambda: weighted(3, BF16, BF16, divisor=1.0), 128, 128),
    "weighted 3 fp32": (lambda: weighted(3, FP32, FP32, divisor=1.0), 128, 128),
    "weighted 16 bf16, mean": (lambda: weighted(16, BF16, BF16, divisor=3.0), 128, 128),
    "task arithmetic 3 bf16": (lambda: sparse(3, BF16, BF16), 128, 128),
    "task arithmetic 3 fp32": (lambda: sparse(3, FP32, FP32), 128, 128),
    "TIES 8 bf16": (
        lambda: sparse(8, BF16, BF16, lower=[0.5] * 8, elect=True, normalize=True),
        128,
        128,
    ),
    "DARE 8 bf16": (
        lambda: sparse(8, BF16, BF16, density=[0.5] * 8, keys=[1 << 40] * 8, gains=[2.0] * 8),
        128,
        128,
    ),
    "everything 3 bf16": (lambda: sparse(3, BF16, BF16, **everything(3)), 128, 128),
    "everything 8 bf16": (lambda: sparse(8, BF16, BF16, **everything(8)), 128, 128),
    "everything 8 fp32": (lambda: sparse(8, FP32, FP32, **everything(8)), 128, 128),
    # 256 threads: half as many bits of bfloat16 each.
    "everything 16 bf16": (lambda: sparse(16, BF16, BF16, **everything(16)), 64, 64),
    "everything 16 fp32": (lambda: sparse(16, FP32, FP32, **everything(16)), 128, 128),
    "DARE 16 bf16": (
        lambda: sparse(16, BF16, BF16, density=[0.5] * 16, keys=[5] * 16),
        128,
        128,
    ),
    # An odd size cannot be masked in whole accesses, and works nonetheless.
    "everything 3 bf16, odd": (lambda: sparse(3, BF16, BF16, 8191, **everything(3)), None, None),
    "threshold bf16": (lambda: threshold(BF16, is_delta=False), 128, None),
    "threshold fp32 delta": (lambda: threshold(FP32, is_delta=True), 128, None),
    "lowrank bf16": (lambda: lowrank(BF16, 40), 128, None),
    "lowrank fp32": (lambda: lowrank(FP32, 16), 128, None),
}


def check(name: str, kernel: Any, reads: int | None, writes: int | None) -> None:
    """Fail where the code is not what it should be, and print what it is."""
    streaming = not name.startswith("lowrank")
    shown = nvidia(kernel, streaming=streaming) if "ptx" in kernel.asm else amd(kernel, name)
    loads, stores, registers, spills, fused, shared = shown
    print(  # noqa: T201 -- what a run by hand is for
        f"{name}: loads {loads}, stores {stores} bits, {registers} registers, {spills} spilled"
    )
    assert spills == 0, f"{name}: {spills} spilled"
    # Loads of other widths are those of the parents' few numbers; none has 16 bits.
    assert reads is None or (reads in loads and 16 not in loads), f"{name}: loads of {loads} bits"
    assert writes is None or stores == [writes], f"{name}: stores of {stores} bits"
    assert not (streaming and fused), f"{name}: fused multiply-adds: {fused}"
    moving = name.startswith(("lowrank", "threshold"))
    assert moving or not shared, f"{name}: values pass through shared memory: {shared}"


def nvidia(kernel: Any, *, streaming: bool) -> Shown:
    """Return what PTX and the resources of the machine code show."""
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        used = _dump("-res-usage", file.name)
        sass = _dump("-sass", file.name)
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", used))
    if streaming:
        # Divisions are made of fused operations within the machine code; nothing else is.
        assert "div.full" not in ptx, "a fast division"
        assert "div.rn" in ptx or " FFMA" not in sass, "the assembler fused a product and a sum"
    loads = _ptx_bits(r"(?:ld\.global|cp\.async\.c[ag]\.shared\.global)", ptx)
    fused = re.findall(r"fma\.rn\S*f32", ptx)
    shared = re.findall(r"(?:ld|st)\.shared\S*", ptx)
    spilled = int(numbers["STACK"]) + int(numbers["LOCAL"])
    return loads, _ptx_bits(r"st\.global", ptx), int(numbers["REG"]), spilled, fused, shared


def _dump(option: str, path: str) -> str:
    return subprocess.run(  # noqa: S603 -- Triton's own tool on our own file
        [str(CUOBJDUMP), option, path], check=True, capture_output=True, text=True
    ).stdout


def _ptx_bits(instruction: str, ptx: str) -> list[int]:
    """Return the widths of an instruction's accesses."""
    widths = {
        int(v or 1) * int(b) for v, b in re.findall(instruction + r"(?:\.v(\d))?\.b(\d+)", ptx)
    }
    copies = re.findall(instruction + r" \[.*?\], \[.*?\], 0x(\w+)", ptx)
    return sorted(widths | {8 * int(n, 16) for n in copies})


def amd(kernel: Any, name: str) -> Shown:
    """Return what the assembly and its metadata show."""
    text = kernel.asm["amdgcn"]
    counts = {k: int(v) for k, v in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
    spilled = counts["vgpr_spill_count"]
    # Beyond eight parents, their buffers' descriptors do not all fit the scalar registers; what is
    # left over goes to lanes of vector registers and not to memory.
    if not re.search(r"\b16\b", name):
        spilled += counts["sgpr_spill_count"]
    scratch = re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)
    spilled += int(scratch.group(1)) if scratch else 0
    # Divisions are made of fused operations, which nothing tells from others.
    fused = [] if "v_div_fixup" in text else re.findall(r"v_\w*(?:fma|fmac|mac)_\w*f32\w*", text)
    shared = re.findall(r"ds_(?:read|write)\w*", text)
    return (
        _amd_bits("load", text),
        _amd_bits("store", text),
        counts["vgpr_count"],
        spilled,
        fused,
        shared,
    )


def _amd_bits(verb: str, text: str) -> list[int]:
    """Return the widths of loads or stores."""
    return sorted(
        {32 * int(n or 1) for n in re.findall(rf"(?:global|buffer)_{verb}_dword(?:x(\d))?\b", text)}
    )


def main(target: str) -> None:
    driver.set_active(Driver(TARGETS[target]))
    launching._warp_size = lambda _device: TARGETS[target].warp_size
    jit.JITFunction.run = compile_only
    for name, (call, reads, writes) in CASES.items():
        found.clear()
        call()
        for kernel in found:
            check(name, kernel, reads, writes)


if __name__ == "__main__":
    main(sys.argv[1])
