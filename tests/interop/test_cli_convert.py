"""``modalloy convert``: what it prints, what it writes, and its exit codes."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from composing import CLOSE
from interop.modelcompose_fixtures import (
    HIDDEN,
    make_config,
    make_state,
    merge,
    oracle,
    save,
    write_checkpoint,
)
from modalloy.cli.main import run
from modalloy.composition.compose import load
from modalloy.errors import DeltaError
from modalloy.interop.accounting import Accounting, Row, group_rows, totals

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["modalloy", *map(str, words)])
        capsys.readouterr()
        code: Any = 0
        try:
            run()
        except SystemExit as end:
            code = end.code or 0
        done = capsys.readouterr()
        return int(code), done.out, done.err

    return call


def merged(path: Path, how: str, strategy: str = "modal+language") -> tuple[Path, Any, Any]:
    parts = [
        (make_state(m, strategy, "linear", seed), make_config(m, strategy, "linear"))
        for seed, m in enumerate(("vision", "audio"))
    ]
    state, config = merge(parts, how)
    return save(path, state, config, "adapter_model.safetensors"), state, config


def test_a_table_of_every_tensor_and_the_next_command(
    shell: Shell, base: Path, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "in", "vision")
    code, out, err = shell("convert", source, "out", "--base", base)
    assert code == 0, err
    assert "writing vision" in err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "vision decoupled clip linear out" in lines
    assert (
        "model.layers.*.self_attn.q_proj.lora_A.default.weight 2 text delta of text tokens" in lines
    )
    assert "28 text delta, 28 modality delta, 4 connector, 2 skipped" in lines
    assert "out: written" in lines
    following = f"modalloy compose MODEL --base {base} --modality vision --parent out"
    assert lines[-1] == f"next: {following}"


@pytest.mark.parametrize(
    ("how", "strategy"),
    [
        ("online-merge-reset-default-vision=0.6,default-audio=0.3", "modal+language"),
        ("mean", "modal+language"),
        ("online-merge-reset-default-vision=0.6,default-audio=0.3", "same"),
        ("mean", "same"),
    ],
)
def test_the_next_command_composes_what_was_converted(
    shell: Shell, base: Path, tmp_path: Path, how: str, strategy: str
) -> None:
    source, state, config = merged(tmp_path / "in", how, strategy)
    code, out, err = shell("convert", source, tmp_path / "out", "--base", base, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["kind"] == "ModelCompose"
    assert [parent["modality"] for parent in record["parents"]] == ["audio", "vision"]
    assert sum(row["tensors"] for row in record["accounting"]) == len(state)
    words = shlex.split(record["next"])
    assert words[:3] == ["modalloy", "compose", "MODEL"]
    code, _, err = shell(*words[1:])
    assert code == 0, err
    model, _ = load(tmp_path / "MODEL")
    draw = torch.Generator().manual_seed(3)
    embeds, types = torch.randn(1, 12, HIDDEN, generator=draw), torch.zeros(1, 12).long()
    types[:, 2:5], types[:, 7:9] = model.type_ids["vision"], model.type_ids["audio"]
    masks = {name: types == model.type_ids[name] for name in ("vision", "audio")}
    with torch.no_grad():
        found = model(inputs_embeds=embeds, mm_token_type_ids=types).logits
    goal = oracle(base, state, config, embeds, masks)
    torch.testing.assert_close(found, goal, **CLOSE)


def test_one_of_several(shell: Shell, base: Path, tmp_path: Path) -> None:
    source, _, _ = merged(tmp_path / "in", "mean")
    code, _, err = shell("convert", source, "out", "--base", base, "--modality", "audio")
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "parent.json").read_text())["modality"] == "audio"
    code, _, err = shell("convert", source, "b", "--base", base, "--modality", "smell")
    assert code == 1
    assert "error: unknown modality of this checkpoint 'smell'; known: audio, vision" in err


def test_a_pickle_has_to_be_allowed(shell: Shell, base: Path, tmp_path: Path) -> None:
    state = make_state("vision", "same", "linear", 1)
    source = save(tmp_path / "in", state, make_config("vision", "same", "linear"))
    code, out, err = shell("convert", source, "out", "--base", base)
    assert (code, out) == (1, "")
    assert "adapter_model.bin is a pickle" in err
    assert "--allow-pickle" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    code, out, err = shell("convert", source, "out", "--base", base, "--allow-pickle")
    assert code == 0, err
    assert "reading adapter_model.bin in a process of its own" in err
    assert out.splitlines()[-1].endswith("--modality vision --parent out --method naive")
    assert len(load_file(tmp_path / "out" / "text_adapter" / "adapter_model.safetensors")) == 28


def test_exit_codes(shell: Shell, base: Path, tmp_path: Path) -> None:
    assert shell("convert")[0] == 2
    assert shell("convert", "in", "out", "--modality")[0] == 2
    code, _, err = shell("convert", "nowhere", "out")
    assert code == 1
    assert "nowhere is no directory; give the local copy" in err
    (tmp_path / "empty").mkdir()
    code, _, err = shell("convert", "empty", "out")
    assert code == 1
    assert "empty holds neither config.json" in err
    source = write_checkpoint(tmp_path / "in")
    code, _, err = shell("convert", source, "out")
    assert code == 1
    assert "holds no LLM" in err
    code, _, err = shell("convert", source, "out", "--base", base, "--components", base)
    assert code == 1
    assert "is a ModelCompose checkpoint, to which 'components' does not apply" in err
    (tmp_path / "out").write_text("mine")
    code, _, err = shell("convert", source, "out", "--base", base)
    assert code == 1
    assert "out exists and is no empty directory" in err
    assert (tmp_path / "out").read_text() == "mine"


def test_it_is_listed(shell: Shell) -> None:
    code, out, _ = shell("--help")
    assert code == 0
    assert re.search(r"convert +Make parents of others' checkpoints\.", out)


def test_accounting_takes_each_tensor_once() -> None:
    book = Accounting("x", ["layers.0.a", "layers.1.a", "b"])
    book.place("layers.0.a", "text delta", "of text")
    with pytest.raises(DeltaError, match=r"would become a part of two things: text delta \(of te"):
        book.place("layers.0.a", "connector", "c")
    with pytest.raises(DeltaError, match="x has no tensor 'c' to account for"):
        book.skip("c", "why")
    with pytest.raises(DeltaError, match=r"2 of 3 tensors have no place .*: 'b', 'layers.\*.a'; e"):
        book.finish(expected="'d'")
    book.place("layers.1.a", "text delta", "of text")
    book.skip("b", "not needed")
    rows = book.finish(expected="'d'")
    assert group_rows(rows) == (
        Row("layers.*.a", "text delta", "of text", 2),
        Row("b", "skipped", "not needed", 1),
    )
    assert dict(totals(rows)) == {"text delta": 2, "skipped": 1}


def test_nothing_placed_is_an_error() -> None:
    book = Accounting("x", ["layers.0.a", "layers.1.a"])
    for name in ("layers.0.a", "layers.1.a"):
        book.skip(name, "strange")
    with pytest.raises(
        DeltaError,
        match=r"x: nothing placed. None of its 2 .* look like 'layers.\*.a', expected .* 'lora'",
    ):
        book.finish(expected="'lora'")
    assert len(book.finish(expected="'lora'", needs_delta=False)) == 2


def test_a_whole_model_and_its_compression_are_shown(shell: Shell, tmp_path: Path) -> None:
    from interop.wholes import whole_model
    from tiny import tiny_base

    base = tiny_base(tmp_path / "base", family="qwen2", seed=3)
    whole_model(tmp_path / "llava", "llava", base)
    code, out, _ = shell("convert", "llava", "parent", "--base", "base", "--energy", "0.9")
    assert code == 0
    for words in ("language_model.model.layers.*.mlp.up_proj.weight", "clip encoder of modality"):
        assert words in out
    assert re.search(r"\n +0 +7 +\d+-\d+ +\d+\.\d\d% +\d+\.\d\d% model\.layers\.0\.", out)
    code, out, _ = shell("convert", "parent", "again", "--base", "base", "--rank", "2", "--json")
    assert code == 1, "its matrices are pairs already"
    code, out, _ = shell("convert", "llava", "dense", "--base", "base")
    assert code == 0
    code, out, _ = shell("convert", "dense", "small", "--base", "base", "--rank", "2", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["kind"] == "parent"
    assert {one["rank"] for one in record["compression"]} == {2}
    assert len(record["compression"]) == 14
    code, _, err = shell("convert", "dense", "other", "--base", "base", "--seconds", "3")
    assert code == 1
    assert "'seconds' does not apply" in err
