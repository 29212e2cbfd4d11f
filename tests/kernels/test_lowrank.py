from pathlib import Path

import pytest
import torch

from kernels.subprocesses import needs_triton, run_script
from modalloy.errors import SpecError
from modalloy.kernels.lowrank import lowrank_fold


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_is_the_sum_of_the_products(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(30, 50).to(dtype)
    pairs = [(torch.randn(30, r).to(dtype), torch.randn(r, 50).to(dtype), 0.3) for r in (4, 9)]
    exact, size = weight.double(), weight.double().abs()
    for b, a, factor in pairs:
        exact = exact + factor * (b.double() @ a.double())
        size = size + factor * (b.double().abs() @ a.double().abs())
    found = lowrank_fold(weight, pairs, out_dtype=torch.float32)
    # At most n + 2 roundings of the sum of magnitudes, in any order (Higham, 3.1), one more for
    # the factor and one for the weight.
    assert ((found - exact).abs() <= (4 + 9 + 4) * 2.0**-24 * size).all()
    assert torch.equal(lowrank_fold(weight, pairs), found.to(dtype))


def test_pairs_that_do_not_fit_are_refused() -> None:
    weight = torch.zeros(3, 5)
    with pytest.raises(
        SpecError, match=r"pair 1 has B \(3, 2\) and A \(2, 4\); expected \(3, R\) and \(R, 5\)"
    ):
        lowrank_fold(
            weight,
            [
                (torch.zeros(3, 1), torch.zeros(1, 5), 1.0),
                (torch.zeros(3, 2), torch.zeros(2, 4), 1.0),
            ],
        )
    with pytest.raises(SpecError, match="expected a contiguous matrix"):
        lowrank_fold(weight.T, [(torch.zeros(5, 1), torch.zeros(1, 3), 1.0)])
    with pytest.raises(SpecError, match="no tensors were given"):
        lowrank_fold(weight, [])
    with pytest.raises(SpecError, match="pair 0 is on meta and cpu, the weight on cpu; move one"):
        lowrank_fold(weight, [(torch.zeros(3, 1, device="meta"), torch.zeros(1, 5), 1.0)])


@needs_triton
def test_the_kernel_stays_within_float32s_bound(tmp_path: Path) -> None:
    run_script("interpreted.py", "lowrank", folder=tmp_path, TRITON_INTERPRET="1")
