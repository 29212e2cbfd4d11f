from pathlib import Path

import pytest
import torch

from kernels.oracles import delta_merge as oracle
from kernels.subprocesses import needs_triton, run_script
from modalloy.kernels.sparse import delta_merge
from modalloy.merging.methods import ties

RULES = {
    "task arithmetic": {},
    "scaled mean": {"normalize": True, "scale": 0.7},
    "TIES": {"lower": [0.4, 0.5, 0.6, 0.3], "elect": True, "normalize": True},
    "breadcrumbs": {"lower": [0.2] * 4, "upper": [1.5] * 4, "scale": 0.9},
    "DARE": {
        "density": [0.3, 0.5, 1.0, 0.0],
        "keys": [1, 2**64 - 1, 3, 0xFEDCBA9876543210],
        "gains": [1.7, -0.6, 1.0, 9.0],
        "start": 4096 * 2**30,
    },
    "all": {
        "lower": [0.1] * 4,
        "upper": [2.0] * 4,
        "density": [0.5] * 4,
        "keys": [5, 6, 7, 8],
        "elect": True,
        "normalize": True,
        "scale": 1.3,
        "is_delta": [False, True, False, True],
    },
}


@pytest.mark.parametrize("name", RULES)
def test_the_reference_follows_the_formula_value_by_value(name: str) -> None:
    torch.manual_seed(0)
    rule, weights = RULES[name], [0.5, -0.3, 0.9, 0.7]
    base = torch.randn(5000).bfloat16()
    parents = [(base.float() + torch.randn(5000)).to(torch.float32) for _ in weights]
    # Every 7th: the word of an element depends on where it is, not on how many are looked at.
    found = delta_merge(base, parents, weights, **rule, out_dtype=torch.float32)
    for e in range(0, 5000, 7):
        column = [float(one[e]) for one in parents]
        expected = oracle(float(base[e]), column, weights, element=e, **rule)
        assert float(found[e]) == expected, e


def test_a_total_of_zero_elects_plus() -> None:
    base, parents = torch.zeros(1), [torch.tensor([2.0]), torch.tensor([-2.0])]
    found = delta_merge(base, parents, [1.0, 1.0], elect=True, normalize=True)
    assert found.tolist() == [2.0]


def test_a_divisor_of_zero_counts_as_one() -> None:
    base = torch.zeros(1)
    parents = [torch.tensor([2.0]), torch.tensor([3.0])]
    # Both agree, and their weights cancel; the gains are what they are multiplied by.
    options = {"gains": [1.0, 1.0], "normalize": True}
    assert delta_merge(base, parents, [1.0, -1.0], elect=True, **options).tolist() == [5.0]
    assert delta_merge(base, parents, [1.0, -1.0], **options).tolist() == [5.0]
    assert delta_merge(base, parents, [1e-9, 0.0], **options).tolist() == [5.0]
    # All dropped: nobody agrees.
    dropped = delta_merge(base, parents, [1.0, 1.0], lower=[9, 9], elect=True, normalize=True)
    assert dropped.tolist() == [0.0]


def test_a_value_as_large_as_a_bound_is_kept() -> None:
    base, parent = torch.zeros(3), torch.tensor([0.5, -1.0, 2.0])
    assert delta_merge(base, [parent], [1], lower=[1.0]).tolist() == [0.0, -1.0, 2.0]
    assert delta_merge(base, [parent], [1], upper=[1.0]).tolist() == [0.5, -1.0, 0.0]
    assert delta_merge(base, [parent], [1], lower=torch.ones(1)).tolist() == [0.0, -1.0, 2.0]


def test_a_nan_stays() -> None:
    base, parent = torch.zeros(2), torch.tensor([float("nan"), 1.0])
    for rule in (
        {},
        {"lower": [0.0] * 2},
        {"upper": [2.0] * 2},
        {"elect": True, "normalize": True},
    ):
        found = delta_merge(base, [parent, torch.ones(2)], [1, 1], **rule)
        assert found.isnan().tolist() == [True, False]


def test_pieces_make_the_whole() -> None:
    torch.manual_seed(0)
    base, parents = torch.randn(10000), [torch.randn(10000) for _ in range(3)]
    rule = {"density": [0.5] * 3, "keys": [1, 2**63, 2**40 + 5]}
    whole = delta_merge(base, parents, [1, 2, 3], **rule)
    pieces = [
        delta_merge(base[a:b], [p[a:b] for p in parents], [1, 2, 3], **rule, start=a)
        for a, b in ((0, 4096), (4096, 8192), (8192, 10000))
    ]
    assert torch.equal(torch.cat(pieces), whole)


def test_equal_weights_make_the_ties_of_the_merge_methods() -> None:
    torch.manual_seed(0)
    deltas = [torch.randn(64, 32) for _ in range(3)]
    lower = [float(d.abs().flatten().topk(512).values[-1]) for d in deltas]
    found = delta_merge(
        torch.zeros(64, 32),
        deltas,
        [1.0] * 3,
        lower=lower,
        elect=True,
        normalize=True,
        is_delta=[True] * 3,
    )
    assert torch.equal(found, ties(deltas, 0.25))


def test_torchs_default_type_has_no_say() -> None:
    base, parents = torch.zeros(3), [torch.ones(3), -torch.ones(3)]
    rule = {"elect": True, "normalize": True, "scale": 0.1}
    expected = delta_merge(base, parents, [0.1, 0.3], **rule)
    torch.set_default_dtype(torch.float64)
    try:
        found = delta_merge(base, parents, [0.1, 0.3], **rule)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@needs_triton
def test_the_kernel_gives_the_references_bits(tmp_path: Path) -> None:
    run_script("interpreted.py", "sparse", folder=tmp_path, TRITON_INTERPRET="1")
