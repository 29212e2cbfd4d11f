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

from conformance.encoders import Small
from conformance.samples import SAMPLES
from modalloy import Registry
from modalloy.errors import ModalloyError, ModalloyWarning
from modalloy.quarantine import BUILTIN
from modalloy.smollm2 import smollm2
from modalloy.testing import build_wheel, check_modality, check_parent, check_wheel, tiny_base
from modalloy.testing.wheel_contents import source_of


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
def test_the_modality_keeps_the_contract(name: str, tmp_path: Path) -> None:
    if name not in SAMPLES:
        checks = check_modality(name, registry=installed())
        assert all(check.ok is not False for check in checks)
        return
    # Of ours, with samples and all their encoders, nothing is left that could not be looked at.
    registry = Registry.discover(strict=False)
    tiny_base(tmp_path / "base")
    registry.register(Small(name, tmp_path, registry), name="small")
    checks = check_modality(name, registry=registry, samples=SAMPLES[name]())
    assert [check for check in checks if not check.ok] == []
    run = {check.subject for check in checks if check.check == "batch"}
    encoders = [kind for kind in registry.encoders.values() if kind.modality == name]
    assert run == {f"encoder {kind.name!r}" for kind in encoders}
    limits = {check.check for check in checks if check.check.startswith("limit ")}
    assert limits == {f"limit {limit!r}" for limit in registry.modality(name).limits}


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
