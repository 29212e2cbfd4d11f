import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from modalloy.errors import ModalloyError, SpecError, UnknownNameError
from modalloy.kernels import dispatch
from modalloy.kernels.dispatch import BackendError, choose
from modalloy.kernels.sparse import delta_merge
from modalloy.kernels.threshold import kth_largest
from modalloy.kernels.weighted import weighted_sum

HERE = torch.zeros(4)


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.fixture
def gpu_tensor() -> torch.Tensor:
    return torch.zeros(4).as_subclass(OnGPU)


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    dispatch._log_once.cache_clear()


def test_auto_takes_the_reference_on_a_cpu_and_triton_on_a_gpu(gpu_tensor: torch.Tensor) -> None:
    assert choose("auto", [HERE], op="op") == "reference"
    assert choose("auto", [gpu_tensor, HERE], op="op") == "reference"
    assert choose("auto", [gpu_tensor], op="op") == "triton"
    assert choose("reference", [gpu_tensor], op="op") == "reference"


def test_triton_runs_on_a_cpu_only_in_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError) as caught:
        choose("triton", [HERE], op="weighted_sum")
    assert str(caught.value) == (
        "weighted_sum was asked to run on the backend 'triton' and cannot: a tensor is on the "
        "device 'cpu', where only Triton's interpreter runs. Move all tensors to a GPU, set "
        "TRITON_INTERPRET=1 before triton is imported, or pass backend='reference'."
    )
    assert isinstance(caught.value, ModalloyError)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.backend, caught.value.subject) == ("triton", "weighted_sum")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("triton", [HERE], op="weighted_sum") == "triton"
    assert choose("auto", [HERE], op="weighted_sum") == "reference"


def test_without_triton_auto_falls_back_and_a_request_fails(
    monkeypatch: pytest.MonkeyPatch, gpu_tensor: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with caplog.at_level(logging.INFO, logger="modalloy"):
        for _ in range(3):
            assert choose("auto", [gpu_tensor], op="op") == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        "op runs on the reference backend: the package 'triton' is not installed"
    ]
    with pytest.raises(
        BackendError, match=r"the package 'triton' is not installed. Install it, or"
    ):
        choose("triton", [gpu_tensor], op="op")


def test_what_the_kernel_does_not_take_is_refused_by_name_and_avoided_by_auto(
    gpu_tensor: torch.Tensor,
) -> None:
    refusals = dispatch.parent_refusals([HERE] * 17, torch.float32)
    assert choose("auto", [gpu_tensor], op="op", refusals=refusals) == "reference"
    with pytest.raises(
        BackendError,
        match=r"there are 17 parents, and its kernel takes at most 16. Merge fewer parents",
    ):
        choose("triton", [gpu_tensor], op="op", refusals=refusals)


def test_types_that_no_kernel_reads_or_writes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(
        BackendError, match=r"a tensor is float64, and its kernel reads bfloat16, float16, float32"
    ):
        weighted_sum([HERE.double()], [1.0], backend="triton")
    with pytest.raises(BackendError, match=r"out_dtype is float64, and its kernel writes bfloat16"):
        weighted_sum([HERE], [1.0], out_dtype=torch.float64, backend="triton")
    assert weighted_sum([HERE.double()], [1.0]).dtype == torch.float64


def test_an_unknown_backend_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownNameError) as caught:
        weighted_sum([HERE], [1.0], backend="trition")
    assert str(caught.value) == (
        "unknown kernel backend 'trition'; known: auto, reference, triton. Did you mean 'triton'?"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_sum([], []), "no tensors were given; expected at least one"),
        (lambda: weighted_sum([HERE], [1, 2]), "weights has 2 entries for 1 parents"),
        (
            lambda: weighted_sum([HERE, torch.zeros(5)], [1, 2]),
            r"tensor 1 has shape \(5,\) where tensor 0 has \(4,\)",
        ),
        (lambda: weighted_sum([torch.zeros(4).int()], [1]), "tensor 0 is int32; expected a float"),
        (
            lambda: weighted_sum([torch.zeros(4, 4).T[:, :2]], [1]),
            r"tensor 0 is not contiguous \(strides \(1, 4\)\); call .contiguous\(\) on it",
        ),
        (
            lambda: delta_merge(HERE, [HERE.to("meta")], [1]),
            "parent 0 is on meta where base is on cpu; move one",
        ),
        (lambda: delta_merge(HERE, [HERE], [1], density=[0.5]), "density needs keys"),
        (
            lambda: delta_merge(HERE, [HERE], [1], density=[-0.5], keys=[1]),
            "density is -0.5; expected the share of values that is kept",
        ),
        (lambda: delta_merge(HERE, [HERE], [1], gains=[]), "gains has 0 entries for 1 parents"),
        (
            lambda: delta_merge(HERE, [HERE], [1], start=5000),
            "start is 5000; expected a multiple of 4096.*begin the piece at 4096",
        ),
        (
            lambda: delta_merge(HERE, [HERE], [1], lower=torch.zeros(1).double()),
            "lower is torch.float64 of shape .* it must be torch.float32 of one dimension",
        ),
        (
            lambda: delta_merge(HERE, [HERE.half()], [1], is_delta=[True]),
            "parent 0 is given as a delta and is torch.float16; deltas are torch.float32",
        ),
        (lambda: kth_largest(HERE, HERE, 5), "count is 5; expected 1 to the number of values, 4"),
        (lambda: kth_largest(HERE, HERE, 0), "count is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        call()


def test_triton_is_not_imported_where_the_reference_runs() -> None:
    code = (
        "import sys, torch, modalloy.kernels.lowrank, modalloy.kernels.threshold\n"
        "from modalloy.kernels.sparse import delta_merge\n"
        "from modalloy.kernels.weighted import weighted_sum\n"
        "x = torch.ones(3)\n"
        "weighted_sum([x], [2.0]), delta_merge(x, [x], [1.0])\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'triton']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 -- our own code
