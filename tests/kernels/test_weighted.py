from pathlib import Path

import pytest
import torch

from kernels.oracles import weighted_sum as oracle
from kernels.subprocesses import needs_triton, run_script
from modalloy.kernels.weighted import weighted_sum


@pytest.mark.parametrize("divisor", [1.0, 3.0, 0.1])
def test_the_reference_is_the_sum_rounded_at_every_step(divisor: float) -> None:
    torch.manual_seed(0)
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    tensors = [torch.randn(5, 40).to(dtypes[i % 3]) for i in range(5)]
    weights = [0.3, -0.7, 1.1, 1e-3, 2.0]
    found = weighted_sum(tensors, weights, divisor=divisor, out_dtype=torch.float32)
    rows = [one.float().flatten().tolist() for one in tensors]
    expected = [oracle(column, weights, divisor) for column in zip(*rows, strict=True)]
    assert found.flatten().tolist() == expected
    assert torch.equal(
        weighted_sum(tensors, weights, divisor=divisor, out_dtype=torch.bfloat16), found.bfloat16()
    )


def test_the_result_has_the_first_tensors_type_unless_asked() -> None:
    tensors = [torch.ones(3, dtype=torch.bfloat16), torch.ones(3)]
    assert weighted_sum(tensors, [1, 1]).dtype == torch.bfloat16
    assert weighted_sum(tensors, [1, 1], out_dtype=torch.float16).dtype == torch.float16


def test_torchs_default_type_has_no_say() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        found = weighted_sum([torch.ones(3, dtype=torch.float32)], [0.1], divisor=3.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.tolist() == [oracle([1.0], [0.1], 3.0)] * 3


def test_nothing_is_nothing() -> None:
    assert weighted_sum([torch.empty(0, 3)], [1.0], divisor=2.0).shape == (0, 3)


@needs_triton
def test_the_kernel_gives_the_references_bits(tmp_path: Path) -> None:
    run_script("interpreted.py", "weighted", folder=tmp_path, TRITON_INTERPRET="1")
