"""The command line on an enemy's directories: one line on standard error, nothing written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import HEADER, Site
from modalloy.cli.main import run
from safety.hostile import WEIGHTS, Box, append_to, spoil_header
from toy import TYPES

MakeBox = Callable[[str], Box]
PLUGIN = """
@hookimpl
def register_modalities(register):
    register(Modality(
        name="sight", api_version=API_VERSION, content_type={kind!r}, placeholder="<|sight|>",
        read="toy:read", limits={{"bytes": 1000}},
    ))

@hookimpl
def register_encoders(register):
    register(Encoder(
        name="toy-sight", api_version=API_VERSION, modality="sight", build="toy:build",
        preprocess="toy:preprocess", output_shape="toy:output_shape",
    ))
"""

Shell = Callable[..., str]


@pytest.fixture
def refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """Runs a command, in this process, that has to fail."""
    site.install("toy-sight", HEADER + PLUGIN.format(kind=TYPES["sight"]))
    monkeypatch.setenv("COLUMNS", "200")

    def shell(inside: Box, expected: str, *words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["modalloy", *map(str, words)])
        capsys.readouterr()
        with inside.watched(), pytest.raises(SystemExit) as left:
            run()
        done = capsys.readouterr()
        assert left.value.code == 1, done.err
        assert done.out == ""
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.err
        assert expected in lines[0], done.err
        assert "Traceback" not in done.err
        assert not inside.out.exists()
        assert not list(inside.root.glob(".*partial*"))

    return shell


Commands = Callable[[Box, Path], tuple[object, ...]]
BASES: dict[str, Commands] = {
    "compose": lambda b, good: (
        "compose", b.out, "--base", b.model, "--parent", good / "parent"
    ),
    "merge": lambda b, good: ("merge", recipe(b, good), b.out),
}  # fmt: skip


def recipe(box: Box, good: Path) -> Path:
    path = box.root.parent / "recipe.yml"
    data = {
        "merge_method": "linear",
        "base_model": str(good / "base"),
        "models": [{"model": str(box.model), "parameters": {"weight": 1}}],
    }
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("command", BASES)
def test_bases(box: MakeBox, good: Path, refused: Callable[..., None], command: str) -> None:
    inside = box("base")
    words = BASES[command](inside, good)
    inside.link("chat_template.jinja", "secret.txt")
    refused(inside, "is a symbolic link that leads outside", *words)
    (inside.model / "chat_template.jinja").unlink()
    spoil_header(inside.model / WEIGHTS, lambda header: header.popitem())
    refused(inside, WEIGHTS, *words)
    (inside.model / WEIGHTS).unlink()
    inside.pickle("pytorch_model.bin")
    refused(inside, "pickles, which can run any code", *words)


@pytest.mark.parametrize("command", ["inspect", "compose"])
def test_parents(box: MakeBox, good: Path, refused: Callable[..., None], command: str) -> None:
    inside = box("parent")
    words: tuple[object, ...] = ("inspect", inside.model, "--json")
    if command == "compose":
        words = ("compose", inside.out, "--base", good / "base", "--parent", inside.model)
    inside.edit("parent.json", requires="git+https://evil.example/x")
    refused(inside, "must be a requirement such as", *words)
    inside.edit("parent.json", lambda d: d["files"].update({"../outside/secret.txt": "0" * 64}),
                requires=None)  # fmt: skip
    refused(inside, "climbs out of its directory", *words)
    inside.edit("parent.json", lambda d: d["files"].pop("../outside/secret.txt"))
    append_to(inside.model / "connector.safetensors", b"\0")
    refused(inside, "SHA-256 is", *words)
    inside.link("parent.json", "parent.json")
    refused(inside, "is a symbolic link that leads outside", *words)


@pytest.mark.parametrize("command", ["ask"])
def test_compositions(box: MakeBox, refused: Callable[..., None], command: str) -> None:
    inside = box("composition")
    words: tuple[Any, ...] = (command, inside.model, "what is it")
    inside.pickle("encoder.bin")
    inside.edit("processor_config.json", chat_template={"default": "x", "../../evil": "y"})
    refused(inside, "names a chat template '../../evil'", *words)
    inside.edit("processor_config.json", lambda data: data.pop("chat_template"))
    inside.edit("config.json", lambda d: d["modalities"]["sight"].update(requires="../evil"))
    refused(inside, "must be a requirement such as", *words)
    inside.shards(lambda _: "../outside/w.safetensors")
    refused(inside, "climbs out of its directory", *words)


@pytest.mark.parametrize("name", ["/nowhere", "../nowhere", "git+https://evil.example/x", "a:b"])
def test_what_is_no_directory(
    box: MakeBox, good: Path, refused: Callable[..., None], name: str
) -> None:
    inside = box("base")
    refused(inside, "It is not a directory either", "inspect", name)
    refused(inside, "is no directory", "ask", name, "what")
    refused(inside, "unknown base", "compose", inside.out, "--base", name)
    refused(inside, "unknown parent", "compose", inside.out, "--base", good / "base",
            "--parent", name)  # fmt: skip


@pytest.mark.parametrize("name", ["x" * 300, "x" * 70_000])
def test_names_that_are_too_long(
    box: MakeBox, good: Path, refused: Callable[..., None], name: str
) -> None:
    inside = box("base")
    refused(inside, "too long", "inspect", name)
    refused(inside, "too long", "compose", inside.out, "--base", good / "base", "--parent", name)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(36, "File name too long", "y" * 300), "(300 characters): File name too long"),
        (PermissionError(13, "Permission denied", b"x.json"), "error: x.json: Permission denied"),
        (OSError("two\nlines"), "error: the system refused something: two lines"),
        (RecursionError("maximum"), "error: what was given is nested too deeply to be read"),
    ],
)
def test_what_no_command_foresaw(
    box: MakeBox, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    error: Exception, words: str,
) -> None:  # fmt: skip
    def fail() -> None:
        raise error

    monkeypatch.setattr("modalloy.cli.main.app", fail)
    refused(box("base"), words)


def test_a_broken_pipe_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads what a command writes, such as in ``modalloy inspect x | head -1``."""

    def fail() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("modalloy.cli.main.app", fail)
    with pytest.raises(BrokenPipeError):
        run()


def test_a_terminal_that_has_no_such_letters(box: MakeBox) -> None:
    inside = box("parent")
    inside.edit("parent.json", licence="propriété \U0001f600")
    command = [sys.executable, "-c", "from modalloy.cli.main import run; run()", "inspect"]

    def shell(*words: str) -> bytes:
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            [*command, *words],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode == 0) == (done.stderr == b""), done.stderr
        return done.stdout or done.stderr

    assert b"propri\\u00e9t\\u00e9 \\ud83d\\ude00" in shell(str(inside.model))
    assert json.loads(shell(str(inside.model), "--json"))["licence"] == "propriété \U0001f600"
    assert shell("é").startswith(b"error: ")
    assert b"\\u00e9" in shell("é")
