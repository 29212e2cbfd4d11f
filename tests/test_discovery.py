"""Entry points, allow and deny lists, and what a plugin must look like."""

import types

import pytest

from fakes import HEADER, Site, modality_source
from modalloy import Registry
from modalloy.discovery import discover
from modalloy.errors import ModalloyWarning, PluginError, UnknownNameError


@pytest.fixture
def three(site: Site) -> Site:
    """Return a site with plugins a and c in order, and b broken."""
    site.install("a", modality_source("ma"))
    site.install("b", "raise OSError('gone')")
    site.install("c", modality_source("mc"))
    return site


def loaded(registry: Registry) -> list[str]:
    return [r.name for r in registry.reports if r.status == "loaded" and r.name != "builtin"]


def test_reports_say_where_a_plugin_comes_from(site: Site) -> None:
    site.install("My-Dist", modality_source("smell"), name="smelling", version="2.5")
    (plugin,) = discover()
    report = plugin.report
    assert (report.name, report.distribution, report.version) == ("smelling", "My-Dist", "2.5")
    assert report.hooks == ("register_modalities",)
    assert (report.stage, report.error, report.exception) == (None, None, None)


def test_a_broken_plugin_that_nobody_asked_for_warns(three: Site) -> None:
    with pytest.warns(
        ModalloyWarning, match=r"plugin 'b' \(b 1.0\) failed at import: OSError: gone"
    ):
        registry = Registry.discover()
    assert loaded(registry) == ["a", "c"]


def test_a_broken_plugin_asked_for_by_name_raises(
    three: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        r"^plugin 'b' \(b 1.0\) failed at import: OSError: gone; mend, upgrade or uninstall it, "
        r"or disable it with MODALLOY_DISABLE$"
    )
    with pytest.raises(PluginError, match=text) as caught:
        Registry.discover(allow=["a", "b"])
    assert (caught.value.plugin, caught.value.stage) == ("b", "import")
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.setenv("MODALLOY_PLUGINS", "b")
    with pytest.raises(PluginError, match=text):
        Registry.discover()
    with pytest.warns(ModalloyWarning, match="failed at import"):
        assert loaded(Registry.discover(strict=False)) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", []), (" , ", []), (" a , c,", ["a", "c"]), ("c", ["c"])],
)
def test_the_allow_list(
    three: Site, monkeypatch: pytest.MonkeyPatch, value: str, expected: list[str]
) -> None:
    monkeypatch.setenv("MODALLOY_PLUGINS", value)
    registry = Registry.discover()
    assert loaded(registry) == expected
    blocked = [r for r in registry.reports if r.status == "blocked"]
    assert {r.error for r in blocked} == {"MODALLOY_PLUGINS does not name it"}


def test_the_deny_list_wins(three: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALLOY_PLUGINS", "a,b,c")
    monkeypatch.setenv("MODALLOY_DISABLE", " b ,c")
    registry = Registry.discover()
    assert loaded(registry) == ["a"]
    assert [str(r) for r in registry.reports][2:] == [
        "plugin 'b' (b 1.0) is disabled: MODALLOY_DISABLE names it",
        "plugin 'c' (c 1.0) is disabled: MODALLOY_DISABLE names it",
    ]


def test_blocked_plugins_are_not_imported(site: Site) -> None:
    site.install("a", "raise AssertionError('imported')")
    assert Registry.discover(deny=["a"]).reports[1].status == "blocked"


def test_arguments_stand_instead_of_the_environment(
    three: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODALLOY_PLUGINS", "b")
    monkeypatch.setenv("MODALLOY_DISABLE", "c")
    assert loaded(Registry.discover(allow=iter(["c"]), deny=[])) == ["c"]


@pytest.mark.parametrize("variable", ["MODALLOY_PLUGINS", "MODALLOY_DISABLE"])
def test_an_unknown_name_in_either_list_is_an_error(
    three: Site, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "a,vision")
    with pytest.raises(UnknownNameError) as caught:
        Registry.discover()
    assert str(caught.value) == (
        f"unknown plugin 'vision'; known: a, b, c. It was given in {variable}."
    )


def test_a_damaged_distribution_is_reported(site: Site) -> None:
    site.install("a", modality_source("ma"), metadata="Summary: nothing else\n")
    site.install("b", modality_source("mb"))
    site.install("c", modality_source("mc"))
    (site.path / "c-1.0.dist-info" / "METADATA").unlink()
    with pytest.warns(ModalloyWarning):
        registry = Registry.discover()
    assert loaded(registry) == ["b"]
    damaged = [(r.name, r.status, r.stage) for r in registry.reports if r.status == "failed"]
    assert damaged == [("a", "failed", "metadata"), ("c", "failed", "metadata")]


def test_no_plugin_may_take_the_cores_name(site: Site) -> None:
    site.install("a", modality_source("ma"), name="builtin")
    with pytest.warns(ModalloyWarning, match="is the core's own, and a 1.0 has the same name"):
        registry = Registry.discover()
    assert [r.status for r in registry.reports] == ["loaded", "duplicate"]
    assert list(registry.connectors) == ["linear", "mlp", "qformer"]


REGISTER = f"{HEADER}\n@hookimpl\ndef register_modalities(register):\n    "


@pytest.mark.parametrize(
    ("source", "stage", "text"),
    [
        ("x = 1", "hooks", "implements no hook; the entry point must name a module with"),
        (
            modality_source("ok") + "\ndef register_encoders(register):\n    pass\n",
            "hooks",
            "register_encoders would never be called; mark it with @modalloy.hookimpl",
        ),
        (
            REGISTER + "return [1]",
            "register_modalities",
            "must call register(...) and return nothing; it returned [1]",
        ),
        (
            REGISTER + "yield",
            "register_modalities",
            "must call register(...) and return nothing; it returned <generator",
        ),
        (
            REGISTER + "register('smell')",
            "register_modalities",
            "register takes a modalloy.Modality in register_modalities; got 'smell'",
        ),
        (
            modality_source("smell").replace("api_version=API_VERSION", "api_version=99"),
            "register_modalities",
            "is written for plugin API 99, this modalloy speaks API 1; upgrade modalloy",
        ),
        (
            modality_source("smell").replace("register(M", "for _ in '12': register(M"),
            "register_modalities",
            "plugin 'a' (a 1.0) offers modality 'smell' twice; give each its own name",
        ),
    ],
)
def test_what_is_not_a_plugin_is_told_why(site: Site, source: str, stage: str, text: str) -> None:
    site.install("a", source)
    with pytest.warns(ModalloyWarning):
        report = Registry.discover().reports[1]
    assert (report.status, report.stage) == ("failed", stage)
    assert text in str(report.error)
    assert report.modalities == ()


def test_the_callback_is_dead_after_discovery() -> None:
    kept = []
    namespace: dict[str, object] = {}
    exec(REGISTER + "kept.append(register)", {"kept": kept}, namespace)  # noqa: S102 - our own text
    plugin = types.ModuleType("keeper")
    vars(plugin).update(namespace)
    registry = Registry()
    registry.register(plugin, name="keeper")
    with pytest.raises(ValueError, match="register was called after register_modalities had"):
        kept[0](None)
