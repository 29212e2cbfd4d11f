"""What a naive pluggy host falls into, one test each, with really installed distributions."""

import importlib.metadata
import itertools
import subprocess
import sys

import pytest

from fakes import HEADER, Site, modality_source
from modalloy import Registry
from modalloy.errors import DuplicateNameError, ModalloyWarning, PluginError

pytestmark = pytest.mark.filterwarnings("ignore::modalloy.errors.ModalloyWarning")


def statuses(registry: Registry) -> dict[str, tuple[str, str | None]]:
    return {r.name: (r.status, r.stage) for r in registry.reports if r.name != "builtin"}


def test_trap_1_a_failing_import_does_not_end_discovery(site: Site) -> None:
    site.install("a-bad", "raise RuntimeError('no sensor')")
    site.install("b-good", modality_source("good"))
    site.install("c-gone", "import a_module_that_is_not_there")
    with pytest.warns(ModalloyWarning) as caught:
        registry = Registry.discover()
    assert statuses(registry) == {
        "a-bad": ("failed", "import"),
        "b-good": ("loaded", None),
        "c-gone": ("failed", "import"),
    }
    assert list(registry.modalities) == ["good"]
    assert [str(w.message) for w in caught] == [
        "plugin 'a-bad' (a-bad 1.0) failed at import: RuntimeError: no sensor",
        (
            "plugin 'c-gone' (c-gone 1.0) failed at import: ModuleNotFoundError: No module named "
            "'a_module_that_is_not_there'"
        ),
    ]


@pytest.mark.parametrize("hazard", ["import sys; sys.exit(3)", "raise BaseException('panic')"])
def test_trap_1_not_even_by_leaving_the_process(site: Site, hazard: str) -> None:
    site.install("a-bad", hazard)
    site.install("b-good", modality_source("good"))
    registry = Registry.discover()
    assert statuses(registry)["a-bad"] == ("failed", "import")
    assert list(registry.modalities) == ["good"]


def test_an_interrupt_is_not_a_plugins_failure(site: Site) -> None:
    site.install("a-bad", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Registry.discover()


def test_trap_2_one_name_in_two_distributions_is_neither(site: Site) -> None:
    site.install("z-dist", modality_source("z"), name="smell")
    site.install("a-dist", modality_source("a"), name="smell", version="2.1")
    site.install("other", modality_source("good"))
    registry = Registry.discover()
    assert list(registry.modalities) == ["good"]
    twins = [r for r in registry.reports if r.name == "smell"]
    assert [(r.distribution, r.status) for r in twins] == [
        ("a-dist", "duplicate"),
        ("z-dist", "duplicate"),
    ]
    text = (
        "plugin 'smell' is declared by a-dist 2.1 and by z-dist 1.0, and neither is preferred; "
        "uninstall one of them"
    )
    assert {r.error for r in twins} == {text}
    assert isinstance(twins[0].exception, DuplicateNameError)
    assert twins[0].exception.owners == ("a-dist", "z-dist")


def test_trap_3_order_is_by_name_however_found(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, modality in (("p-c", "m1"), ("p-a", "m9"), ("p-b", "m5")):
        site.install(name, modality_source(modality))
    found = list(importlib.metadata.entry_points(group="modalloy"))
    assert len(found) == 3
    for order in itertools.permutations(found):
        points = importlib.metadata.EntryPoints(order)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group, p=points: p)
        registry = Registry.discover()
        assert [r.name for r in registry.reports] == ["builtin", "p-a", "p-b", "p-c"]
        assert list(registry.modalities) == ["m1", "m5", "m9"]


def test_trap_3_order_is_free_of_the_hash_seed(site: Site) -> None:
    for name in "cbza":
        site.install(f"p-{name}", modality_source(f"m{name}"))
    site.install("p-twin", modality_source("mb"))
    site.install("p-b-other", modality_source("other"), name="p-b")
    code = (
        "import modalloy; r = modalloy.Registry.discover(strict=False);"
        "print([str(x) for x in r.reports], list(r.modalities))"
    )
    outputs = {
        subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-W", "ignore", "-c", code],
            env=site.environment(PYTHONHASHSEED=seed, MODALLOY_PLUGINS="p-a,p-b,p-c,p-z,p-twin"),
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "42")
    }
    assert len(outputs) == 1


LATE_FAILURE = (
    modality_source("half")
    + """
@hookimpl
def register_encoders(register):
    raise OSError("encoder store is away")
"""
)


def test_trap_4_what_fails_late_leaves_nothing_behind(site: Site) -> None:
    site.install("a-half", LATE_FAILURE)
    registry = Registry.discover()
    report = registry.reports[1]
    assert (report.status, report.stage) == ("failed", "register_encoders")
    assert report.error == "OSError: encoder store is away"
    assert (report.hooks, report.modalities) == ((), ())
    assert not registry.modalities
    assert registry.implementations("register_modalities") == ()
    with pytest.raises(
        PluginError, match=r"modality 'half' needs it: plugin 'a-half' .* failed at"
    ):
        registry.modality("half")


def test_trap_5_a_misspelled_hook_is_refused(site: Site) -> None:
    source = modality_source("smell").replace("register_modalities", "register_modalites")
    site.install("a-typo", source)
    report = Registry.discover().reports[1]
    assert (report.status, report.stage) == ("failed", "hooks")
    assert report.error is not None
    assert "there is no hook 'register_modalites'" in report.error
    assert report.error.endswith("Did you mean 'register_modalities'?")


@pytest.mark.parametrize(
    "signature", ["register=print", "register, extra=1", "*, register=None", "", "**register"]
)
def test_trap_6_an_argument_that_pluggy_never_passes_is_refused(site: Site, signature: str) -> None:
    source = f"{HEADER}\n@hookimpl\ndef register_modalities({signature}):\n    pass\n"
    site.install("a-default", source)
    registry = Registry.discover()
    assert statuses(registry) == {"a-default": ("failed", "hooks")}
    assert "must take exactly one argument, 'register', without a default" in str(
        registry.reports[1].error
    )


def test_trap_7_a_raising_hook_does_not_silence_the_others(site: Site) -> None:
    raising = f"{HEADER}\n@hookimpl\ndef register_modalities(register):\n    1 / 0\n"
    site.install("b-raising", raising)
    site.install("a-good", modality_source("first"))
    site.install("c-good", modality_source("second"))
    registry = Registry.discover()
    assert list(registry.modalities) == ["first", "second"]
    assert statuses(registry)["b-raising"] == ("failed", "register_modalities")


def test_trap_8_a_hook_by_specname_is_disabled_with_its_plugin(site: Site) -> None:
    source = modality_source("smell").replace(
        "@hookimpl\ndef register_modalities", '@hookimpl(specname="register_modalities")\ndef mine'
    )
    assert "def mine" in source
    site.install("a-spec", source)
    registry = Registry.discover()
    assert list(registry.modalities) == ["smell"]
    assert len(registry.implementations("register_modalities")) == 1
    registry.disable("a-spec")
    assert not registry.modalities
    assert registry.implementations("register_modalities") == ()


def test_no_plugin_gets_around_anothers_hooks(site: Site) -> None:
    wrapper = f"""{HEADER}
@hookimpl(wrapper=True, tryfirst=True)
def register_modalities(register):
    raise RuntimeError("wraps everything")
    yield
"""
    site.install("a-wrapper", wrapper)
    site.install("b-good", modality_source("good"))
    registry = Registry.discover()
    assert statuses(registry)["b-good"] == ("loaded", None)
    assert statuses(registry)["a-wrapper"] == ("failed", "register_modalities")
