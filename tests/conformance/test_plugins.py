"""Every installed plugin keeps the contract, whoever wrote it.

What is installed is asked of the registry, so that a plugin is looked at for being installed. The
modalities that come with modalloy are given samples (:mod:`conformance.samples`); of any other
less can be said, and its own tests call the same functions with samples of its own.
"""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from conformance.samples import SAMPLES, avi
from modalloy import Registry
from modalloy.errors import LimitError, ModalloyError, ModalloyWarning
from modalloy.modality import resolve
from modalloy.quarantine import BUILTIN
from modalloy.smollm2 import smollm2
from modalloy.testing import build_wheel, check_modality, check_parent, check_wheel
from modalloy.testing.wheel_checks import source_of


@cache
def installed() -> Registry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModalloyWarning)  # broken ones fail a test of their own
        return Registry.discover(strict=False)


@cache
def samples(modality: str) -> tuple[Any, ...]:
    return tuple(SAMPLES[modality]()) if modality in SAMPLES else ()


REPORTS = [report for report in installed().reports if report.name != BUILTIN]
PACKAGED = [parent for parent in installed().parents() if isinstance(parent.source, Path)]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.name)
def test_it_is_in_use_or_was_disabled(report: Any) -> None:
    assert report.status in ("loaded", "blocked"), str(report)


@pytest.mark.parametrize("name", installed().modalities)
def test_the_modality_keeps_the_contract(name: str) -> None:
    checks = check_modality(name, registry=installed(), samples=samples(name))
    assert all(check.ok is not False for check in checks)
    if name in SAMPLES:
        looked_at = {check.check for check in checks if check.ok}
        assert {"what is no input", "preprocess", "features", "frozen", "batch"} <= looked_at
        assert {f"limit {limit!r}" for limit in installed().modality(name).limits} <= looked_at


@pytest.mark.parametrize("parent", PACKAGED, ids=lambda parent: parent.name)
def test_the_parent_keeps_the_contract(parent: Any) -> None:
    # Two parents of a modality have the same encoder: it is run for one of them.
    heard = samples(parent.modality) if parent.strategy == "decoupled" else ()
    checks = check_parent(parent.name, registry=installed(), samples=heard)
    assert sum(check.check.startswith("invariant ") for check in checks) == 7


@pytest.mark.household
def test_a_shipped_parent_keeps_the_invariants_over_its_own_base() -> None:
    """One of them: the others' own tests ask them, and each takes as long as it does."""
    try:
        smollm2()
    except ModalloyError as error:
        pytest.skip(str(error))
    found = [p for p in PACKAGED if p.base == "smollm2" and p.strategy == "decoupled"]
    if not found:
        pytest.skip("no parent of smollm2 is installed")
    checks = check_parent(
        found[0].name, "smollm2", registry=installed(), samples=samples(found[0].modality)
    )
    assert all(check.ok for check in checks), checks


@pytest.mark.parametrize(
    "report", [r for r in REPORTS if r.status == "loaded"], ids=lambda report: report.name
)
def test_the_wheel_has_what_the_plugin_needs(report: Any, tmp_path: Path) -> None:
    source = source_of(report.distribution)
    wheel = None if source is None else build_wheel(source, tmp_path, quick=True)
    check_wheel(report.name, wheel, registry=installed())


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="FFmpeg's own guard acts before ours")
def test_an_avi_of_too_many_pixels_says_so() -> None:
    """It is refused, but for being damaged, which it is not."""
    video = installed().modality("video")
    with pytest.raises(Exception, match="video") as caught:
        resolve(video.read)(avi(), {**video.limits, "pixels": 100})
    assert isinstance(caught.value, LimitError)
