"""compose, ask, inspect and demo on the command line, over tiny bases."""

import json
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

import modalloy
from fakes import HEADER, Site
from modalloy.cli import ask as ask_module
from modalloy.cli import demo
from modalloy.cli.compose import parse_coefficients
from modalloy.cli.main import run
from modalloy.errors import FormatError, SpecError
from modalloy.parent import read_manifest
from tiny import tiny_base
from toy import TYPES, toy_parent

# The toys of toy.py, as an installed plugin that reads numbers from text files.
PLUGIN = """
from pathlib import Path

def read(source, limits):
    text = source.decode() if isinstance(source, bytes) else Path(source).read_text()
    return __import__("torch").tensor([float(text)])

@hookimpl
def register_modalities(register):
    register(Modality(
        name={name!r}, api_version=API_VERSION, content_type={kind!r},
        placeholder="<|{name}|>", read=read, limits={{"bytes": 1000}},
    ))

@hookimpl
def register_encoders(register):
    register(Encoder(
        name="toy-{name}", api_version=API_VERSION, modality={name!r}, build="toy:build",
        preprocess="toy:preprocess", output_shape="toy:output_shape",
    ))

@hookimpl
def register_parents(register):
    register(Parent(
        name="{name}-toy", api_version=API_VERSION, modality={name!r}, base="base",
        strategy="decoupled", source=Path({parent!r}),
    ))
"""


@attrs.frozen
class Shell:
    """Runs the command line in this process, with its exit codes and both outputs."""

    root: Path
    capture: Any
    patch: pytest.MonkeyPatch

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self.patch.setattr(sys, "argv", ["modalloy", *map(str, words)])
        self.capture.readouterr()
        code: Any = 0
        try:
            run()
        except SystemExit as end:
            code = end.code or 0
        done = self.capture.readouterr()
        return int(code), done.out, done.err

    def json(self, *words: object) -> Any:
        code, out, err = self(*words, "--json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    base = tiny_base(root / "base", seed=3)
    for seed, name in enumerate(("sight", "sound")):
        toy_parent(root / name, base, name, seed=seed, prefix=1)
    return root


@pytest.fixture
def shell(
    site: Site,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Shell:
    for name in ("sight", "sound"):
        source = PLUGIN.format(name=name, kind=TYPES[name], parent=str(weights / name))
        site.install(f"toys-{name}", HEADER + source)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    for name, number in (("one", 0.5), ("two", 1.5), ("three", 2.5)):
        (tmp_path / f"{name}.txt").write_text(str(number))
    return Shell(tmp_path, capsys, monkeypatch)


@pytest.fixture(scope="module")
def model(weights: Path) -> Path:
    return weights / "model"


@pytest.fixture
def composed(shell: Shell, weights: Path, model: Path) -> Path:
    """Composed once, by the command line itself."""
    if not model.exists():
        record = shell.json("compose", model, "--base", weights / "base")
        assert record["model"] == str(model)
        assert [p["modality"] for p in record["parents"]] == ["sight", "sound"]
        assert record["coefficients"]["rule"] == "presence"
    return model


def test_compose_shows_parents_coefficients_and_every_tensor(shell: Shell, weights: Path) -> None:
    code, out, err = shell(
        "compose", "deep/out", "--base", weights / "base", "--modality", "sight",
        "--parent", "sight-toy", "--coefficients", "sight=0.5",
    )  # fmt: skip
    assert code == 0, err
    for words in ("damc over", "sight-toy", "CC0-1.0", "any prompt", "0.5", "merged into the text"):
        assert words in out
    assert "deep/out: composed and saved in" in out
    assert [p.name for p in (shell.root / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["one.txt"], 1, "one.txt exists and is no empty directory; choose another place"),
        (["out", "--method", "dmac"], 1, ("unknown merge method 'dmac'; known: damc, damc-ties, "
         "factor-mean, mmer, naive, swudi, ties. Did you mean 'damc'?")),
        (["out", "--method", "naive"], 1, "modality 'sight' has only decoupled ones for base"),
        (["out", "--modality", "sigth"], 1, "Did you mean 'sight'?"),
        (["out", "--coefficients", "presense"], 1, "Did you mean 'presence'?"),
        (["out", "--coefficients", "sight=x"], 1, "'sight=x' is not NAME=NUMBER"),
        (["out", "--dtype", "int8"], 1, "dtype must be auto, bfloat16, float16 or float32"),
        (["out", "--parent", "gone"], 1, "unknown parent 'gone'; known: sight-toy, sound-toy"),
        (["out", "--revision", "v1"], 1, "revision 'v1' is given, and"),
        (["out", "--bsae", "x"], 2, "No such option"),
        ([], 2, "Missing argument"),
    ],
)  # fmt: skip
def test_compose_refuses(
    shell: Shell, weights: Path, words: list[str], code: int, message: str
) -> None:
    before = sorted(p.name for p in shell.root.iterdir())
    found, _, err = shell("compose", *words, "--base", weights / "base")
    assert found == code
    assert message in err
    assert sorted(p.name for p in shell.root.iterdir()) == before


@pytest.mark.parametrize(
    ("error", "code"),
    [(OSError("disk full"), 1), (KeyboardInterrupt(), None), (MemoryError(), None)],
)
def test_a_failed_save_leaves_nothing_behind(
    shell: Shell, weights: Path, error: BaseException, code: int | None
) -> None:
    before = sorted(p.name for p in shell.root.iterdir())

    def fail(self: Any, directory: Any, *rest: Any, **more: Any) -> None:
        assert (Path(directory) / "model.safetensors").is_file(), "half of it is there"
        raise error

    shell.patch.setattr(modalloy.ModalloyProcessor, "save_pretrained", fail)
    words = ("compose", "out", "--base", weights / "base")
    if code is None and not isinstance(error, KeyboardInterrupt):
        with pytest.raises(type(error)):
            shell(*words)
    else:
        found, _, err = shell(*words)
        assert found == (code or 130)
        assert code is None or "out cannot be written: disk full" in err
    assert sorted(p.name for p in shell.root.iterdir()) == before


def test_a_directory_of_the_users_beside_it_is_left_alone(shell: Shell, weights: Path) -> None:
    mine = shell.root / "out.partial"
    mine.mkdir()
    (mine / "notes").write_text("keep")
    (shell.root / "out").mkdir()
    assert shell("compose", "out", "--base", weights / "base")[0] == 0, "it was empty"
    assert (mine / "notes").read_text() == "keep"
    assert (shell.root / "out" / "modalloy.json").is_file()


def test_ask_takes_inputs_in_the_order_given(shell: Shell, composed: Path) -> None:
    seen: list[Any] = []
    plain = ask_module.answer

    def record(model: Any, processor: Any, messages: Any, **options: Any) -> Any:
        seen.append(messages)
        return plain(model, processor, messages, **options)

    shell.patch.setattr(ask_module, "answer", record)
    data = shell.json(
        "ask", composed, "--image", "one.txt", "--audio=two.txt", "what", "--image", "three.txt",
        "--system", "be brief", "--max-new-tokens", "3",
    )  # fmt: skip
    order = [("image", "one.txt"), ("audio", "two.txt"), ("image", "three.txt")]
    assert data["inputs"] == [{"type": kind, "path": path} for kind, path in order]
    assert (data["question"], data["tokens"] <= 3) == ("what", True)
    system, user = seen[0]
    assert system == {"role": "system", "content": "be brief"}
    assert [(p["type"], str(p.get("path", p.get("text")))) for p in user["content"]] == [
        *order,
        ("text", "what"),
    ]
    code, out, _ = shell("ask", composed, "what", "--max-new-tokens", "3")
    assert code == 0
    assert out.endswith("\n")


def test_ask_answers_as_the_model_does(shell: Shell, composed: Path) -> None:
    data = shell.json("ask", composed, "--image", "one.txt", "what", "--max-new-tokens", "5")
    model, processor = modalloy.load(composed)
    content = [{"type": "image", "base64": "MC41"}, {"type": "text", "text": "what"}]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    out = model.generate(**batch, max_new_tokens=5, do_sample=False)
    new = out[0, batch["input_ids"].shape[1] :]
    assert data["answer"] == processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_an_answer_on_a_terminal_comes_as_it_is_made_and_drives_nothing(
    shell: Shell, composed: Path
) -> None:
    made, streamer = [], ask_module._streamer
    shell.patch.setattr(ask_module, "_streamer", lambda t: made.append(streamer(t)) or made[0])
    shell.patch.setattr(sys.stdout, "isatty", lambda: True)
    shell.patch.setattr(modalloy.load(composed)[1].tokenizer.__class__, "decode", red)
    code, out, _ = shell("ask", composed, "--image", "one.txt", "what", "--max-new-tokens", "5")
    assert (code, len(made)) == (0, 1)
    assert out.rstrip().endswith("\\x1b[31m")
    assert "\x1b" not in out


def test_an_option_of_its_own_is_no_input(shell: Shell, composed: Path) -> None:
    shell.patch.setattr(ask_module, "media_options", lambda: {"--json": "json"})
    assert shell.json("ask", composed, "what", "--max-new-tokens", "1")["inputs"] == []


def red(self: Any, ids: Any, **_: Any) -> str:
    """Stand in for a tokenizer's decoding: any text is a colour."""
    del self
    return f"{len(ids)} tokens \x1b[31m"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--imgae", "one.txt", "what"], 2, ("No such option: --imgae. Did you mean '--image'? "
         "Inputs: --audio, --image (see")),
        (["what", "--image"], 2, "Option '--image' needs a file."),
        (["--image", "--audio", "one.txt", "what"], 2, "Option '--image' needs a file."),
        (["--max-new-tokens", "0", "what"], 2, "Invalid value"),
        ([], 2, "Missing argument"),
        (["--dtype", "int8", "what"], 1, "dtype must be auto"),
        (["<|sight|>"], 1, "give the input as a content part of type 'image'"),
    ],
)  # fmt: skip
def test_ask_refuses(
    shell: Shell, composed: Path, words: list[str], code: int, message: str
) -> None:
    found, _, err = shell("ask", composed, *words)
    assert (found, message in err) == (code, True), err


def test_ask_of_what_is_no_composition(shell: Shell, weights: Path) -> None:
    code, _, err = shell("ask", weights / "base", "what")
    assert (code, "holds a 'llama' model, not a composition" in err) == (1, True)
    code, _, err = shell("ask", "./nowhere", "what")
    assert (code, "'./nowhere' is no directory" in err) == (1, True)


def test_a_question_may_begin_with_dashes(shell: Shell, composed: Path) -> None:
    data = shell.json("ask", "--max-new-tokens", "1", composed, "what")
    assert data["question"] == "what"
    code, out, err = shell("ask", "--max-new-tokens", "1", "--json", composed, "--", "--why?")
    assert code == 0, err
    assert json.loads(out)["question"] == "--why?"


def test_ask_lists_the_inputs_of_installed_modalities(shell: Shell) -> None:
    code, out, _ = shell("ask", "--help")
    assert code == 0
    assert "--audio FILE" in out
    assert "--image FILE" in out


def test_inspect_a_parent_by_directory_and_by_name(shell: Shell, weights: Path) -> None:
    data = shell.json("inspect", weights / "sight")
    assert shell.json("inspect", "sight-toy") == data
    assert (data["name"], data["modality"], data["prefix_tokens"]) == ("sight-toy", "sight", 1)
    text = data["deltas"]["text_adapter"]
    assert (text["modules"], text["ranks"], text["dtype"]) == (14, [4, 5], "float32")
    assert text["norm"] > 1
    assert set(data["bytes"]) == {*read_manifest(weights / "sight").files, "total"}
    code, out, _ = shell("inspect", weights / "sight")
    assert code == 0
    assert "5 files, all match" in out


def test_inspect_a_composition(shell: Shell, composed: Path) -> None:
    data = shell.json("inspect", composed)
    assert data == json.loads((composed / "modalloy.json").read_text())
    code, out, _ = shell("inspect", composed)
    assert code == 0
    for words in ("damc over base", "text alone", "several kinds", "toys-sight 1.0", "copied"):
        assert words in out


def test_a_merge_is_composed_with_options_and_shown(shell: Shell, weights: Path) -> None:
    words = ("compose", "merged", "--base", weights / "base", "--method", "damc-ties")
    code, out, err = shell(*words, "--option", "density=0.5", "--option", "rank=3")
    assert code == 0, err
    assert "merging the text deltas of sight, sound by 'damc-ties'" in err
    code, again, _ = shell("inspect", "merged")
    for shown in (out, again):
        assert "merged by damc-ties: density 0.5, rank 3, scale 1" in shown
        assert "relative error: mean 0." in shown
        assert "kept beside it" in shown
        rows = {line.strip().split("  ")[0]: line.split() for line in shown.splitlines()}
        assert rows["inputs in the prompt"][-3:] == ["sight", "sound", "merged"]
        assert rows["sound"][-3:] == ["0", "1", "0"]
        assert rows["several kinds"][-3:] == ["0", "0", "1"]
    for option, message in (
        ("rank", "--option: 'rank' is not NAME=NUMBER"),
        ("rank=0.5", "option 'rank' must be an integer, found 0.5"),
        ("rnk=1", "has no option 'rnk'; it takes density, rank, scale. Did you mean 'rank'?"),
    ):
        code, _, err = shell(*words[:1], "other", *words[2:], "--option", option)
        assert (code, message in err) == (1, True), err


def test_inspect_refuses(shell: Shell, weights: Path) -> None:
    code, _, err = shell("inspect", "sihgt-toy")
    assert code == 1
    assert "Did you mean 'sight-toy'? It is not a directory either." in err
    code, _, err = shell("inspect", weights / "base")
    assert (code, "is not a parent directory: it has no parent.json" in err) == (1, True)
    copy = shell.root / "copy"
    toy_parent(copy, weights / "base", "sight")
    (copy / "connector.safetensors").write_bytes(b"x")
    code, _, err = shell("inspect", copy)
    assert (code, "SHA-256 is" in err) == (1, True)


def test_the_demo_asks_what_it_has_modalities_for(shell: Shell, composed: Path) -> None:
    bundle = shell.root / "bundle"
    bundle.mkdir()
    (bundle / "a.txt").write_text("0.5")
    questions = [
        {"inputs": [{"type": "image", "file": "a.txt"}], "question": "what", "truth": "a"},
        {"inputs": [{"type": "smell", "file": "a.txt"}], "question": "nose?", "truth": "b"},
    ]
    (bundle / "demo.json").write_text(json.dumps({"questions": questions}))
    shell.patch.setattr(demo, "BUNDLE", bundle)
    loaded = modalloy.load(composed)
    shell.patch.setattr("modalloy.composition.compose.compose", lambda **_: loaded)
    data = shell.json("demo")
    assert [a["question"] for a in data["answers"]] == ["what"]
    assert data["skipped"] == ["nose?"]
    code, out, _ = shell("demo")
    assert code == 0
    assert "Composed sight, sound over base in" in out
    assert "left out, since no modality takes its inputs: nose?" in out


def test_the_bundled_demo_is_whole() -> None:
    data = json.loads((demo.BUNDLE / "demo.json").read_text(encoding="utf-8"))
    files = {one["file"] for item in data["questions"] for one in item["inputs"]}
    assert files
    assert all((demo.BUNDLE / name).is_file() for name in files)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("presence", "presence"),
        ("a=1,b=0.5", {"a": 1.0, "b": 0.5}),
        (" a = 1 , b=2", {"a": 1.0, "b": 2.0}),
        ("a+b:a=1,b=2", {frozenset("ab"): {"a": 1.0, "b": 2.0}}),
        (":a=0;a:a=1;", {frozenset(): {"a": 0.0}, frozenset("a"): {"a": 1.0}}),
    ],
)
def test_coefficients_as_text(text: str | None, expected: Any) -> None:
    assert parse_coefficients(text, "damc", {}) == expected


@pytest.mark.parametrize("text", ["a=1;b=2", "a=", "a=1,b", "a:b=1;c=2"])
def test_coefficients_that_cannot_be_read(text: str) -> None:
    with pytest.raises(SpecError, match="--coefficients: "):
        parse_coefficients(text, "damc", {})


def test_saving_over_a_file_in_the_way(tmp_path: Path) -> None:
    from modalloy.cli.compose import save

    (tmp_path / "file").write_text("x")
    with pytest.raises(FormatError, match="cannot be written"):
        save(None, None, tmp_path / "file" / "out")
