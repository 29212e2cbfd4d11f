"""The command line, run as users run it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fakes import HEADER, Site, encoder_source, modality_source, parent_source
from modalloy import Registry
from modalloy.cli.plugins import check
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair, write_adapter
from modalloy.parent import (
    FORMAT_VERSION,
    BaseReference,
    ComponentConfig,
    Fingerprint,
    ParentManifest,
    read_manifest,
    write_manifest,
)
from modalloy.testing import parent_checks

# Imported now: sites hide the metadata that transformers looks at when it is imported.
assert parent_checks

SCRIPT = "from modalloy.cli.main import run; run()"


def modalloy(
    site: Site, *arguments: str, code: str = SCRIPT, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code, *arguments],
        env=site.environment(**variables),
        capture_output=True,
        check=False,
        text=True,
    )


def base(name: str) -> BaseReference:
    return BaseReference(
        id=name, fingerprint=Fingerprint(architecture="Tiny", structure="s", content="c")
    )


def write_parent(directory: Path, **changes: Any) -> None:
    directory.mkdir()
    tensors = {"weight": np.ones((4, 5), np.float32), "bias": np.ones(4, np.float32)}
    tensors = {f"projection.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, directory / "connector.safetensors")
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": "nose",
        "modality": "smell",
        "base": base("tiny"),
        "strategy": "naive",
        "encoder": ComponentConfig(type="sniffer"),
        "connector": ComponentConfig(type="linear"),
        "licence": "MIT",
    }
    write_manifest(directory, ParentManifest(**{**fields, **changes}))


@pytest.fixture
def nose(site: Site, tmp_path: Path) -> Site:
    """Return a site with a plugin that offers a modality, an encoder and a packaged parent."""
    write_parent(tmp_path / "nose")
    (site.path / "sniff.py").write_text("def shape(config): return 3, config.get('size', 5)\n")
    source = modality_source("smell") + encoder_source("sniffer", shape="sniff:shape")
    site.install("nose", source + parent_source("nose", tmp_path / "nose"))
    return site


def test_the_listing_as_json(nose: Site) -> None:
    nose.install("broken", "raise OSError('gone')")
    nose.install("late", modality_source("smell"))
    nose.install("off", modality_source("other"))
    nose.install("talker", "print('hello')\n" + modality_source("talk"))
    names = "nose,broken,late,talker"
    result = modalloy(nose, "plugins", "--json", MODALLOY_PLUGINS=names)
    assert (result.returncode, result.stderr) == (0, "hello\n")
    data = {entry["name"]: entry for entry in json.loads(result.stdout)}
    found = {name: data[name]["status"] for name in ("builtin", *names.split(","), "off")}
    assert found == {
        "builtin": "loaded",
        "nose": "duplicate",
        "broken": "failed",
        "late": "loaded",
        "talker": "loaded",
        "off": "blocked",
    }
    assert data["broken"]["stage"] == "import"
    assert data["broken"]["error"] == "OSError: gone"
    assert "plugin 'late' (late 1.0) and by plugin 'nose' (nose 1.0)" in data["nose"]["error"]


def test_the_listing_shows_parents_with_base_and_strategy(nose: Site) -> None:
    (entry,) = [
        entry
        for entry in json.loads(modalloy(nose, "plugins", "--json").stdout)
        if entry["name"] == "nose"
    ]
    assert 0 < entry.pop("seconds") < 10
    assert entry == {
        "name": "nose",
        "distribution": "nose",
        "version": "1.0",
        "sha256": None,
        "status": "loaded",
        "stage": None,
        "error": None,
        "hooks": ["register_encoders", "register_modalities", "register_parents"],
        "modalities": ["smell"],
        "encoders": ["sniffer"],
        "connectors": [],
        "parents": [
            {
                "name": "nose",
                "modality": "smell",
                "base": "tiny",
                "strategy": "naive",
                "licence": "MIT",
            }
        ],
        "merge_methods": [],
        "tensor_methods": [],
        "benchmarks": [],
    }
    text = modalloy(nose, "plugins", MODALLOY_DISABLE="nose").stdout
    assert "blocked: plugin 'nose' (nose 1.0) is disabled: MODALLOY_DISABLE names it" in text
    assert "parent nose (naive, on tiny)" in modalloy(nose, "plugins").stdout


@pytest.mark.parametrize("arguments", [["plugins"], ["plugins", "--json"], ["--help"]])
def test_listings_import_nothing_heavy(nose: Site, arguments: list[str]) -> None:
    heavy = {"torch", "numpy", "transformers", "PIL", "huggingface_hub"}
    heavy |= {"modalloy.cli.plugins"} if arguments == ["--help"] else set()
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr))\n"
        + SCRIPT
    )
    result = modalloy(nose, *arguments, code=code, MODALLOY_PLUGINS="nose")
    assert (result.returncode, result.stderr) == (0, "[]\n")


def test_version_help_and_wrong_use(nose: Site) -> None:
    only = {"MODALLOY_PLUGINS": "nose"}
    assert modalloy(nose, "--version", **only).stdout == "modalloy 0.1.0\n"
    result = modalloy(nose, "plugin", **only)
    assert result.returncode == 2
    assert "No such command 'plugin'. Did you mean 'plugins'?" in result.stderr
    assert modalloy(nose, "plugins", "--jsn", **only).returncode == 2


def test_an_error_is_one_line_and_exit_1(nose: Site) -> None:
    result = modalloy(nose, "plugins", MODALLOY_PLUGINS="nos")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: unknown plugin 'nos'; known: ")
    assert result.stderr.endswith("Did you mean 'nose'? It was given in MODALLOY_PLUGINS.\n")
    assert result.stderr.count("\n") == 1


def test_an_interrupt_is_exit_130(nose: Site) -> None:
    nose.install("stop", "raise KeyboardInterrupt")
    assert modalloy(nose, "plugins", MODALLOY_PLUGINS="stop").returncode == 130


def test_check_verifies_everything(nose: Site) -> None:
    result = modalloy(nose, "plugins", "check", "nose", "--json")
    data = json.loads(result.stdout)
    assert (result.returncode, data["ok"]) == (0, True)
    assert [(c["subject"], c["check"]) for c in data["checks"]] == [
        ("plugin 'nose' (nose 1.0)", "loading"),
        ("plugin 'nose' (nose 1.0)", "declaring"),
        ("encoder 'sniffer'", "output_shape"),
        ("modality 'smell'", "read"),
        ("encoder 'sniffer'", "preprocess"),
        ("encoder 'sniffer'", "build"),
        ("modality 'smell'", "apart"),
        ("encoder 'sniffer'", "modality"),
        ("parent 'nose'", "modality"),
        ("parent 'nose'", "parent.json"),
        ("parent 'nose'", "files"),
        ("parent 'nose'", "declaration"),
        ("parent 'nose'", "encoder"),
        ("parent 'nose'", "connector"),
    ]
    assert "14 checked, 0 failed" in modalloy(nose, "plugins", "check", "nose").stdout


def failures(name: str) -> dict[str, str]:
    return {c.check: c.detail for c in check(Registry.discover(), name) if c.ok is False}


def test_check_finds_damaged_weights(nose: Site, tmp_path: Path) -> None:
    (tmp_path / "nose" / "connector.safetensors").write_bytes(b"weights")
    found = failures("nose")
    assert list(found) == ["files", "connector"]
    assert "the file is damaged or was changed" in found["files"]
    result = modalloy(nose, "plugins", "check", "nose")
    assert result.returncode == 1
    assert "FAILED" in result.stdout


@pytest.mark.parametrize(
    ("encoder", "check", "message"),
    [
        ({"config": {"size": 0}}, "encoder", "must return (tokens, features), two positive"),
        ({"shape": [3, 4]}, "encoder", "records the shape [3, 4], the encoder's config"),
    ],
)
def test_check_finds_an_encoder_that_has_changed(
    nose: Site, tmp_path: Path, encoder: dict[str, Any], check: str, message: str
) -> None:
    shutil.rmtree(tmp_path / "nose")
    write_parent(tmp_path / "nose", encoder=ComponentConfig(type="sniffer", **encoder))
    assert message in failures("nose")[check]


def test_check_finds_a_connector_of_another_shape(nose: Site, tmp_path: Path) -> None:
    """The adapters tell the width of the base, 7 here."""
    adapter = tmp_path / "nose" / "text_adapter"
    name = "model.layers.0.self_attn.q_proj"
    pair = LowRankPair(torch.ones(1, 7), torch.ones(7, 1), 1.0)
    write_adapter(adapter, LowRankDelta({name: pair}), base_id="tiny")
    write_manifest(tmp_path / "nose", read_manifest(tmp_path / "nose"))
    assert "size mismatch for projection.weight" in failures("nose")["connector"]


def test_check_finds_what_another_modality_has(nose: Site) -> None:
    nose.install("other", modality_source("odour").replace('"<|smell|>"', '"<|odour|>"'))
    expected = "its content_type 'smell' is that of modality 'odour', too"
    assert failures("nose")["apart"].startswith(expected)


def test_check_finds_what_is_heavy_to_load(nose: Site) -> None:
    nose.install("slow", "import torch\n" + modality_source("other", "other"))
    assert "loading slow imports torch, for which every" in failures("slow")["declaring"]


def test_check_finds_missing_weights(nose: Site, tmp_path: Path) -> None:
    (tmp_path / "nose" / "parent.json").unlink()
    assert "was its weight data installed with the plugin?" in failures("nose")["parent.json"]


def test_check_finds_a_declaration_that_does_not_fit(site: Site, tmp_path: Path) -> None:
    write_parent(
        tmp_path / "nose",
        base=base("big"),
        encoder=ComponentConfig(type="snifer"),
        connector=ComponentConfig(type="mpl"),
        requires="smells>=2",
    )
    source = encoder_source("sniffer", target="json:nothing")
    site.install("nose", HEADER + source + parent_source("nose", tmp_path / "nose"))
    checks = check(Registry.discover(), "nose")
    found = {(c.subject, c.check): c.detail for c in checks if c.ok is False}
    assert list(found) == [
        ("encoder 'sniffer'", "preprocess"),
        ("encoder 'sniffer'", "modality"),
        ("parent 'nose'", "modality"),
        ("parent 'nose'", "declaration"),
        ("parent 'nose'", "encoder"),
        ("parent 'nose'", "connector"),
    ]
    details = list(found.values())
    assert details[0].startswith("target 'json:nothing' cannot be loaded: ")
    assert details[1] == "unknown modality 'smell'; known: none."
    assert details[3] == "base is declared 'tiny', parent.json says 'big'"
    assert 'pip install "smells>=2"' in details[4]
    assert details[5].startswith("unknown connector 'mpl'")


def test_check_finds_shapes_that_need_torch(site: Site) -> None:
    # A module that calls itself torch is enough, and takes no seconds to import.
    (site.path / "torch.py").write_text("", encoding="utf-8")
    (site.path / "shapes.py").write_text("import torch\ndef of(config): ...\n", encoding="utf-8")
    encoder = encoder_source("sniffer").replace("json:dumps", "shapes:of")
    site.install("nose", modality_source("smell") + encoder)
    result = modalloy(site, "plugins", "check", "nose", "--json", MODALLOY_PLUGINS="nose")
    assert result.returncode == 1
    bad = [c["detail"] for c in json.loads(result.stdout)["checks"] if not c["ok"]]
    assert bad == ["target 'shapes:of' imports torch, which laying out a prompt must not"]


def test_check_leaves_hub_repositories_alone(site: Site) -> None:
    parent = parent_source("nose", Path("x")).replace("Path('x')", "'someone/nose'")
    site.install("nose", modality_source("smell") + parent)
    skipped = [c for c in check(Registry.discover(), "nose") if c.ok is None]
    assert [(c.subject, c.check) for c in skipped] == [("parent 'nose'", "files")]


def test_check_of_what_is_not_in_use(site: Site) -> None:
    site.install("broken", "raise OSError('gone')")
    result = modalloy(site, "plugins", "check", "broken", "--json", MODALLOY_PLUGINS="broken")
    assert result.returncode == 1
    (found,) = json.loads(result.stdout)["checks"]
    assert found["detail"] == "plugin 'broken' (broken 1.0) failed at import: OSError: gone"
    result = modalloy(site, "plugins", "check", "broke", MODALLOY_PLUGINS="broken")
    assert result.returncode == 1
    assert result.stderr.startswith("error: unknown plugin 'broke'")


def command_source(*names: str, body: str = "print('sniffed', flush=True)") -> str:
    commands = "".join(
        f'    @cli.command("{name}")\n    def f():\n        "Sniff at it."\n        {body}\n'
        for name in names
    )
    return f"{HEADER}\n@hookimpl\ndef register_commands(cli):\n{commands or '    1 / 0'}\n"


def test_plugins_add_commands_without_harm_to_others(site: Site) -> None:
    site.install("a", command_source("sniff", "both"))
    site.install("b", command_source("both"))
    site.install("c", command_source("plugins", "more"))
    site.install("d", command_source())
    only = {"MODALLOY_PLUGINS": "a,b,c,d"}
    shown = modalloy(site, "--help", **only)
    listed = [line.split()[0] for line in shown.stdout.split("Commands:\n")[1].splitlines()]
    assert listed[-2:] == ["both", "sniff"]
    assert "more" not in listed
    assert "Sniff at it." in shown.stdout
    assert shown.stderr.splitlines() == [
        "warning: plugin 'c' (c 1.0) adds no commands: it offers plugins, which belong to the core",
        (
            "warning: plugin 'd' (d 1.0) adds no commands: its register_commands failed: "
            "ZeroDivisionError: division by zero"
        ),
    ]
    run = modalloy(site, "sniff", **only)
    assert (run.returncode, run.stdout) == (0, "sniffed\n")
    run = modalloy(site, "both", **only)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "error: command 'both' is offered by plugin 'a' (a 1.0) and by plugin 'b' (b 1.0), and "
        "neither is preferred; disable one of them with MODALLOY_DISABLE"
    )


def test_errors_of_a_command_are_told_on_one_line(site: Site) -> None:
    body = "from modalloy.errors import InputError; raise InputError('no\\nnose')"
    site.install("a", command_source("sniff", body=body))
    run = modalloy(site, "sniff", MODALLOY_PLUGINS="a")
    assert (run.returncode, run.stdout, run.stderr) == (1, "", "error: no nose\n")


def test_the_installed_script_runs() -> None:
    script = Path(sys.executable).with_name("modalloy")
    if not script.is_file():
        pytest.skip("modalloy is on the path but its console script is not installed")
    result = subprocess.run(  # noqa: S603 - our own script
        [script, "plugins", "--json"], capture_output=True, check=True, text=True
    )
    assert json.loads(result.stdout)[0]["name"] == "builtin"
