"""Pickles: read only where asked for, in another process, and nothing but tensors."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modalloy.errors import FormatError, MissingComponentError, UnsafePathError
from modalloy.interop import pickles
from modalloy.interop.pickles import find_stem, open_all, open_pickle

GOOD = {"b": torch.arange(6.0).view(2, 3).to(torch.bfloat16), "a": torch.tensor([7])}


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def read(file: Path) -> dict[str, torch.Tensor]:
    with open_pickle(file, allow_pickle=True) as converted:
        return {name: tensor.clone() for name, tensor in load_file(converted).items()}


def refused(file: Path) -> str:
    before = file.read_bytes()
    with pytest.raises(FormatError) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert "Nothing of it was used; take a copy of the weights in safetensors" in str(caught.value)
    assert "weights_only" not in str(caught.value), "torch advises to trust the file"
    assert "Traceback" not in str(caught.value)
    assert file.read_bytes() == before
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_through_as_they_are(tmp_path: Path, *, zipped: bool) -> None:
    torch.save(GOOD, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "x.bin")
    assert found.keys() == GOOD.keys()
    for name, tensor in GOOD.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_views_parameters_and_tied_tensors(tmp_path: Path) -> None:
    whole = torch.randn(4, 4)
    tied = {"a": whole, "b": whole, "c": whole.T, "d": torch.nn.Parameter(whole[1:3])}
    torch.save(tied, tmp_path / "x.bin")
    for name, tensor in read(tmp_path / "x.bin").items():
        assert torch.equal(tensor, tied[name])


def test_not_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(GOOD, tmp_path / "x.bin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was opened"))
    with (
        pytest.raises(
            FormatError,
            match=r"x.bin is a pickle, a program .* --allow-pickle .* read in a process of its own",
        ),
        open_pickle(tmp_path / "x.bin", allow_pickle=False),
    ):
        pass


@pytest.mark.parametrize("form", ["entry", "whole", "pickle", "protocol 4"])
def test_a_pickle_that_runs_a_command_is_refused(tmp_path: Path, form: str) -> None:
    canary, file = tmp_path / "canary", tmp_path / "x.bin"
    evil = Evil(canary)
    if form == "entry":
        torch.save({**GOOD, "c": evil}, file)
    elif form == "whole":
        torch.save(evil, file)
    else:
        protocol = 2 if form == "pickle" else 4
        file.write_bytes(pickle.dumps({"a": evil}, protocol=protocol))
    message = refused(file)
    assert "cannot be read as tensors alone" in message
    if form in ("entry", "whole"):
        assert "GLOBAL posix.system" in message
    assert not canary.exists()
    pickle.loads(pickle.dumps(evil))  # noqa: S301 - our own: the canary would have shown
    assert canary.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": torch.zeros(2), "n": 3}, "has an entry 'n' that is a int, expected a tensor"),
        ({"a": {"b": torch.zeros(2)}}, "has an entry 'a' that is a dict, expected a tensor"),
        ({3: torch.zeros(2)}, "has an entry '3' that is a Tensor, expected a tensor"),
        ([torch.zeros(2)], "holds a list, expected tensors by name"),
        ({}, "holds a dict, expected tensors by name"),
        ({"a": torch.zeros(1).expand(1 << 40)}, "has a tensor 'a' whose values it does not hold"),
        ({"a": torch.eye(2).to_sparse()}, "has a tensor 'a' whose values it does not hold"),
    ],
)
def test_what_is_not_tensors_by_name(tmp_path: Path, value: Any, message: str) -> None:
    torch.save(value, tmp_path / "x.bin")
    assert message in refused(tmp_path / "x.bin")


def test_many_names_for_one_memory(tmp_path: Path) -> None:
    whole = torch.zeros(1 << 20)
    torch.save({str(i): whole for i in range(8)}, tmp_path / "x.bin")
    assert "more than twice the size of the file" in refused(tmp_path / "x.bin")


def test_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(b"no pickle")
    assert "cannot be read as tensors alone: Unsupported operand" in refused(file)
    torch.save(GOOD, file)
    file.write_bytes(file.read_bytes()[:-200])
    assert "cannot be read as tensors alone" in refused(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", "y")
    assert "cannot be read as tensors alone" in refused(file)


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(pickles, "_SCRIPT", script)
    torch.save(GOOD, tmp_path / "x.bin")
    assert "cannot be read: the process that read it ended with -9" in refused(tmp_path / "x.bin")


def test_the_environment_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('another torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil(tmp_path / "canary")}, tmp_path / "x.bin")
    assert "GLOBAL posix.system" in refused(tmp_path / "x.bin")
    assert not (tmp_path / "canary").exists()


def test_an_old_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(GOOD, tmp_path / "x.bin")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(MissingComponentError, match=r"torch 2.10 or later, .* found torch 2.9.1"):
        read(tmp_path / "x.bin")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(pickles.tempfile, "tempdir", str(place))
    torch.save(GOOD, tmp_path / "x.bin")
    torch.save([1], tmp_path / "y.bin")
    with open_pickle(tmp_path / "x.bin", allow_pickle=True) as converted:
        assert converted.is_relative_to(place)
    refused(tmp_path / "y.bin")
    assert not list(place.iterdir())


def test_safetensors_come_first(tmp_path: Path) -> None:
    torch.save({"pickled": torch.zeros(1)}, tmp_path / "x.bin")
    torch.save({"more": torch.ones(1)}, tmp_path / "y.bin")
    save_file({"plain": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert find_stem(tmp_path, "z", "y", "x") == "y"
    assert find_stem(tmp_path, "z") is None
    with open_all(tmp_path, ["x", "y"], allow_pickle=True) as weights:
        assert weights.names() == ("more", "plain")
        assert weights.files == ["x.safetensors", "y.bin"]
        assert torch.equal(weights.tensor("more"), torch.ones(1))


def test_one_name_in_two_files(tmp_path: Path) -> None:
    for name in "xy":
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with (
        pytest.raises(FormatError, match="tensor 'a' is in y and in another file beside it"),
        open_all(tmp_path, ["x", "y"], allow_pickle=False),
    ):
        pass


def test_a_link_that_leads_elsewhere(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "x.bin")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.bin").symlink_to(tmp_path / "x.bin")
    with (
        pytest.raises(UnsafePathError, match="leads outside its directory"),
        open_all(tmp_path / "in", ["x"], allow_pickle=True),
    ):
        pass
    with (
        pytest.raises(FormatError, match=r"holds neither z.safetensors nor z.bin"),
        open_all(tmp_path / "in", ["z"], allow_pickle=True),
    ):
        pass


def test_the_other_process_imports_nothing_of_ours() -> None:
    script = Path(pickles.__file__).with_name("unpickling.py")
    code = (
        "import runpy, sys; sys.argv = ['x', 'nowhere', 'nowhere.out']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit as end: print(end.code)\n"
        "print(sorted(name for name in sys.modules if name.startswith('modalloy')))"
    )
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3", "[]"]
