"""Two hundred plugins of strangers at once, half of them no good: the others work."""

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from typing import Any, NamedTuple

import pytest

from fakes import HEADER, Site, encoder_source, modality_source
from modalloy import Registry
from modalloy.cli.plugins import check
from modalloy.composition.compose import _check_distinct
from modalloy.errors import DuplicateNameError, PluginError, SpecError
from modalloy.modality import resolve
from modalloy.quarantine import SLOW

pytestmark = pytest.mark.filterwarnings("ignore::modalloy.errors.ModalloyWarning")

COUNT, HANG = 200, 2.0
SCRIPT = "from modalloy.cli.main import run; run()"


def raising_hook(body: str) -> str:
    return f"{HEADER}\n@hookimpl\ndef register_modalities(register):\n    {body}\n"


FACTORY = """
def build(config):
    raise RuntimeError("no more sensors")
"""


def source(index: int) -> tuple[str, str, str | None]:
    """Return the kind, the source and the entry-point name (its own if ``None``) of a plugin."""
    name = f"sense{index}"
    good = modality_source(name, content_type=f"kind{index}")
    turn = index % 20
    bad: dict[int, tuple[str, str, str | None]] = {
        0: ("import", "raise RuntimeError('no driver')", None),
        1: ("import", "import a_module_that_is_not_there", None),
        2: ("import", "import sys; sys.exit(1)", None),
        3: ("register_modalities", raising_hook("1 / 0"), None),
        4: ("register_modalities", raising_hook("register(42)"), None),
        5: ("register_modalities", good.replace("api_version=API_VERSION", "api_version=9"), None),
        6: ("hooks", good.replace("register_modalities", "register_modalitys"), None),
        7: ("factory", good + encoder_source(f"e{index}", name, f"plugin_{index:03}:gone"), None),
        8: ("name", good, f"twin{index // 20}"),
        9: ("name", good, f"twin{index // 20}"),
        10: ("first", modality_source(f"shared{index // 20}", f"kind{index}"), None),
        11: ("shadow", modality_source(f"shared{index // 20}", f"kind{index}") + FACTORY, None),
        12: ("token", modality_source(name, f"kind{index // 20 * 20}"), None),
        13: ("token", modality_source(name, f"kind{index // 20 * 20}"), None),
    }
    return bad.get(turn, ("good", good, None))


@pytest.fixture
def crowd(site: Site) -> dict[str, list[str]]:
    """Install them, and return their distributions by kind."""
    kinds: dict[str, list[str]] = {}
    for index in range(COUNT):
        kind, text, name = source(index)
        distribution = f"plugin-{index:03}"
        site.install(distribution, text, name=name)
        kinds.setdefault(kind, []).append(distribution)
    return kinds


def test_every_good_plugin_works_and_every_bad_one_is_told(
    site: Site, crowd: dict[str, list[str]]
) -> None:
    registry = Registry.discover()
    reports = {r.distribution: r for r in registry.reports[1:]}
    assert len(reports) == COUNT
    found = {
        kind: Counter((reports[name].status, reports[name].stage) for name in names)
        for kind, names in crowd.items()
    }
    each = COUNT // 20
    assert found == {
        "import": {("failed", "import"): 3 * each},
        "register_modalities": {("failed", "register_modalities"): 3 * each},
        "hooks": {("failed", "hooks"): each},
        "factory": {("loaded", None): each},
        "name": {("duplicate", "names"): 2 * each},
        "first": {("loaded", None): each},
        "shadow": {("duplicate", "names"): each},
        "token": {("loaded", None): 2 * each},
        "good": {("loaded", None): 6 * each},
    }
    assert all(bool(r.error) == (r.status != "loaded") for r in reports.values())
    for name in crowd["good"]:
        (modality,) = reports[name].modalities
        assert resolve(registry.modality(modality).read)("[1]") == [1]
    in_use = [name for report in reports.values() for name in report.modalities]
    assert sorted(in_use) == list(registry.modalities)


def test_what_is_shadowed_belongs_to_nobody(site: Site, crowd: dict[str, list[str]]) -> None:
    registry = Registry.discover()
    for number in range(COUNT // 20):
        with pytest.raises(DuplicateNameError, match="neither is preferred") as caught:
            registry.modality(f"shared{number}")
        first, second = f"plugin-{20 * number + 10:03}", f"plugin-{20 * number + 11:03}"
        assert caught.value.owners == (first, second)
        with pytest.raises(PluginError, match=f"'twin{number}' is declared by plugin-"):
            registry.require(f"twin{number}")
    registry.disable("plugin-011")
    assert registry.modality("shared0").content_type == "kind10"


def test_token_strings_that_clash_are_refused_where_they_meet(
    site: Site, crowd: dict[str, list[str]]
) -> None:
    """Each of the two works alone: only a composition of both could not tell them apart."""
    registry = Registry.discover()
    pair = {name: registry.modality(name) for name in ("sense12", "sense13")}
    assert pair["sense12"].placeholder == pair["sense13"].placeholder
    text = "modalities 'sense12' and 'sense13' both have content_type 'kind0'"
    with pytest.raises(SpecError, match=text):
        _check_distinct(pair)


def test_a_factory_that_is_not_there_is_found_by_check(
    site: Site, crowd: dict[str, list[str]]
) -> None:
    name = crowd["factory"][0]
    failed = {c.check: c.detail for c in check(Registry.discover(), name) if c.ok is False}
    assert list(failed) == ["preprocess"]
    assert failed["preprocess"].startswith("target 'plugin_007:gone' cannot be loaded: module")


class Run(NamedTuple):
    data: list[dict[str, Any]]
    seconds: float
    cpu: float


def run(site: Site, names: list[str]) -> Run:
    """Run ``modalloy plugins --json``; the interpreter's own start is part of the time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", SCRIPT, "plugins", "--json"],
        env=site.environment(MODALLOY_PLUGINS=",".join(names)),
        capture_output=True,
        check=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert "Traceback" not in done.stderr
    return Run(json.loads(done.stdout), seconds, cpu)


def test_start_up_stays_short(site: Site, crowd: dict[str, list[str]]) -> None:
    """Under a second of work, and a plugin that hangs in its import costs its own time, no more.

    It is waited for, since nothing in Python can end an import and leave a process that can be
    trusted; MODALLOY_DISABLE leaves it out.
    """
    names = sorted({r.name for r in Registry.discover().reports[1:]})
    run(site, names)  # once for the bytecode
    quick = min((run(site, names) for _ in range(3)), key=lambda one: one.cpu)
    site.install("sleeper", f"import time; time.sleep({HANG})\n" + modality_source("sleep"))
    slow = run(site, [*names, "sleeper"])
    assert quick.cpu < 1.0
    assert slow.cpu < 1.0
    assert slow.seconds >= HANG
    told = {e["distribution"]: e for e in slow.data if e["distribution"] != "modalloy"}
    assert (told["sleeper"]["status"], told["sleeper"]["modalities"]) == ("loaded", ["sleep"])
    crowded = [entry for name, entry in told.items() if name.startswith("plugin-")]
    assert Counter(entry["status"] for entry in crowded) == {
        "loaded": 100,
        "failed": 70,
        "duplicate": 30,
    }
    assert all(e["stage"] and e["error"] for e in crowded if e["status"] != "loaded")
    assert HANG <= told["sleeper"]["seconds"] < 2 * HANG
    assert [e["name"] for e in told.values() if (e["seconds"] or 0) >= SLOW] == ["sleeper"]


def test_a_plugin_that_hangs_is_told_as_slow(site: Site) -> None:
    site.install("sleeper", f"import time; time.sleep({SLOW})\n" + modality_source("sleep"))
    site.install("tired", f"import time; time.sleep({SLOW})\nraise OSError('asleep')")
    site.install("awake", modality_source("awake"))
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", SCRIPT, "plugins"],
        env=site.environment(MODALLOY_PLUGINS="sleeper,tired,awake"),
        capture_output=True,
        check=True,
        text=True,
    )
    told = [line.split(" took ")[0] for line in done.stdout.splitlines() if "slow: " in line]
    assert told == [
        "slow: plugin 'sleeper' (sleeper 1.0)",
        "slow: plugin 'tired' (tired 1.0)",
    ]
