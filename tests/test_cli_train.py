"""``modalloy train`` and its progress, run as users run it, with a plugin that is installed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from safetensors.torch import load_file

import toy_media
from fakes import Site
from modalloy.cli import main
from modalloy.cli import progress as progress_module
from modalloy.cli.progress import progress_bar
from modalloy.parent import read_manifest, verify_files
from tiny import tiny_base
from toy_media import number_config, write_data


@pytest.fixture
def numbers(site: Site) -> Site:
    """Return a site where the toy modality is installed."""
    site.install("toy-numbers", Path(toy_media.__file__).read_text(encoding="utf-8"))
    return site


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a configuration on disk, with its base; its data lie in ``data`` beside it."""
    write_data(tmp_path / "data")
    return written(tmp_path)


def written(directory: Path, **changes: Any) -> Path:
    base = directory / "base"
    if not base.exists():
        tiny_base(base, seed=3)
    file = directory / "train.yml"
    values = attrs.asdict(number_config(base, **changes))
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


@attrs.frozen
class Done:
    """What a command came to."""

    returncode: object
    stdout: str
    stderr: str


@pytest.fixture
def modalloy(
    numbers: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Return a function that runs ``modalloy train`` in this process, for speed."""

    def command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["modalloy", "train", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main.run()
        out, err = capfd.readouterr()
        told = [line for line in err.splitlines(keepends=True) if "Loading weights" not in line]
        return Done(left.value.code or 0, out, "".join(told).lstrip("\n"))

    return command


def launch(site: Site, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, *map(str, arguments)],
        env=site.environment(HOME=str(site.path), TQDM_DISABLE="1", **variables),
        cwd=site.path,
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )


def test_training_is_told_and_written(numbers: Site, config: Path, tmp_path: Path) -> None:
    output = tmp_path / "parent"
    arguments = ("train", config, output, "--data", tmp_path / "data", "--threads", 1)
    done = launch(numbers, "-m", "modalloy", *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{output}: decoupled parent sight-numbers over base"
    assert lines[1].startswith("  connector stage: loss 5.")
    assert lines[2].startswith("  tuning stage: loss ")
    assert lines[3].endswith(" s in all")
    told = done.stderr.splitlines()
    assert "encoding sight: 6/6" in told
    assert any(one.startswith("tuning stage (loss ") and one.endswith("): 8/8") for one in told)
    manifest = read_manifest(output)
    verify_files(output, manifest)
    assert manifest.modality == "sight"


def test_an_output_that_exists(modalloy: Callable[..., Done], config: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    again = modalloy(config, output, "--data", tmp_path / "data")
    assert (again.returncode, again.stdout) == (1, "")
    assert (
        again.stderr
        == f"error: {output} exists and is no empty directory; choose another place or remove it\n"
    )


def test_results_as_json(modalloy: Callable[..., Done], tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    config = written(
        tmp_path, connector_stage={"steps": 0}, tuning_stage={"steps": 2}, validation=["val.jsonl"]
    )
    options = ("--data", tmp_path / "data", "--seed", 7, "--work", tmp_path / "w", "--json")
    done = modalloy(config, tmp_path / "parent", *options)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["parent"] == str(tmp_path / "parent")
    assert data["connector_stage"]["loss"] is None
    assert data["tuning_stage"]["loss"] > 0
    assert data["tuning_stage"]["validation_loss"] > 0
    assert read_manifest(tmp_path / "parent").training["config"]["seed"] == 7
    assert not (tmp_path / "parent.work").exists()


def test_a_stage_left_out_is_told_so(modalloy: Callable[..., Done], tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    config = written(tmp_path, connector_stage={"steps": 0}, tuning_stage={"steps": 0})
    done = modalloy(config, tmp_path / "parent", "--data", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "  connector stage: left out\n  tuning stage: left out\n" in done.stdout


def test_data_lie_beside_the_configuration(
    modalloy: Callable[..., Done], config: Path, tmp_path: Path
) -> None:
    done = modalloy(config, tmp_path / "parent")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path / 'told.jsonl'} is not there; make the data"
    )
    assert "Traceback" not in done.stderr


def test_wrong_use_and_wrong_configurations(modalloy: Callable[..., Done], tmp_path: Path) -> None:
    assert modalloy().returncode == 2
    assert modalloy("a.yml", "b", "--threads", "0").returncode == 2
    (tmp_path / "train.yml").write_text("name: x\nstrategie: naive\n", encoding="utf-8")
    done = modalloy(tmp_path / "train.yml", tmp_path / "parent")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'train.yml'}: ")
    assert "Did you mean 'strategy'?" in done.stderr


def test_two_processes_write_one_parent(numbers: Site, config: Path, tmp_path: Path) -> None:
    # As accelerate launches them on several GPUs; for CPUs, itself wants an MPI installed.
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    output = tmp_path / "parent"
    arguments = ("train", config, output, "--data", tmp_path / "data", "--json")
    done = launch(numbers, *launcher, "-m", "modalloy", *arguments)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)  # one process prints
    assert done.stderr.count("encoding sight: 6/6") == 2  # once a stage, told by one process
    verify_files(output, read_manifest(output))
    assert data["tuning_stage"]["loss"] > 0
    stored = load_file(output / "modality_adapter" / "adapter_model.safetensors")
    assert any(value.any() for name, value in stored.items() if "lora_B" in name)
    record = json.loads(next(tmp_path.glob("parent.work/*/stage.json")).read_text(encoding="utf-8"))
    assert record["processes"] == 2


def test_progress_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        for step in range(1, 4):
            progress(f"tuning (loss {step}.0)", step, 3)
        progress("validating", 1, 2)
    assert capsys.readouterr() == (
        "",
        "tuning (loss 1.0): 1/3\ntuning (loss 3.0): 3/3\nvalidating: 1/2\n",
    )


def test_progress_in_lines_comes_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 4.0, 9.0, 10.0, 12.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress_bar() as progress:
        for step in range(1, 6):
            progress("tuning", step, 9)
    assert capsys.readouterr().err == "tuning: 1/9\ntuning: 4/9\n"


def test_silent_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(silent=True) as progress:
        progress("tuning", 3, 3)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar() as progress:
        progress("tuning (loss 2.0)", 1, 3)
        progress("tuning (loss 1.5)", 3, 3)
        progress("validating", 1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tuning (loss 1.5)" in err
    assert "100%" in err
    assert "validating" in err
