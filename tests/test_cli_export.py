"""export on the command line, where none of the composition's plugins is installed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from composing import compose
from fakes import Site
from modalloy.cli.main import run
from tiny import tiny_base
from toy import toy_parent

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def compositions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli-export")
    base = tiny_base(root / "base", seed=3)
    for method, strategy in (("damc", "decoupled"), ("naive", "naive")):
        parents = [
            toy_parent(root / f"{method}-{name}", base, name, strategy=strategy, seed=seed)
            for seed, name in enumerate(("sight", "sound"))
        ]
        model, processor = compose(base, parents, method=method)
        model.save_pretrained(root / method)
        processor.save_pretrained(root / method)
    return root


@pytest.fixture
def shell(site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["modalloy", "export", *map(str, words)])
        capsys.readouterr()
        code: Any = 0
        try:
            run()
        except SystemExit as end:
            code = end.code or 0
        done = capsys.readouterr()
        return int(code), done.out, done.err

    return call


def test_a_plain_model_is_written_and_shown(
    shell: Shell, compositions: Path, tmp_path: Path
) -> None:
    code, out, err = shell(compositions / "naive", tmp_path / "plain")
    assert code == 0, err
    assert "Every tensor of the composition" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["sight", "0.5"] in lines
    assert ["base", "14", "text", "deltas", "folded", "into", "it"] in lines
    assert any(line[:3] == ["encoder", "of", "sound"] for line in lines)
    assert f"{tmp_path / 'plain'}: written" in out
    weights = load_file(tmp_path / "plain" / "model.safetensors")
    assert weights.keys() == load_file(compositions / "base" / "model.safetensors").keys()


def test_json_is_the_record(shell: Shell, compositions: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapters"
    code, text, err = shell(
        compositions / "damc",
        out,
        "--format",
        "peft",
        "--coefficients",
        "sight=1,sound=0",
        "--json",
    )
    assert code == 0, err
    record = json.loads(text)
    assert record.pop("out") == str(out)
    assert record == json.loads((out / "export.json").read_text())
    assert record["coefficients"] == {"sight": 1.0, "sound": 0.0}
    assert record["adapters"] == ["text", "sight", "sound"]
    ranks = {t.shape[0] for n, t in load_file(out / "text" / "adapter_model.safetensors").items()
             if n.endswith("lora_A.weight")}  # fmt: skip
    assert ranks == {4, 5}  # of one parent alone: the other's ranks are silent


def test_the_text_stream_is_asked_for(shell: Shell, compositions: Path, tmp_path: Path) -> None:
    code, out, err = shell(compositions / "damc", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "is no single set of weights" in err
    assert "--text-stream writes the text stream alone" in err
    assert not (tmp_path / "out").exists()
    code, _, err = shell(compositions / "damc", tmp_path / "out", "--text-stream")
    assert code == 0, err
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "gguf"], "a composition is exported to transformers or peft; got 'gguf'"),
        (["--coefficients", "sight=1"], "missing or unknown: sound"),
        (["--coefficients", "sight:sight=1,sound=0"], "are one value per modality, such as"),
        (["--coefficients", "table.json"], "cannot look at what is in the prompt"),
        (["--coefficients", "presence"], "'presence' are not known to this merge method"),
        (["--format", "peft", "--text-stream"], "--text-stream belongs to --format transformers"),
    ],
)
def test_refused(
    shell: Shell, compositions: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    code, out, err = shell(compositions / "naive", tmp_path / "out", *words)
    assert (code, out) == (1, "")
    assert message in err
    assert list(tmp_path.glob("*out*")) == []


def test_what_is_no_composition_and_what_is_in_the_way(
    shell: Shell, compositions: Path, tmp_path: Path
) -> None:
    code, _, err = shell(compositions / "base", tmp_path / "out")
    assert code == 1
    assert "holds a 'llama' model, not a composition" in err
    code, _, err = shell(tmp_path / "nowhere", tmp_path / "out")
    assert code == 1
    assert "is no directory; make a composition" in err
    code, _, err = shell(compositions / "naive", compositions / "base")
    assert code == 1
    assert "exists and is no empty directory" in err


def test_it_is_listed(shell: Shell) -> None:
    code, out, _ = shell("--help")
    assert code == 0
    for option in ("--format", "--text-stream", "--coefficients", "--json"):
        assert option in out
