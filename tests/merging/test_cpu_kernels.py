"""The CPU's kernels against the references, bit by bit."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalloy.checkpoints.mapped import MappedTensor
from modalloy.kernels.cpu import merging, selecting
from modalloy.kernels.cpu.blocks import BF16, F16, F32, load, store
from modalloy.kernels.philox import random_words
from modalloy.kernels.threshold import kth_largest
from modalloy.merging import operands, ranking
from modalloy.merging.ranking import Wanted, find_ranks
from modalloy.merging.sources import Pair

NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def mapped(tensor: torch.Tensor) -> MappedTensor:
    return MappedTensor(tensor.data_ptr(), NAMES[tensor.dtype], tuple(tensor.shape))


def finish(job: Any) -> Any:
    """Run a job's steps one after the other and return its result."""
    results = None
    while True:
        try:
            step = next(job) if results is None else job.send(results)
        except StopIteration as end:
            return end.value
        results = [call() for call in step]


@pytest.mark.parametrize(("code", "dtype"), [(F16, torch.float16), (BF16, torch.bfloat16)])
def test_every_half_is_read_as_torch_reads_it(code: int, dtype: torch.dtype) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    out = np.empty(65536, np.float32)
    load(halves.ctypes.data, code, 0, out)
    expected = torch.from_numpy(halves.view(np.int16)).view(dtype).float().numpy()
    assert np.array_equal(out, expected, equal_nan=True)
    assert np.array_equal(np.signbit(out), np.signbit(expected))


@pytest.mark.parametrize(("code", "dtype"), [(F16, torch.float16), (BF16, torch.bfloat16)])
def test_numbers_are_rounded_as_torch_rounds_them(code: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    special = [65504, 65519.99, 65520, 65536, 2**-24, 2**-25, 1.5 * 2**-25, 3 * 2**-25, 0, math.inf]
    values = np.concatenate(
        [
            rng.integers(0, 2**32, 300_000, dtype=np.uint32).view(np.float32),
            (rng.standard_normal(50_000) * 1e-6).astype(np.float32),
            np.array([*special, *(-x for x in special), math.nan], np.float32),
        ]
    )
    out = np.empty(len(values), np.uint16)
    store(values.copy(), code, 0, out.ctypes.data)
    found = torch.from_numpy(out.view(np.int16)).view(dtype)
    expected = torch.from_numpy(values).to(dtype)
    wrong = (found.view(torch.int16) != expected.view(torch.int16)) & ~(
        found.isnan() & expected.isnan()
    )
    assert not wrong.any()


@pytest.mark.parametrize("key", [0, 2**64 - 1, 0x299F31D0_A4093822])
@pytest.mark.parametrize("block", [0, 7, 2**21])
def test_random_words_are_those_of_the_reference(key: int, block: int) -> None:
    words = np.empty(4096, np.uint32)
    merging.random_words(np.uint64(key), block, words)
    expected = random_words(key, 4096 * block, 4096)
    assert words.tolist() == expected.tolist()


def tied(elements: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors whose differences have few values, as those of half precision have."""
    generator = torch.Generator().manual_seed(elements)
    base = (0.02 * torch.randn(elements, generator=generator)).bfloat16()
    return base, (base.float() + 0.002 * torch.randn(elements, generator=generator)).bfloat16()


def smooth(elements: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(elements)
    base = torch.randn(elements, generator=generator)
    return base, base + 0.1 * torch.randn(elements, generator=generator)


@pytest.mark.parametrize("make", [tied, smooth])
@pytest.mark.parametrize("elements", [1, 7, 65536, 65537, 300_001])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.99, 1.0])
def test_ranks_are_exact(
    make: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    elements: int,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operands, "CHUNK", 50_000)
    base, model = make(elements)
    rank = max(1, min(elements, round(share * elements)))
    found = finish(find_ranks(mapped(base), 0, elements, [Wanted(mapped(model), rank)]))
    sizes = (model.float() - base.float()).abs().sort(descending=True).values
    assert found == [float(sizes[rank - 1])]
    assert found == [float(kth_largest(base, model, rank))]


@pytest.mark.parametrize("make", [tied, smooth])
@pytest.mark.parametrize("bracket", [(0, 0, 0), (1, 2, 3), (0, 1, selecting.SIZE_BITS)])
def test_ranks_are_exact_where_a_sample_misleads(
    make: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    bracket: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking, "_bracket", lambda *_: bracket)
    base, model = make(200_000)
    wanted = [Wanted(mapped(model), rank) for rank in (1, 777, 100_000, 200_000)]
    found = finish(find_ranks(mapped(base), 0, 200_000, wanted))
    sizes = (model.float() - base.float()).abs().sort(descending=True).values
    assert found == [float(sizes[one.rank - 1]) for one in wanted]


def test_ranks_of_a_delta_that_is_mostly_zero_are_exact() -> None:
    base, model = tied(150_000)
    model = torch.where(torch.arange(150_000) % 10 == 0, model, base)
    wanted = [Wanted(mapped(model), rank) for rank in (10, 14_000, 15_000, 16_000, 100_000)]
    found = finish(find_ranks(mapped(base), 0, 150_000, wanted))
    sizes = (model.float() - base.float()).abs().sort(descending=True).values
    assert found == [float(sizes[one.rank - 1]) for one in wanted]


def test_ranks_of_low_rank_deltas_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "CHUNK", 10_000)
    rng = np.random.default_rng(0)
    pair = Pair(
        rng.standard_normal((700, 4)).astype(np.float32),
        rng.standard_normal((4, 130)).astype(np.float32),
        0.5,
    )
    base = torch.zeros(700, 130)
    found = finish(find_ranks(mapped(base), 0, 91_000, [Wanted(pair, 9_000)]))
    sizes = np.sort(np.abs(0.5 * (pair.B.astype(float) @ pair.A.astype(float))).ravel())[::-1]
    assert found[0] == pytest.approx(sizes[8_999], rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    elements=st.integers(1, 9000),
    first=st.integers(0, 9000),
    dtypes=st.lists(st.sampled_from(list(NAMES)), min_size=2, max_size=5),
    out=st.sampled_from(list(NAMES)),
    switches=st.sets(st.sampled_from(["trim", "drop", "elect", "normalize"])),
    scale=st.sampled_from([1.0, 0.7]),
    seed=st.integers(0, 1000),
)
def test_merged_deltas_are_those_of_the_reference(
    elements: int,
    first: int,
    dtypes: list[torch.dtype],
    out: torch.dtype,
    switches: set[str],
    scale: float,
    seed: int,
) -> None:
    from modalloy.kernels.sparse import delta_merge

    trim, drop, elect, normalize = (s in switches for s in ("trim", "drop", "elect", "normalize"))
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(elements, generator=generator).to(dtypes[0])
    # Few different values, so that signs tie and sums cancel.
    models = [
        (base.float() + torch.randint(-2, 3, (elements,), generator=generator) / 4).to(dtype)
        for dtype in dtypes[1:]
    ]
    count = len(models)
    weights = torch.randint(-1, 3, (count,), generator=generator).float() / 2
    lower, upper = torch.full((count,), 0.25), torch.full((count,), 0.4)
    gains = weights / 0.6 if drop else weights
    keys = [seed + i for i in range(count)]
    start = first // 4096 * 4096
    expected = delta_merge(
        base,
        models,
        weights.tolist(),
        gains=gains.tolist(),
        lower=lower if trim else None,
        upper=upper if trim else None,
        density=[0.6] * count if drop else None,
        keys=keys if drop else None,
        elect=elect,
        normalize=normalize,
        scale=scale,
        start=start,
        out_dtype=out,
    )
    tensors = [mapped(one) for one in (base, *models)]
    total = sum((np.float32(w) for w in weights.tolist()), np.float32(0))
    found = torch.empty(elements, dtype=out)
    codes = {"BF16": BF16, "F16": F16, "F32": F32}
    merging.delta_merge(
        np.array([t.address for t in tensors]),
        np.array([codes[t.dtype] for t in tensors]),
        np.zeros(count, np.bool_),
        np.array([weights.numpy(), gains.numpy(), lower.numpy(), upper.numpy()], np.float32),
        np.full(count, int(0.6 * 2**32) if drop else merging.ALL, np.uint64),
        np.array(keys, np.uint64),
        np.array([trim, elect, normalize]),
        np.array([total if abs(total) >= 1e-8 else 1, scale], np.float32),
        start,
        elements,
        found.data_ptr(),
        codes[NAMES[out]],
    )
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


@settings(max_examples=20, deadline=None)
@given(
    elements=st.integers(1, 5000),
    dtypes=st.lists(st.sampled_from(list(NAMES)), min_size=1, max_size=5),
    out=st.sampled_from(list(NAMES)),
    divisor=st.sampled_from([1.0, 3.0, -0.7]),
    seed=st.integers(0, 1000),
)
def test_weighted_sums_are_those_of_the_reference(
    elements: int, dtypes: list[torch.dtype], out: torch.dtype, divisor: float, seed: int
) -> None:
    from modalloy.kernels.weighted import weighted_sum

    generator = torch.Generator().manual_seed(seed)
    models = [torch.randn(elements, generator=generator).to(dtype) for dtype in dtypes]
    weights = torch.randn(len(models), generator=generator)
    expected = weighted_sum(models, weights.tolist(), divisor=divisor, out_dtype=out)
    found = torch.empty(elements, dtype=out)
    codes = {"BF16": BF16, "F16": F16, "F32": F32}
    merging.weighted_sum(
        np.array([one.data_ptr() for one in models]),
        np.array([codes[NAMES[one.dtype]] for one in models]),
        weights.numpy(),
        np.float32(divisor),
        elements,
        found.data_ptr(),
        codes[NAMES[out]],
    )
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
