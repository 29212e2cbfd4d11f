"""Modalities that are wrong in ways that a quick look does not show: each is told, in words."""

import contextlib
import os
import random
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fakes import Site
from modalloy import Registry
from modalloy.errors import InputError, LimitError
from modalloy.testing import CheckFailed, check_modality
from modalloy.testing.conduct import Conduct
from modalloy.testing.report import attempt
from smelling import CONFIG, GOOD, NOTES, Nose, nose, preprocess, read


def failures(samples: Any = GOOD, **changes: Any) -> dict[str, str]:
    """Check a nose that is wrong, and return what is told, by subject and check."""
    options = {"seconds": changes.pop("seconds", 10.0)}
    with pytest.raises(CheckFailed) as caught:
        check_modality(
            "smell", registry=nose(**changes), samples=samples, configs=CONFIG, **options
        )
    return {f"{c.subject} {c.check}": c.detail for c in caught.value.checks if c.ok is False}


def reading(act: Callable[[Any], object]) -> Callable[..., Any]:
    """Return a reader that does something beside reading."""

    def reader(source: Any, limits: Mapping[str, int]) -> Any:
        found = read(source, limits)
        act(source)
        return found

    return reader


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def leave(name: str) -> None:
    Path(name).write_text("x")


def fetch(_: Any) -> None:
    with contextlib.suppress(OSError):
        urllib.request.urlopen("http://127.0.0.1:9/vocabulary")


MODALITY = "modality 'smell' conduct"
IN = "in sample 0 (bytes)"


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda _: say("reading"), "prints to standard output ('reading\\n'), in sample 0"),
        (lambda _: torch.set_default_dtype(torch.float64), f"dtype to torch.float64, {IN}"),
        (lambda _: torch.manual_seed(0), "the state of torch's random generator, in sample"),
        (lambda _: random.seed(3), "the state of Python's random generator, in sample"),
        (lambda _: torch.set_grad_enabled(False), "torch records gradients to False, in sam"),
        (lambda _: os.environ.update(NOSE="1"), f"changes the environment (NOSE), {IN}"),
        (lambda _: os.chdir("/"), f"changes the working directory to /, {IN}"),
        (lambda _: leave("log.txt"), f"files in the working directory, {IN}, log.txt"),
        (
            lambda _: tempfile.mkdtemp(prefix="nose"),
            f"files in the temporary directory, {IN}, nose",
        ),
        (fetch, "asks the network for ('127.0.0.1', 9"),
    ],
)
def test_a_reader_that_misbehaves_is_told(act: Any, text: str) -> None:
    before = torch.get_default_dtype(), dict(os.environ), Path.cwd(), socket.getaddrinfo
    found = failures(read=reading(act))
    assert text in found.pop(MODALITY), found
    assert not found
    assert before == (torch.get_default_dtype(), dict(os.environ), Path.cwd(), socket.getaddrinfo)


def downloads(source: Any, limits: Mapping[str, int]) -> Any:
    if isinstance(source, str):
        with urllib.request.urlopen(source) as answer:  # noqa: S310 - what is tested
            return read(answer.read(), limits)
    return read(source, limits)


def opens_at_once(source: Any, limits: Mapping[str, int]) -> Any:
    if isinstance(source, Path):
        try:
            source = source.read_bytes()
        except OSError as error:
            raise InputError(str(error)) from error
    return read(source, limits)


def test_a_reader_of_urls_and_pipes_is_told() -> None:
    found = failures(read=downloads)["modality 'smell' what is no input"]
    assert "a URL raised URLError: <urlopen error there is no network here" in found
    found = failures(read=opens_at_once, seconds=0.2)["modality 'smell' what is no input"]
    assert "a pipe that nobody writes to raised _TooSlow" in found
    assert "a name with a null byte raised ValueError: embedded null byte" in found


def unbounded_paths(source: Any, limits: Mapping[str, int]) -> Any:
    return read(source, {**limits, "bytes": 10**9} if isinstance(source, Path) else limits)


def strict_by_one(source: Any, limits: Mapping[str, int]) -> Any:
    if isinstance(source, bytes) and len(source) == limits["bytes"]:
        raise LimitError("too large", limit="bytes", allowed=len(source), found=len(source))
    return read(source, limits)


def vague(source: Any, limits: Mapping[str, int]) -> Any:
    try:
        return read(source, limits)
    except LimitError as error:
        raise LimitError(str(error), limit=error.limit, allowed=0, found=0) from error


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (unbounded_paths, "sample 0 (bytes) by its path has 28 bytes and was read where 27 are"),
        (strict_by_one, "by its bytes has 28 bytes, and must be read where as many are allowed"),
        (vague, "the LimitError says that 0 are allowed and 0 were found"),
    ],
)
def test_a_limit_that_holds_half_is_told(reader: Any, text: str) -> None:
    assert text in failures(read=reader)["modality 'smell' limit 'bytes'"]


def test_a_reader_that_changes_the_object_it_is_given_is_told() -> None:
    def halving(source: Any, limits: Mapping[str, int]) -> Any:
        return source.clamp_(-1, 1) if torch.is_tensor(source) else read(source, limits)

    found = failures(samples=[torch.tensor([3.0, 0.5])], read=halving)
    assert found["modality 'smell' sample 0 (Tensor)"] == (
        "reading changed the object that was given"
    )


class Odd(Nose):
    """A nose that is wrong for some inputs."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong
        if wrong == "unseeded":
            self.weight.data = torch.randn(len(self.weight))
        if wrong == "seeding":
            torch.manual_seed(0)

    def forward(self, notes: torch.Tensor) -> Any:
        if self.wrong == "mutating":
            notes.clamp_(-1, 1)
        features = super().forward(notes)
        match self.wrong:
            case "constant":
                return torch.ones_like(features)
            case "three":
                return features * 2 if len(notes) == 3 else features
            case "one row":
                return features[:1]
            case "whole numbers":
                return features.long()
            case "a tuple":
                return (features,)
            case "loud":
                say("forward")
            case "double":
                torch.set_default_dtype(torch.float64)
        return features


@pytest.mark.parametrize(
    ("wrong", "check", "text"),
    [
        ("unseeded", "built anew", "built twice, it gives one input two results"),
        ("seeding", "built anew", "build seeds torch's random generator"),
        ("mutating", "features", "forward changes the tensors that it is given"),
        ("constant", "batch", "all samples give the same features: it does not look at its input"),
        ("three", "batch", "input 0 of a batch of 3 differs by"),
        ("one row", "batch", "2 inputs gave features of 1"),
        ("whole numbers", "features", "features are torch.int64, expected floating point"),
        ("a tuple", "features", "forward must return one tensor (N, K, F), found tuple"),
        ("loud", "conduct", "it prints to standard output ('forward\\n'), in encoding 1"),
        ("double", "conduct", "it changes torch's default dtype to torch.float64, in encoding 1"),
    ],
)
def test_an_encoder_that_is_wrong_for_some_is_told(wrong: str, check: str, text: str) -> None:
    found = failures(build=lambda config: Odd(wrong))
    assert text in found[f"encoder 'nose' {check}"], found


def leaving(config: Any) -> nn.Module:
    raise SystemExit(0)


def test_a_factory_that_leaves_the_process_is_no_success() -> None:
    assert failures(build=leaving)["encoder 'nose' features"] == "SystemExit: 0"


def test_an_error_without_words_is_still_told() -> None:
    class Wordless(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def fail() -> str:
        raise Wordless

    assert "Wordless: (its message cannot be had" in attempt("a", "b", fail).detail
    assert attempt("a", "b", lambda: (_ for _ in ()).throw(InputError(""))).detail == "InputError"


def changing(decoded: torch.Tensor, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return preprocess(decoded.clamp_(-1, 1), config)


def configuring(decoded: torch.Tensor, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    config["seen"] = True
    return preprocess(decoded, config)


def mixed(decoded: torch.Tensor, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    found = preprocess(decoded, config)["notes"]
    return {"notes": found if len(decoded) == 5 else found.long()}


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (changing, "it changes what was read of sample 0"),
        (configuring, "it changes the configuration that it is given"),
        (mixed, "sample 1 gives tensors of {'notes': torch.int64}, sample 0 of {'notes': torch.fl"),
        (
            lambda d, c: {"notes": preprocess(d, c)["notes"].requires_grad_()},
            "must be on the CPU and without a gradient",
        ),
    ],
)
def test_a_preprocess_that_is_wrong_is_told(target: Any, text: str) -> None:
    configs = {"nose": dict(CONFIG["nose"])}
    with pytest.raises(CheckFailed) as caught:
        check_modality("smell", registry=nose(preprocess=target), samples=GOOD, configs=configs)
    assert text in str(caught.value)


def test_a_damaged_file_that_makes_other_shapes_is_told() -> None:
    def short(source: Any, limits: Mapping[str, int]) -> Any:
        try:
            return read(source, limits)
        except InputError:
            if isinstance(source, bytes) and source[:4] == b"SMEL":
                return torch.zeros(1)
            raise

    def whole(decoded: torch.Tensor, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"notes": decoded if len(decoded) == 1 else preprocess(decoded, config)["notes"]}

    found = failures(read=short, preprocess=whole)["modality 'smell' sample 0 (bytes), damaged"]
    assert "gives tensors {'notes': (1,)}, of a good input {'notes': (4,)}" in found


def test_a_lazy_reader_is_held_to_time_where_the_work_is_done() -> None:
    def lazy(source: Any, limits: Mapping[str, int]) -> Any:
        found = read(source, limits) if source in GOOD or not isinstance(source, bytes) else None
        return torch.full((3,), 7.0) if found is None and source[:4] == b"SMEL" else found

    def slow(decoded: torch.Tensor, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        while bool((decoded == 7).all()):
            pass
        return preprocess(decoded, config)

    found = failures(read=lazy, preprocess=slow, samples=GOOD[1:], seconds=0.05)
    text = "preprocess of encoder 'nose' raised _TooSlow: it was stopped after 0.05 seconds"
    assert text in found["modality 'smell' sample 0 (bytes), damaged"]


def test_two_alike_samples_say_nothing_of_batches() -> None:
    checks = check_modality("smell", registry=nose(), samples=[GOOD[0], GOOD[0]], configs=CONFIG)
    skipped = {check.check: check.detail for check in checks if check.ok is None}
    assert skipped == {"batch": "no two samples differ to the encoder; give another"}


PLUGIN = """
from modalloy import hookimpl
from smelling import NosePlugin

@hookimpl
def register_modalities(register):
    NosePlugin().register_modalities(register)
"""


def test_a_plugin_that_is_dear_to_load_is_told(site: Site) -> None:
    site.install("heavy", f"print('hello')\n{PLUGIN}", name="smell")
    with pytest.raises(CheckFailed) as caught:
        check_modality("smell", registry=Registry.discover(), samples=GOOD)
    found = {check.check: check.detail for check in caught.value.checks if check.ok is False}
    assert list(found) == ["plugin"]
    assert found["plugin"].startswith("loading heavy imports torch, for which every command waits")
    light = PLUGIN.replace("from smelling import NosePlugin\n", "").replace(
        "    NosePlugin()", "    from smelling import NosePlugin; NosePlugin()"
    )
    assert "imports torch" in told(site, "inside", light)
    assert "prints 'hello'" in told(
        site,
        "loud",
        "print('hello')\nfrom modalloy import hookimpl\n"
        "@hookimpl\ndef register_commands(cli): pass\n",
    )


def told(site: Site, name: str, source: str) -> str:
    from modalloy.testing.fresh import check_declaring

    site.install(name, source)
    with pytest.raises(AssertionError) as caught:
        check_declaring(name)
    return str(caught.value)


def test_watching_changes_nothing_where_nothing_is_wrong(tmp_path: Path) -> None:
    conduct = Conduct(tmp_path)
    assert conduct.watch("a sum", lambda: torch.ones(2).sum().item()) == 2
    with pytest.raises(ZeroDivisionError):
        conduct.watch("a fault", lambda: 1 / 0)
    assert conduct.verdict().startswith("leaves the process")
    assert CONFIG["nose"]["notes"] == NOTES
