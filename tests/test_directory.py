"""Model directories: what stands in them, and what is refused on opening."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import modalloy
from modalloy.errors import FormatError, MissingComponentError, ModalloyError, SpecError
from tiny import tiny_base
from toy import ask, toy_parent, toy_registry

SEE = ask(("image", [0.3]), "what is it")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("directory")
    base = tiny_base(root / "base", seed=3)
    parents = [
        toy_parent(root / "p1", base, "sight", seed=1, prefix=2),
        toy_parent(root / "p2", base, "sound", seed=2, strategy="naive"),
    ]
    model, processor = modalloy.compose(base, parents=parents, registry=toy_registry())
    model.save_pretrained(root / "out")
    processor.save_pretrained(root / "out")
    return root / "out"


@pytest.fixture
def saved(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def load(path: Path, **settings: Any) -> Any:
    return modalloy.load(path, **{"registry": toy_registry(), **settings})


def edit(file: Path, change: Any) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_it_is_a_plain_directory(whole: Path) -> None:
    assert sorted(p.name for p in whole.iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json",
        "modalloy.json", "model.safetensors", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    config = json.loads((whole / "config.json").read_text())
    assert config["model_type"] == "modalloy"
    assert config["architectures"] == ["ModalloyForConditionalGeneration"]
    card = (whole / "README.md").read_text()
    assert "| sight | sight-toy | decoupled | CC0-1.0 |" in card
    assert "| sound | sound-toy | naive | CC0-1.0 |" in card


def test_every_tensor_is_accounted_for(whole: Path) -> None:
    record = json.loads((whole / "modalloy.json").read_text())
    rows = {(r["source"], r["part"]): (r["tensors"], r["fate"]) for r in record["accounting"]}
    assert rows["base", "base"] == (20, "copied")
    assert rows["p1", "text delta"] == (28, "merged into the text stream")
    assert rows["p1", "modality delta"] == (28, "kept as its own stream")
    assert rows["p2", "modality delta"][1] == "kept as its own stream (post-hoc: the text delta)"
    assert rows["p1", "connector"] == (3, "kept")
    assert rows["p2", "encoder"] == (None, "opened by encoder type 'toy-sound'")
    stored = load_file(whole / "model.safetensors")
    # Text factors of the two parents are stacked: 14 layers, A and B once for text, twice for own.
    assert len(stored) == 20 + 14 * 2 * 3 + 3 + 2
    assert {p["name"] for p in record["parents"]} == {"sight-toy", "sound-toy"}
    assert all(len(value) == 64 for p in record["parents"] for value in p["files"].values())


def test_in_another_dtype(saved: Path) -> None:
    model, processor = load(saved, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    batch = processor.apply_chat_template(SEE)
    assert model(**batch).logits.dtype == torch.bfloat16


def test_an_encoders_own_weights_are_carried_along(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    parent = toy_parent(tmp_path / "p", base, "sight")
    save_file({"rows": torch.ones(1)}, parent / "encoder.safetensors")
    from modalloy.parent import read_manifest, write_manifest

    write_manifest(parent, read_manifest(parent))
    model, processor = modalloy.compose(base, parents=[parent], registry=toy_registry("sight"))
    assert model.provenance["accounting"][-1]["fate"] == "copied"
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    file = tmp_path / "out" / "encoders" / "sight.safetensors"
    assert file.read_bytes() == (parent / "encoder.safetensors").read_bytes()
    again, reader = load(tmp_path / "out")
    assert again.encoders.files == {"sight": file}
    batch = reader.apply_chat_template(SEE)
    with pytest.raises(FormatError, match="does not hold the weights of encoder 'sight'"):
        again(**batch)  # the toy has no weights: what is there is not its own
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(FormatError, match="does not hold the weights of encoder 'sight'"):
        again(**batch)


def test_generation_settings_of_the_bases_own(saved: Path, tmp_path: Path) -> None:
    """As real bases have them: not derived from the model's configuration."""
    file = saved / "generation_config.json"
    file.write_text(json.dumps({"pad_token_id": 0, "do_sample": True, "top_k": 7}))
    model, _ = load(saved)
    assert model.generation_config.top_k == 7
    assert not hasattr(model.generation_config, "registry")
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / file.name).read_text())["top_k"] == 7
    file.write_text("{")
    with pytest.raises(FormatError, match=r"generation_config\.json cannot be read"):
        load(saved)
    file.unlink()
    assert load(saved).model.generation_config.pad_token_id == 0


def drop(*path: str) -> Any:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


def put(value: Any, *path: str) -> Any:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def rename(key: str, old: str, new: str) -> Any:
    def change(data: Any) -> None:
        data[key][new] = data[key].pop(old)

    return change


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (put("llama", "model_type"), FormatError, "holds a 'llama' model, not a composition; make"),
        (drop("text_config", "model_type"), FormatError, "text_config has no model_type"),
        (put("x", "text_config", "model_type"), FormatError, "text_config"),
        (drop("modalities", "sight", "encoder"), FormatError, "encoder is missing"),
        (put(3, "modalities", "sight", "placeholder"), FormatError, "placeholder must be str"),
        (put([], "modalities"), FormatError, "modalities"),
        (drop("modalities", "sound"), SpecError, "are for sight, sound, the groups of this compo"),
        (put({}, "coefficients"), SpecError, "values by group under 'default'"),
        (put("lineer", "modalities", "sight", "connector", "type"), MissingComponentError,
         "needs the connector 'lineer', which no installed plugin supplies"),
        (put("no.such", "modalities", "sight", "text_delta", 0, "module"), ModalloyError,
         "'no.such' matches no linear layer of the base"),
        (put(9, "modalities", "sight", "text_delta", 0, "rank"), FormatError,
         "its tensors are not those that its config.json describes"),
        (put(4, "modalities", "sight", "prefix_tokens"), FormatError, "are not those"),
        (put([{"module": "x"}], "merged_delta"), FormatError, "merged_delta.0.rank is missing"),
        (rename("modalities", "sight", "merged"), FormatError, "a modality is called 'merged'"),
    ],
)  # fmt: skip
def test_a_damaged_configuration(
    saved: Path, change: Any, kind: type[ModalloyError], message: str
) -> None:
    edit(saved / "config.json", change)
    with pytest.raises(kind) as caught:
        load(saved)
    assert message in str(caught.value)


def test_damaged_weights(saved: Path) -> None:
    file = saved / "model.safetensors"
    tensors = load_file(file)
    name = min(n for n in tensors if "modality_A" in n)
    save_file({k: v for k, v in tensors.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(FormatError, match=rf"missing_keys: {name}.*save the composition again"):
        load(saved)
    save_file({**tensors, "extra": torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"unexpected_keys: extra"):
        load(saved)
    save_file(tensors, file, metadata={"format": "pt"})
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(FormatError, match=r"a safetensors file of it is damaged or was cut short"):
        load(saved)
    file.unlink()
    with pytest.raises(FormatError):
        load(saved)


def test_other_damaged_files(saved: Path) -> None:
    record = (saved / "modalloy.json").read_text()
    for text, message in (
        ("{", r"modalloy\.json cannot be read as JSON"),
        ("[]", r"modalloy\.json does not describe a composition"),
        ('{"format_version": 2}', "format_version must be 1, found 2"),
        (
            '{"format_version": 1}',
            r"modalloy\.json does not describe a composition: it lacks accou",
        ),
    ):
        (saved / "modalloy.json").write_text(text)
        with pytest.raises(FormatError, match=message):
            load(saved)
    (saved / "modalloy.json").write_text(record)
    (saved / "config.json").write_text("{")
    with pytest.raises(FormatError, match=r"is not a model directory: its config\.json cannot"):
        load(saved)


def test_no_such_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, **_: Any) -> str:
        raise OSError(f"no network to fetch {name}")

    monkeypatch.setattr("modalloy.composition.directory.snapshot_download", fetch)
    for path in (tmp_path / "nowhere", "./nowhere", "some/where/else"):
        with pytest.raises(MissingComponentError, match="is no directory; make a composition"):
            load(path)  # a path is not asked of the Hub
    with pytest.raises(MissingComponentError, match=r"nor a Hub repository .* fetch org/model"):
        load("org/model")
    with pytest.raises(FormatError, match="is not a model directory"):
        load(tmp_path)


def test_a_dtype_that_is_none(saved: Path, whole: Path) -> None:
    for call in (
        lambda: load(saved, dtype="float33"),
        lambda: modalloy.compose(
            whole.parent / "base", parents=[whole.parent / "p1"], registry=toy_registry(),
            dtype="int8",
        ),
    ):  # fmt: skip
        with pytest.raises(SpecError, match="dtype must be auto, bfloat16, float16 or float32"):
            call()
