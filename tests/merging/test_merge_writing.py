"""How a merge is written: whole or not at all, and gone on with when it was stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import modalloy
from merging.models import SHAPES, assert_same, make_models, read, recipe, write_pair
from modalloy.errors import FormatError, UnsafePathError
from modalloy.merging import merge as merge_module

TIES = {"weight": 0.4, "density": 0.3}
LINEAR = {"weight": 0.3}


def test_a_merge_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    base, models = make_models(tmp_path)
    plain = recipe("ties", base, models, TIES)
    modalloy.merge(plain, tmp_path / "whole")
    code = (
        "import json, os, signal, sys, modalloy\n"
        "def stop(what, done, total):\n"
        "    if done > total // 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "modalloy.merge(json.loads(sys.argv[1]), sys.argv[2], progress=stop)\n"
    )
    words = [sys.executable, "-c", code, json.dumps(plain), str(tmp_path / "out")]
    killed = subprocess.run(words, check=False, capture_output=True)  # noqa: S603
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with pytest.raises(FormatError, match="go on with it by --resume, or remove it"):
        modalloy.merge(plain, tmp_path / "out")
    result = modalloy.merge(plain, tmp_path / "out", resume=True)
    assert 0 < result.resumed < len(SHAPES)
    assert_same(read(tmp_path / "out"), read(tmp_path / "whole"))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_it_does_not_go_on_with_another_recipe_or_changed_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, models = make_models(tmp_path)
    plain = recipe("ties", base, models, TIES)
    monkeypatch.setattr(merge_module, "write_files", fail)
    with pytest.raises(FormatError, match="cannot be written: on purpose"):
        modalloy.merge(plain, tmp_path / "out")
    monkeypatch.undo()
    other = recipe("linear", base, models, LINEAR)
    with pytest.raises(FormatError, match="another recipe, or of inputs that have changed"):
        modalloy.merge(other, tmp_path / "out", resume=True)
    os.utime(models[0] / "model.safetensors", (1, 1))
    with pytest.raises(FormatError, match="another recipe, or of inputs that have changed"):
        modalloy.merge(plain, tmp_path / "out", resume=True)


def test_a_full_disk_is_said_and_can_be_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, models = make_models(tmp_path)
    plain = recipe("linear", None, models, LINEAR)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(FormatError, match=r"0\.0 GB free, .* needs 0\.0 GB more; make room first"):
        modalloy.merge(plain, tmp_path / "out")
    monkeypatch.undo()
    write = os.pwrite
    left = [8]

    def full(handle: int, data: memoryview, position: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(handle, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(FormatError, match="No space left on device; make room and run"):
        modalloy.merge(plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    modalloy.merge(plain, tmp_path / "out", resume=True)
    modalloy.merge(plain, tmp_path / "again")
    assert_same(read(tmp_path / "out"), read(tmp_path / "again"))


def test_two_merges_into_one_place_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, models = make_models(tmp_path)
    plain = recipe("linear", None, models, LINEAR)
    seen = []

    def second(*_: object) -> None:
        if not seen:
            seen.append(True)
            with pytest.raises(FormatError, match="another merge is writing"):
                modalloy.merge(plain, tmp_path / "out", resume=True)
            seen.append(True)

    modalloy.merge(plain, tmp_path / "out", progress=second)
    assert seen == [True, True]


def test_what_exists_is_left_alone(tmp_path: Path) -> None:
    base, models = make_models(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    plain = recipe("ties", base, models, TIES)
    with pytest.raises(FormatError, match="no empty directory; choose another place or remove it"):
        modalloy.merge(plain, base)
    (tmp_path / "out").mkdir()
    modalloy.merge(plain, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()
    assert before == {p: p.read_bytes() for p in before}


def fail(*_: object) -> None:
    raise OSError("on purpose")


def test_a_place_that_is_a_dangling_link_is_taken(tmp_path: Path) -> None:
    base, models = make_models(tmp_path)
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="no empty directory; choose another place"):
        modalloy.merge(recipe("ties", base, models, TIES), tmp_path / "out")


def test_files_of_others_are_not_copied_through_links(tmp_path: Path) -> None:
    base, models = make_models(tmp_path)
    (tmp_path / "secret").write_text("secret")
    (base / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafePathError, match="symbolic link that leads outside its directory"):
        modalloy.merge(recipe("ties", base, models, TIES), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def stop_half_way(plain: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Begin a merge and stop it; return where what it wrote lies."""

    def stop(_: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        modalloy.merge(plain, out, progress=stop, workers=1)
    return out.parent / f".{out.name}.partial"


@pytest.mark.parametrize("harm", ["remove", "cut"])
def test_a_file_that_was_lost_meanwhile_is_written_anew(
    tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, models = make_models(tmp_path)
    plain = recipe("ties", base, models, TIES)
    modalloy.merge(plain, tmp_path / "whole")
    file = stop_half_way(plain, tmp_path / "out", monkeypatch) / "model.safetensors"
    file.unlink() if harm == "remove" else os.truncate(file, 900)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    # Stopped once more, when the file is as long as ever and hardly anything is in it.
    with pytest.raises(KeyboardInterrupt):
        modalloy.merge(plain, tmp_path / "out", resume=True, progress=stop, workers=1)
    assert modalloy.merge(plain, tmp_path / "out", resume=True).resumed == 1
    assert_same(read(tmp_path / "out"), read(tmp_path / "whole"))


def test_an_adapter_that_changed_meanwhile_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = make_models(tmp_path)
    adapter = write_pair(tmp_path / "adapter")
    plain = recipe("task_arithmetic", base, [adapter], {"weight": 1})
    stop_half_way(plain, tmp_path / "out", monkeypatch)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    with pytest.raises(FormatError, match="inputs that have changed since"):
        modalloy.merge(plain, tmp_path / "out", resume=True)


def test_what_lies_in_the_way_is_neither_mixed_in_nor_removed(tmp_path: Path) -> None:
    base, models = make_models(tmp_path)
    mine = tmp_path / ".out.partial" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    for resume in (False, True):
        with pytest.raises(FormatError, match="is in the way, and holds no merge"):
            modalloy.merge(recipe("ties", base, models, TIES), tmp_path / "out", resume=resume)
    assert mine.read_text() == "mine"


def test_a_broken_journal_costs_work_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, models = make_models(tmp_path)
    plain = recipe("ties", base, models, TIES)
    modalloy.merge(plain, tmp_path / "whole")
    journal = stop_half_way(plain, tmp_path / "out", monkeypatch) / "merge.journal"
    journal.write_bytes(journal.read_bytes() + b'5\n[]\n"model.\xff')
    assert modalloy.merge(plain, tmp_path / "out", resume=True).resumed > 0
    assert_same(read(tmp_path / "out"), read(tmp_path / "whole"))
