import math
from pathlib import Path

import pytest
import torch

from kernels.subprocesses import needs_triton, run_script
from modalloy.kernels.threshold import kth_largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reference_is_what_sorting_finds(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base, parent = torch.randn(3, 333).to(dtype), torch.randn(3, 333).to(dtype)
    ranked = sorted(
        (
            abs(p - b)  # exact in double; float32's subtraction rounds it
            for p, b in zip(parent.flatten().tolist(), base.flatten().tolist(), strict=True)
        ),
        reverse=True,
    )
    for count in (1, 2, 500, 998, 999):
        found = kth_largest(base, parent, count)
        assert found.shape == ()
        assert found.dtype == torch.float32
        assert found == torch.tensor(ranked[count - 1], dtype=torch.float32)


def test_exactly_the_count_is_at_least_as_large() -> None:
    torch.manual_seed(0)
    delta = torch.randperm(5000).float() - 2500.5
    found = kth_largest(torch.zeros(5000), delta, 1234, is_delta=True)
    assert int((delta.abs() > found).sum()) < 1234 <= int((delta.abs() >= found).sum())


def test_nan_is_above_infinity() -> None:
    delta = torch.tensor([1.0, math.nan, -math.inf, 0.0])
    found = [float(kth_largest(delta, delta, k, is_delta=True)) for k in (1, 2, 3, 4)]
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, 1.0, 0.0]


def test_counts_beyond_what_float32_counts_are_exact() -> None:
    size = 2**24 + 5
    delta = torch.ones(size)
    delta[:3] = 2.0
    assert kth_largest(delta, delta, 3, is_delta=True) == 2.0
    assert kth_largest(delta, delta, 4, is_delta=True) == 1.0
    delta[-1] = 0.5
    assert kth_largest(delta, delta, size - 1, is_delta=True) == 1.0
    assert kth_largest(delta, delta, size, is_delta=True) == 0.5


@needs_triton
def test_the_kernel_gives_the_references_bits(tmp_path: Path) -> None:
    run_script("interpreted.py", "threshold", folder=tmp_path, TRITON_INTERPRET="1")
