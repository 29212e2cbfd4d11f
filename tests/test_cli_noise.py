"""Plugins that write to the descriptor itself, and commands whose errors cannot be told."""

import json
import subprocess
import sys

import pytest

from fakes import HEADER, Site, modality_source

SCRIPT = "from modalloy.cli.main import run; run()"


def run(site: Site, *arguments: str, names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", SCRIPT, *arguments],
        env=site.environment(MODALLOY_PLUGINS=names),
        capture_output=True,
        check=False,
        text=True,
    )


@pytest.mark.parametrize(
    "noise",
    ["import os; os.write(1, b'noise\\n')", "import sys; sys.__stdout__.write('noise\\n')"],
)
def test_what_a_plugin_writes_to_the_descriptor_is_not_among_the_data(
    site: Site, noise: str
) -> None:
    site.install("loud", f"{noise}\n{modality_source('loud')}")
    done = run(site, "plugins", "--json", names="loud")
    assert any(entry["name"] == "loud" for entry in json.loads(done.stdout))
    assert done.stderr == "noise\n"


@pytest.mark.parametrize(
    "error", ["Exception): __str__ = None", "BaseException): pass", "SystemExit): pass"]
)
def test_commands_that_fail_in_any_way_are_left_out(site: Site, error: str) -> None:
    hook = f"    class Odd({error}\n    raise Odd"
    site.install("odd", f"{HEADER}\n@hookimpl\ndef register_commands(cli):\n{hook}\n")
    done = run(site, "--help", names="odd")
    assert done.returncode == 0, done.stderr
    assert "adds no commands: its register_commands failed: Odd" in done.stderr
