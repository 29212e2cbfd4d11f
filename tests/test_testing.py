"""Checks of modalities: a good one passes, and each thing that is wrong with one is told."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import Site
from modalloy.errors import InputError, LimitError, UnknownNameError
from modalloy.parent import ComponentConfig
from modalloy.testing import CheckFailed, check_modality
from modalloy.testing.bounded import run_bounded
from modalloy.testing.corrupting import corrupt
from modalloy.testing.sameness import same
from smelling import CONFIG, GOOD, Nose, nose, preprocess, read


def check_nose(**changes: Any) -> Any:
    options: dict[str, Any] = {"samples": GOOD, "configs": CONFIG}
    for key in ("samples", "configs", "seconds", "memory"):
        if key in changes:
            options[key] = changes.pop(key)
    return check_modality("smell", registry=nose(**changes), **options)


def failures(**changes: Any) -> dict[str, str]:
    with pytest.raises(CheckFailed) as caught:
        check_nose(**changes)
    failed = [one for one in caught.value.checks if one.ok is False]
    for one in failed:
        assert f"{one.subject}, {one.check}: {one.detail}" in str(caught.value)
    assert str(caught.value).startswith(f"modality 'smell': {len(failed)} of ")
    return {one.check: one.detail for one in failed}


def test_a_good_modality_passes_everything() -> None:
    checks = check_nose()
    assert all(check.ok for check in checks), checks
    assert [check.check for check in checks] == [
        "reader",
        "sample 0 (bytes)",
        "sample 1 (bytes)",
        "type of what is read",
        "limit 'bytes'",
        "limit 'notes'",
        "what is no input",
        "output_shape",
        "preprocess",
        "features",
        "frozen",
        "built anew",
        "batch",
        "conduct",
        "sample 0 (bytes), damaged",
        "sample 1 (bytes), damaged",
        "conduct",
    ]


def test_a_sample_may_be_a_path(tmp_path: Path) -> None:
    file = tmp_path / "coffee.smell"
    file.write_bytes(GOOD[0])
    checks = check_nose(samples=[file])
    assert "sample 0 (coffee.smell), damaged" in [check.check for check in checks]
    assert file.read_bytes() == GOOD[0]
    assert list(tmp_path.iterdir()) == [file]


def test_a_sample_may_not_be_text() -> None:
    with pytest.raises(CheckFailed, match=r"sample 0 .str.: it is text, which a host takes for"):
        check_nose(samples=["SMEL"])


def test_what_could_not_be_looked_at_is_said() -> None:
    skipped = {c.check: c.detail for c in check_nose(samples=[], configs={}) if c.ok is None}
    assert skipped == {
        "reading and limits": "no sample was given, or none could be read",
        "damaged files": "no sample is a file: bytes or a pathlib.Path",
        "shapes and features": "no packaged parent uses it; give its configuration in configs",
    }
    with pytest.raises(UnknownNameError, match="unknown modality 'smel'"):
        check_modality("smel", registry=nose())


def changed(when: Callable[[Any], bool], act: Callable[[], Any]) -> Callable[..., Any]:
    """Return a reader that does something else where a source is like that."""

    def reader(source: Any, limits: Mapping[str, int]) -> Any:
        return act() if when(source) else read(source, limits)

    return reader


def fail(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


def spin() -> None:
    while True:
        time.sleep(0.01)


def is_cut(source: Any) -> bool:
    return isinstance(source, bytes) and source not in GOOD and source[:4] == b"SMEL"


def drifting() -> Callable[..., Any]:
    turns = iter(range(10_000))
    return lambda source, limits: read(source, limits) + next(turns)


def by_path(source: Any, limits: Mapping[str, int]) -> Any:
    return read(source, limits) + isinstance(source, Path)


def writing(source: Any, limits: Mapping[str, int]) -> Any:
    found = read(source, limits)
    if isinstance(source, Path):
        source.write_bytes(b"x")
    return found


def unlimited(source: Any, limits: Mapping[str, int]) -> Any:
    return read(source, {**limits, "notes": 10**9})


def unbounded(source: Any, limits: Mapping[str, int]) -> Any:
    return read(source, {**limits, "bytes": 10**9})


@pytest.mark.parametrize(
    ("reader", "check", "text"),
    [
        (
            changed(is_cut, fail(KeyError("x"))),
            "damaged",
            "raised KeyError: 'x', expected Inp",
        ),
        (changed(is_cut, fail(InputError(""))), "damaged", "raised InputError without a message"),
        (changed(is_cut, fail(SystemExit(3))), "damaged", "raised SystemExit: 3, expected"),
        (
            changed(lambda s: s is None, lambda: torch.ones(1)),
            "what is no input",
            "None was taken for an input, and read as Tensor",
        ),
        (
            changed(lambda s: s == b"", fail(IndexError("empty"))),
            "what is no input",
            "no bytes raised IndexError: empty, expected InputError",
        ),
        (drifting(), "sample 0 (bytes)", "read twice, it gives two different results"),
        (by_path, "sample 0 (bytes)", "by its path it gives something else than as it was given"),
        (writing, "sample 0 (bytes)", "reading changed the file"),
        (
            changed(lambda s: s == GOOD[1], lambda: [1.0]),
            "sample 1 (bytes)",
            "by its path it gives something else",
        ),
        (
            lambda source, limits: None,
            "sample 0 (bytes)",
            "read returned None",
        ),
        (
            unbounded,
            "limit 'bytes'",
            f"sample 0 (bytes) by its bytes has {len(GOOD[0])} bytes and was read where 27",
        ),
        (unlimited, "limit 'notes'", "lowered to 1 it refuses none of the samples: nothing enfor"),
        (lambda source: None, "reader", "read must take (source, limits): too many positional"),
    ],
)
def test_a_reader_that_is_wrong_is_told(reader: Any, check: str, text: str) -> None:
    found = {name: detail for name, detail in failures(read=reader).items() if check in name}
    assert found, check
    assert any(text in detail for detail in found.values()), found


def test_a_reader_that_runs_on_is_stopped() -> None:
    start = time.perf_counter()
    found = failures(read=changed(is_cut, spin), samples=GOOD[1:], seconds=0.05)
    assert "_TooSlow: it was stopped after 0.05 seconds" in found["sample 0 (bytes), damaged"]
    assert time.perf_counter() - start < 20


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by Linux's own counters")
def test_a_reader_that_takes_memory_is_told() -> None:
    def greedy() -> Any:
        return torch.ones(1 << 24).sum()[None]

    found = failures(read=changed(is_cut, greedy), samples=[GOOD[0]], memory=1 << 25)
    assert "MiB of memory, at most 32 MiB are allowed" in found["sample 0 (bytes), damaged"]


def test_a_limit_error_of_another_limit_is_told() -> None:
    def wrong(source: Any, limits: Mapping[str, int]) -> Any:
        try:
            return read(source, limits)
        except LimitError as error:
            raise LimitError(str(error), limit="size", allowed=1, found=2) from error

    found = failures(read=wrong)
    assert (
        "must raise a LimitError of 'notes', but LimitError: too many notes"
        in (found["limit 'notes'"])
    )


class Changed(Nose):
    """A nose with something wrong."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, notes: torch.Tensor) -> torch.Tensor:
        features = super().forward(notes)
        match self.wrong:
            case "batch":
                features = features - features.mean(0, keepdim=True)
            case "random":
                features = features + torch.rand(())
            case "learning":
                self.seen += 1
            case "endless":
                features = features / 0
            case "wide":
                features = torch.cat([features, features], -1)
        return features


@pytest.mark.parametrize(
    ("wrong", "check", "text"),
    [
        ("batch", "batch", "input 0 of a batch of 2 differs by "),
        ("random", "frozen", "one input encoded twice gives two results"),
        ("learning", "frozen", "encoding changed weights or buffers of the encoder"),
        ("endless", "features", "features have NaN or infinite values"),
        ("wide", "features", "returned features (1, 4, 12), its plugin declares (N, 4, 6)"),
    ],
)
def test_an_encoder_that_is_wrong_is_told(wrong: str, check: str, text: str) -> None:
    found = failures(build=lambda config: Changed(wrong))
    assert text in found[check], found


def test_an_encoder_that_cannot_be_built_is_told() -> None:
    found = failures(build=lambda config: 1 / 0)
    assert found["features"] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (lambda d, c: [d], "preprocess must return a dict of tensors, found list"),
        (lambda d, c: {"a b": d}, "preprocess names a tensor 'a b', which is no argument"),
        (lambda d, c: {"notes": d.tolist()}, "gives a list for 'notes', expected a tensor"),
        (lambda d, c: {"notes": d[:1].double()}, "is torch.float64, expected float32"),
        (lambda d, c: {"notes": d[:1] / 0}, "of preprocess has NaN or infinite values"),
        (
            lambda d, c: {"notes": d},
            "sample 1 gives tensors {'notes': (3,)}, sample 0 gives {'notes': (5,)}; shapes must",
        ),
        (lambda d, c: {"notes": torch.rand(4)}, "sample 0 twice gives two results"),
    ],
)
def test_a_preprocess_that_is_wrong_is_told(target: Any, text: str) -> None:
    assert text in failures(preprocess=target)["preprocess"]


def test_a_damaged_file_that_is_read_must_be_of_use() -> None:
    def picky(decoded: torch.Tensor, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if len(decoded) < 2:
            raise IndexError("too short")
        return preprocess(decoded, config)

    def short(source: Any, limits: Mapping[str, int]) -> Any:
        found = read(source, limits)
        return found[:1] if is_cut(source) else found

    found = failures(read=short, preprocess=picky)
    text = "it was read, and preprocess of encoder 'nose' raised IndexError: too short"
    assert text in found["sample 0 (bytes), damaged"]


def test_shapes_that_need_torch_are_told(site: Site) -> None:
    text = "def of(config):\n    import torch\n    return (config['notes'], 6)\n"
    (site.path / "shapes.py").write_text(text)
    found = failures(output_shape="shapes:of")
    assert found == {"output_shape": "shapes:of imports torch, which laying out a prompt must not"}
    (site.path / "shapes.py").write_text("def of(config):\n    return [4, 6]\n")
    sys.modules.pop("shapes", None)
    found = failures(output_shape="shapes:of")
    assert found["output_shape"].endswith("two positive integers; found [4, 6]")


def test_damage_is_the_same_every_time_and_never_the_file_itself() -> None:
    first, again = list(corrupt(GOOD[0])), list(corrupt(GOOD[0]))
    assert first == again
    assert first != list(corrupt(GOOD[0], seed=1))
    assert all(data != GOOD[0] for _, data in first)
    assert len({label for label, _ in first}) == len(first)
    assert any(b"999999999" in data for _, data in corrupt(b"element vertex 10\n"))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (torch.ones(2), torch.ones(2), True),
        (torch.ones(2), torch.ones(2).double(), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        ({"a": [1, float("nan")]}, {"a": [1, float("nan")]}, True),
        ({"a": [1, 2]}, {"a": (1, 2)}, False),
        (torch.ones(3).numpy(), torch.ones(3).numpy(), True),
        (torch.ones(4).numpy(), torch.ones(2, 2).numpy(), False),
        (ComponentConfig(type="a"), ComponentConfig(type="a"), True),
        (ComponentConfig(type="a"), ComponentConfig(type="b"), False),
    ],
)
def test_sameness_is_to_the_bit(one: Any, other: Any, *, equal: bool) -> None:
    assert same(one, other) is equal


def test_running_within_bounds_tells_what_became_of_it() -> None:
    assert run_bounded(lambda: 3, 1.0).value == 3
    assert isinstance(run_bounded(lambda: 1 / 0, 1.0).error, ZeroDivisionError)
    slow = run_bounded(spin, 0.05)
    assert 0.04 < slow.seconds < 5
    assert str(slow.error) == "it was stopped after 0.05 seconds"
