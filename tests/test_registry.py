"""Names in use, contested names, switching plugins on and off."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import attrs
import pytest

from fakes import HEADER, Site, encoder_source, modality_source, parent_source
from modalloy import API_VERSION, Modality, Registry
from modalloy.errors import (
    DuplicateNameError,
    ModalloyWarning,
    PluginError,
    SpecError,
    UnknownNameError,
)
from modalloy.modality import resolve


def plugin(source: str) -> types.ModuleType:
    module = types.ModuleType("fake")
    exec(source, vars(module))  # noqa: S102 - our own text
    return module


@pytest.fixture
def contested(site: Site) -> Registry:
    """Return a registry where a and b both offer the modality ``same``."""
    site.install("a", modality_source("same") + encoder_source("ea", "same"))
    site.install("b", modality_source("same") + encoder_source("eb", "same"))
    site.install("c", modality_source("other"))
    with pytest.warns(ModalloyWarning, match="plugin 'b' .* is left out"):
        return Registry.discover()


CLASH = (
    "modality 'same' is offered by plugin 'a' (a 1.0) and by plugin 'b' (b 1.0), and neither is "
    "preferred; uninstall one of them, or disable it with MODALLOY_DISABLE"
)


def test_the_core_registers_like_any_plugin() -> None:
    registry = Registry()
    assert list(registry.connectors) == ["linear", "mlp", "qformer"]
    assert {"damc", "naive"} <= set(registry.merge_methods)
    assert registry.merge_method("damc").decoupled
    assert not registry.merge_method("naive").decoupled
    report = registry.owner("connector", "mlp")
    assert (report.name, report.distribution, report.status) == ("builtin", "modalloy", "loaded")
    assert registry.reports == (report,)


def test_a_contested_name_is_nobodys(contested: Registry) -> None:
    assert list(contested.modalities) == ["other"]
    with pytest.raises(DuplicateNameError) as caught:
        contested.modality("same")
    assert str(caught.value) == CLASH
    assert caught.value.owners == ("a", "b")
    with pytest.raises(DuplicateNameError):
        contested.owner("modality", "same")


def test_the_later_plugin_of_a_contest_is_left_out_whole(contested: Registry) -> None:
    by_name = {r.name: r for r in contested.reports}
    assert [by_name[n].status for n in "abc"] == ["loaded", "duplicate", "loaded"]
    assert (by_name["b"].stage, by_name["b"].error) == ("names", CLASH)
    assert (by_name["a"].modalities, by_name["a"].encoders) == ((), ("ea",))
    assert (by_name["b"].modalities, by_name["b"].encoders) == ((), ())
    assert list(contested.encoders) == ["ea"]
    with pytest.raises(PluginError, match="a plugin is used whole or not at all"):
        contested.require("b")
    with pytest.raises(PluginError, match=r"^encoder 'eb' needs it: plugin 'b' \(b 1.0\) is left"):
        contested.encoder("eb")


@pytest.mark.parametrize(("off", "left"), [("a", "eb"), ("b", "ea")])
def test_disabling_either_side_settles_a_contest(contested: Registry, off: str, left: str) -> None:
    contested.disable(off)
    assert list(contested.modalities) == ["other", "same"]
    assert list(contested.encoders) == [left]
    with pytest.raises(DuplicateNameError):
        contested.enable(off)
    assert list(contested.encoders) == [left]


def test_a_plugin_cannot_contest_the_cores_names(site: Site) -> None:
    source = """
from modalloy import API_VERSION, Connector, hookimpl

@hookimpl
def register_connectors(register):
    register(Connector(name="mlp", api_version=API_VERSION, build="json:loads"))
"""
    site.install("a", source)
    with pytest.warns(ModalloyWarning, match="connector 'mlp' belongs to the core, and plugin 'a'"):
        registry = Registry.discover()
    assert registry.connector("mlp").build == "modalloy.connectors.mlp:build"
    assert registry.reports[1].status == "duplicate"


def test_register_is_whole_or_not_at_all() -> None:
    registry = Registry()
    first = registry.register(plugin(modality_source("same")), name="zz")
    assert (first.distribution, first.modalities) == (None, ("same",))
    state = (registry.reports, dict(registry.encoders), dict(registry.modalities))
    with pytest.raises(
        DuplicateNameError, match=r"is offered by plugin 'aa' .* and by plugin 'zz'"
    ):
        registry.register(plugin(modality_source("same") + encoder_source("e")), name="aa")
    with pytest.raises(DuplicateNameError, match="'zz' is declared by registered in code"):
        registry.register(plugin(modality_source("more")), name="zz")
    with pytest.raises(DuplicateNameError, match="plugin 'builtin' is the core's own"):
        registry.register(plugin(modality_source("more")), name="builtin")
    raising = modality_source("more") + "\n@hookimpl\ndef register_parents(register):\n    1 / 0\n"
    with pytest.raises(
        PluginError, match=r"'bad' .* failed at register_parents: ZeroDivisionError"
    ):
        registry.register(plugin(raising), name="bad")
    with pytest.raises(PluginError, match="failed at hooks: SpecError"):
        registry.register(object(), name="bad")
    assert (registry.reports, dict(registry.encoders), dict(registry.modalities)) == state


def test_instances_can_be_plugins() -> None:
    holder: dict[str, Any] = {}
    exec(modality_source("smell"), holder)  # noqa: S102 - our own text
    mark, spec = holder["hookimpl"], []
    holder["register_modalities"](spec.append)

    class Nose:
        @mark
        def register_modalities(self, register: Any) -> None:
            register(spec[0])

    registry = Registry()
    registry.register(Nose(), name="nose")
    assert registry.modality("smell") is spec[0]
    with pytest.raises(PluginError, match=r"it takes \(self, register"):
        Registry().register(Nose, name="nose")


def test_views_cannot_be_written_to_and_are_sorted() -> None:
    registry = Registry()
    for name in ("z", "a", "m"):
        registry.register(plugin(modality_source(f"x{name}")), name=name)
    assert list(registry.modalities) == ["xa", "xm", "xz"]
    view: Any = registry.modalities
    with pytest.raises(TypeError):
        view["new"] = None
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        registry.reports[0].status = "failed"  # type: ignore[misc]


def test_parents_by_base_and_modality(tmp_path: Path) -> None:
    registry = Registry()
    registry.register(plugin(HEADER + parent_source("pb", tmp_path, base="other")), name="p")
    registry.register(plugin(HEADER + parent_source("pa", tmp_path)), name="q")
    assert [p.name for p in registry.parents()] == ["pa", "pb"]
    assert [p.name for p in registry.parents(base="tiny")] == ["pa"]
    assert [p.name for p in registry.parents(modality="smell")] == ["pa", "pb"]
    assert registry.parents(base="tiny", modality="taste") == ()
    assert registry.parent("pb").base == "other"
    assert registry.owner("parent", "pb").name == "p"
    with pytest.raises(UnknownNameError, match=r"unknown parent 'pax'; known: pa, pb. Did you"):
        registry.parent("pax")


def test_disabled_plugins_supply_nothing_and_say_so(contested: Registry) -> None:
    contested.disable("c")
    assert list(contested.modalities) == []
    with pytest.raises(PluginError) as caught:
        contested.modality("other")
    assert str(caught.value) == (
        "modality 'other' needs it: plugin 'c' (c 1.0) is disabled: it was disabled in code; "
        "enable it to use it"
    )
    assert contested.enable("c").status == "loaded"
    assert contested.modality("other").name == "other"
    with pytest.raises(PluginError, match="plugin 'builtin' is the core itself and cannot be"):
        contested.disable("builtin")
    with pytest.raises(UnknownNameError, match="unknown plugin 'd'; known: a, b, builtin, c"):
        contested.disable("d")


def test_what_the_environment_disabled_can_be_enabled_in_code(site: Site) -> None:
    site.install("a", modality_source("ma"))
    site.install("b", "raise OSError('gone')")
    registry = Registry.discover(allow=[])
    assert registry.enable("a").modalities == ("ma",)
    with pytest.raises(PluginError, match=r"plugin 'b' .* failed at import: OSError: gone"):
        registry.enable("b")
    assert [r.status for r in registry.reports] == ["loaded", "loaded", "blocked"]


def test_the_context_manager_restores_what_was() -> None:
    registry = Registry()
    registry.register(plugin(modality_source("smell")), name="nose")
    before = registry.reports
    with registry as inner:
        inner.register(plugin(modality_source("more")), name="more")
        with inner:
            inner.disable("nose")
            assert list(inner.modalities) == ["more"]
        assert list(inner.modalities) == ["more", "smell"]
    assert registry.reports == before
    with pytest.raises(UnknownNameError), registry:
        [registry.disable(name) for name in ("nose", "unknown")]
    assert registry.reports == before


def test_unknown_names_say_what_to_install() -> None:
    with pytest.raises(UnknownNameError) as caught:
        Registry().encoder("timm", requires="modalloy-vision>=0.1")
    assert str(caught.value) == (
        "unknown encoder 'timm'; known: none. Install what supplies it: "
        'pip install "modalloy-vision>=0.1".'
    )
    with pytest.raises(UnknownNameError, match=r"unknown connector 'mpl'.*Did you mean 'mlp'\?"):
        Registry().connector("mpl")
    with pytest.raises(UnknownNameError, match="unknown merge method 'dam'"):
        Registry().merge_method("dam")
    with pytest.raises(UnknownNameError, match="unknown kind 'conector'"):
        Registry().owner("conector", "mlp")


def test_what_is_installed_is_not_to_be_installed(site: Site) -> None:
    site.install("modalloy-nose", modality_source("smell"), name="nose")
    message = "modalloy-nose>=0.1 is to supply it; installed is 1.0."
    with pytest.raises(UnknownNameError) as caught:
        Registry.discover().encoder("timn", requires="modalloy-nose>=0.1")
    assert str(caught.value) == f"unknown encoder 'timn'; known: none. {message}"


def test_a_name_that_only_a_broken_plugin_could_supply(site: Site) -> None:
    site.install("modalloy-vision", "raise OSError('gone')", name="vision")
    with pytest.warns(ModalloyWarning):
        registry = Registry.discover()
    with pytest.raises(PluginError, match=r"^encoder 'timm' needs it: plugin 'vision' .* failed"):
        registry.encoder("timm", requires="Modalloy_Vision[extra] >= 0.1")
    with pytest.raises(UnknownNameError, match=r"Not in use for being broken: vision \(see"):
        registry.encoder("timm")
    with pytest.raises(PluginError, match="mend, upgrade or uninstall it"):
        registry.require("vision")


def test_finding_and_looking_up_imports_no_torch(site: Site) -> None:
    site.install("a", modality_source("ma") + encoder_source("ea", "ma"))
    code = (
        "import sys, modalloy; r = modalloy.Registry.discover(); r.modality('ma'); r.encoder('ea');"
        "r.parents(); r.merge_method('damc');"
        "print(sorted({'torch', 'numpy', 'transformers', 'PIL', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code],
        env=site.environment(MODALLOY_PLUGINS="a"),
        capture_output=True,
        check=True,
        text=True,
    )
    assert result.stdout == "[]\n"


def test_content_types_and_payload_keys_of_a_modality() -> None:
    fields: dict[str, Any] = {
        "name": "smell",
        "api_version": API_VERSION,
        "content_type": "odour",
        "placeholder": "<|odour|>",
        "read": "nose:read",
        "limits": {"bytes": 1},
    }
    assert Modality(**fields).payload_keys == ("odour",)
    assert Modality(**fields, payload_keys="smell").payload_keys == ("smell",)
    with pytest.raises(SpecError, match="content type 'text' is every model's own"):
        Modality(**{**fields, "content_type": "text"})


def test_a_target_whose_module_raises_anything(site: Site) -> None:
    (site.path / "torn.py").write_text("{}['x']", encoding="utf-8")
    with pytest.raises(SpecError, match=r"^target 'torn:read' cannot be loaded: KeyError: 'x'$"):
        resolve("torn:read")
