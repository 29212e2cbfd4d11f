"""Training parents on tiny bases: what is trained, what is left alone, and what is written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import modalloy
from modalloy.composition.layers import StreamLinear
from modalloy.deltas.lowrank import read_adapter
from modalloy.errors import FormatError, InputError, ModalloyError, SpecError
from modalloy.parent import ComponentConfig, ParentManifest, read_manifest, sha256
from modalloy.training import train as train_module
from modalloy.training.config import LoraConfig, TrainConfig
from modalloy.training.stages import TrainingError
from modalloy.training.train import train
from tiny import tiny_base
from toy_media import NumberEncoder, chat, number_config, number_registry, write_chats, write_data

Told = list[tuple[str, int, int]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base", seed=3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def run(config: TrainConfig, output: Path, data: Path, **options: Any) -> ParentManifest:
    return train(config, output, data=data, registry=number_registry(), **options)


def listener() -> tuple[Told, Callable[[str, int, int], None]]:
    told: Told = []
    return told, lambda what, done, total: told.append((what, done, total))


def losses(told: Told, stage: str) -> list[float]:
    """The loss of every step of a stage, as its progress told it."""
    return [float(w.partition("loss ")[2][:-1]) for w, *_ in told if w.startswith(f"{stage} (")]


def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that will hold the model as it was when its parent was written."""
    models: list[Any] = []
    write = train_module.write_parent

    def keep(model: Any, *arguments: Any) -> Any:
        models.append(model)
        return write(model, *arguments)

    monkeypatch.setattr(train_module, "write_parent", keep)
    return models


@pytest.mark.parametrize("strategy", ["decoupled", "naive"])
def test_a_parent_learns_and_composes(
    strategy: str, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, (told, progress) = captured(monkeypatch), listener()
    before = {file.name: sha256(file) for file in base.iterdir()}
    config = number_config(
        base,
        strategy=strategy,
        validation=["val.jsonl"],
        connector_stage={"steps": 20, "batch_size": 6, "learning_rate": 0.1},
        tuning_stage={"steps": 60, "batch_size": 7},
    )
    manifest = run(config, tmp_path / "parent", data, progress=progress)

    # The base is random: a connector alone can do little, and its logits are so small that even a
    # model that answers right has a loss near 2.9.
    connecting, tuning = losses(told, "connector stage"), losses(told, "tuning stage")
    assert sum(connecting[-3:]) < sum(connecting[:3]) - 0.3
    assert sum(tuning[-3:]) < 0.6 * sum(tuning[:3])
    results = manifest.training["results"]
    assert results["connector_stage"]["validation_loss"] > 5
    assert results["tuning_stage"]["validation_loss"] == pytest.approx(tuning[-1], abs=0.2)
    assert read_manifest(tmp_path / "parent") == manifest

    trained = models[0]
    frozen = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    kept = dict(trained.language_model.named_parameters())
    assert all(torch.equal(kept[name], value) for name, value in frozen.items())
    assert {file.name: sha256(file) for file in base.iterdir()} == before

    # What is stored is rounded to bfloat16; on rounded factors the two models are one.
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16().float()
    model, processor = modalloy.compose(
        base,
        parents=[tmp_path / "parent"],
        method="damc" if strategy == "decoupled" else "naive",
        registry=number_registry(),
    )
    part = {"type": "image", "path": data / "media" / "3.txt"}
    prompt = [{"role": "user", "content": [part, {"type": "text", "text": "what is it"}]}]
    batch = processor.apply_chat_template(prompt, add_generation_prompt=True)
    with torch.no_grad():
        expected = trained.eval()(**batch).logits
        torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    answer = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert processor.tokenizer.decode(answer[0], skip_special_tokens=True).endswith("high")


def test_the_text_and_the_modality_delta_are_trained_apart(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = captured(monkeypatch)
    run(number_config(base), tmp_path / "parent", data)
    text = read_adapter(tmp_path / "parent" / "text_adapter").pairs
    own = read_adapter(tmp_path / "parent" / "modality_adapter").pairs
    layers = [m for m in models[0].language_model.modules() if isinstance(m, StreamLinear)]
    assert len(text) == len(own) == len(layers) == 14
    # Above the last layer's keys and values, nothing that modality tokens compute is used.
    unused = {f"model.layers.1.{name}_proj" for name in ("mlp.gate", "mlp.up", "mlp.down")}
    unused |= {f"model.layers.1.self_attn.{name}_proj" for name in ("q", "o")}
    assert {name for name, pair in own.items() if not pair.B.any()} == unused
    assert all(pair.B.any() for pair in text.values())
    assert not any(torch.equal(text[name].A, own[name].A) for name in text)
    assert all(pair.scale == 2.0 for pair in (*text.values(), *own.values()))


def test_a_naive_parent_has_one_delta(base: Path, data: Path, tmp_path: Path) -> None:
    run(number_config(base, strategy="naive"), tmp_path / "parent", data)
    assert not (tmp_path / "parent" / "modality_adapter").exists()


def test_only_the_chosen_layers_get_a_delta(base: Path, data: Path, tmp_path: Path) -> None:
    config = number_config(base, lora=LoraConfig(rank=2, targets=["q_proj", "v_proj"]))
    run(config, tmp_path / "parent", data)
    pairs = read_adapter(tmp_path / "parent" / "text_adapter").pairs
    assert {name.rpartition(".")[2] for name in pairs} == {"q_proj", "v_proj"}
    assert len(pairs) == 4


def test_prefix_and_suffix_are_trained_and_used(base: Path, data: Path, tmp_path: Path) -> None:
    config = number_config(base, prefix_tokens=2, suffix_tokens=1)
    run(config, tmp_path / "parent", data)
    stored = load_file(tmp_path / "parent" / "connector.safetensors")
    assert stored["prefix"].shape == (2, 32)
    assert stored["suffix"].shape == (1, 32)
    assert stored["prefix"].any(dim=1).all()
    assert stored["suffix"].any(dim=1).all()
    model, processor = modalloy.compose(
        base, parents=[tmp_path / "parent"], registry=number_registry()
    )
    part = {"type": "image", "path": data / "media" / "3.txt"}
    batch = processor.apply_chat_template([{"role": "user", "content": [part]}])
    types = batch["mm_token_type_ids"][0]
    assert int((types != 0).sum()) == 2 + 3 + 1
    with torch.no_grad():
        embeds = model.embed(
            batch["input_ids"],
            batch["mm_token_type_ids"],
            {"sight_values": batch["sight_values"]},
        )[0]
    torch.testing.assert_close(embeds[types != 0][:2], stored["prefix"].float())
    torch.testing.assert_close(embeds[types != 0][-1:], stored["suffix"].float())


def test_seeds_reproduce_to_the_bit(base: Path, data: Path, tmp_path: Path) -> None:
    files = [
        run(number_config(base, seed=seed), tmp_path / f"parent{index}", data).files
        for index, seed in enumerate((5, 5, 6))
    ]
    assert files[0] == files[1]
    weights = [name for name in files[0] if name.endswith(".safetensors")]
    assert len(weights) == 3
    assert not any(files[0][name] == files[2][name] for name in weights)


def test_encoding_before_or_while_training_is_the_same(
    base: Path, data: Path, tmp_path: Path
) -> None:
    kept, progress = listener()
    run(number_config(base), tmp_path / "kept", data, progress=progress)
    fresh, progress = listener()
    run(number_config(base, cache_features=False), tmp_path / "fresh", data, progress=progress)
    for stage in ("connector stage", "tuning stage"):
        assert losses(kept, stage) == pytest.approx(losses(fresh, stage), abs=1e-3)
    assert any(what.startswith("encoding") for what, *_ in kept)
    assert not any(what.startswith("encoding") for what, *_ in fresh)


def test_a_base_in_bfloat16_trains_in_float32(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = captured(monkeypatch)
    run(number_config(base, dtype="bfloat16"), tmp_path / "parent", data)
    found = {(p.requires_grad, p.dtype) for p in models[0].parameters()}
    assert found == {(True, torch.float32), (False, torch.bfloat16)}


def test_nothing_is_printed_or_written_elsewhere(
    base: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    run(number_config(base), tmp_path / "out" / "parent", data)
    assert not list(here.iterdir())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["parent", "parent.work"]
    out, err = capfd.readouterr()
    told = [line for line in err.splitlines() if line and "Loading weights" not in line]
    assert (out, told) == ("", [])  # transformers shows how it opens the base, and no more
    # Of a finished run the connector is kept, for a further parent; checkpoints are not.
    kept = sorted(p.name for p in (tmp_path / "out" / "parent.work").rglob("*") if p.is_file())
    assert kept == ["connector.safetensors", "result.json", "stage.json"]


def test_a_stage_without_steps_is_left_out(base: Path, data: Path, tmp_path: Path) -> None:
    config = number_config(
        base, connector_stage={"steps": 0, "data": []}, tuning_stage={"steps": 0, "data": []}
    )
    manifest = run(config, tmp_path / "parent", data)
    text = (tmp_path / "parent" / "parent.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert json.loads(text)["training"]["results"]["tuning_stage"]["loss"] is None
    assert manifest.training["results"]["connector_stage"]["loss"] is None
    pairs = read_adapter(tmp_path / "parent" / "text_adapter").pairs
    assert not any(pair.B.any() for pair in pairs.values())


def test_the_record_says_what_was_done(base: Path, data: Path, tmp_path: Path) -> None:
    config = number_config(base, validation=["val.jsonl"])
    record = run(config, tmp_path / "parent", data).training
    assert record["config"] == attrs.asdict(config)
    assert record["data"] == {
        name: sha256(data / name) for name in ("asked.jsonl", "told.jsonl", "val.jsonl")
    }
    assert record["versions"]["modalloy"] == modalloy.__version__
    assert record["seconds"] > 0


def test_the_gate_stops_a_poor_connector(base: Path, data: Path, tmp_path: Path) -> None:
    config = number_config(base, connector_stage={"max_loss": 0.001})
    with pytest.raises(TrainingError) as caught:
        run(config, tmp_path / "parent", data)
    text = str(caught.value)
    assert text.startswith("connector stage: the mean loss of the last tenth of 6 steps is ")
    assert "above max_loss 0.001; train longer" in text
    assert not (tmp_path / "parent").exists()
    # The gate may be opened afterwards, and nothing is trained twice.
    told, progress = listener()
    run(number_config(base), tmp_path / "parent", data, resume=True, progress=progress)
    assert not losses(told, "connector stage")
    assert len(losses(told, "tuning stage")) == 8
    # It also stands before a finished connector that is taken as it is.
    with pytest.raises(TrainingError, match=r"connector stage: .* above max_loss 0\.001"):
        run(config, tmp_path / "other", data, work=tmp_path / "parent.work")


def test_a_loss_that_is_no_number_stops_the_run(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any, values: torch.Tensor) -> torch.Tensor:
        return torch.where(values > 1.2, float("nan"), values)  # in one input of six

    monkeypatch.setattr(NumberEncoder, "forward", broken)
    config = number_config(base, cache_features=False, connector_stage={"batch_size": 3})
    with pytest.raises(TrainingError) as caught:
        run(config, tmp_path / "parent", data)
    assert re.match("connector stage: the loss is nan at step [12]; lower ", str(caught.value))
    # Encoded before training, the culprit is known.
    with pytest.raises(InputError) as told:
        run(attrs.evolve(config, cache_features=True), tmp_path / "parent", data)
    assert str(told.value) == (
        f"{data / 'media' / '5.txt'}: its sight features are not all finite numbers; look at the "
        "file, or leave its chats out"
    )


def test_a_connector_that_no_gradient_reaches_is_an_error(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NumberEncoder, "forward", lambda _, values: torch.zeros_like(values))
    connector = ComponentConfig(type="linear", config={"bias": False})
    with pytest.raises(TrainingError) as caught:
        run(number_config(base, connector=connector), tmp_path / "parent", data)
    assert "no gradient reached the connector in any of the 6 steps" in str(caught.value)


def test_a_modality_delta_without_inputs_is_an_error(
    base: Path, data: Path, tmp_path: Path
) -> None:
    write_chats(data / "text.jsonl", [chat(None, "what is it", "a")])
    config = number_config(base, tuning_stage={"data": ["text.jsonl"]})
    with pytest.raises(TrainingError) as caught:
        run(config, tmp_path / "parent", data)
    assert "no gradient reached the connector and the modality delta" in str(caught.value)


def test_a_connector_stage_needs_inputs(base: Path, data: Path, tmp_path: Path) -> None:
    config = number_config(base, connector_stage={"data": ["asked.jsonl"]})
    with pytest.raises(FormatError) as caught:
        run(config, tmp_path / "parent", data)
    assert str(caught.value) == (
        f"{data / 'asked.jsonl'}, line 7: the chat holds no sight input, so the connector stage, "
        "which trains the connector alone, learns nothing from it; leave it to the tuning stage"
    )


def test_a_chat_longer_than_the_base_takes(base: Path, data: Path, tmp_path: Path) -> None:
    write_chats(data / "long.jsonl", [chat(None, "x" * 600, "a")])
    config = number_config(base, tuning_stage={"data": ["long.jsonl"]})
    with pytest.raises(FormatError, match=r"long\.jsonl, line 1: the chat has 6\d\d tokens, the "):
        run(config, tmp_path / "parent", data)


def test_an_output_that_exists_is_left_alone(base: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "parent"
    output.mkdir()
    (output / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FormatError) as caught:
        run(number_config(base), output, data)
    assert str(caught.value) == (
        f"{output} exists and is no empty directory; choose another place or remove it"
    )
    assert [p.name for p in output.iterdir()] == ["mine.txt"]
    assert not (tmp_path / "parent.work").exists()


def test_a_parent_that_cannot_be_written_leaves_nothing(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, stranger = tmp_path / "parent", tmp_path / "parent.partial"
    stranger.mkdir()
    (stranger / "mine.txt").write_text("mine", encoding="utf-8")
    output.mkdir()

    def fail(directory: Path, _: ParentManifest) -> ParentManifest:
        assert (directory / "connector.safetensors").is_file()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("modalloy.training.writing.write_manifest", fail)
        with pytest.raises(
            FormatError, match=r"parent cannot be written: .*No space left .*; make"
        ):
            run(number_config(base), output, data)
    assert not list(output.iterdir())
    there = {"base", "data", "parent", "parent.partial", "parent.work"}
    assert {p.name for p in tmp_path.iterdir()} == there
    run(number_config(base), output, data, resume=True)
    assert (output / "connector.safetensors").stat().st_mode & 0o777 == 0o644
    assert (stranger / "mine.txt").read_text(encoding="utf-8") == "mine"
    assert {p.name for p in tmp_path.iterdir()} == there


def test_a_place_that_cannot_be_made(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"told\.jsonl cannot be made: "):
        run(number_config(base), data / "told.jsonl" / "parent", data)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"lora": LoraConfig(targets=["q_prj"])},
            "it has down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj. Did",
        ),
        ({"attention": "fast"}, "attention: 'fast' cannot be used with this base: "),
        ({"modality": "sigt"}, "unknown modality 'sigt'; known: sight. Did you mean 'sight'?"),
        ({"encoder": ComponentConfig(type="nubers")}, "Did you mean 'numbers'?"),
        ({"validation": ["no.jsonl"]}, "no.jsonl is not there; make the data"),
    ],
)
def test_a_configuration_that_does_not_fit(
    changes: dict[str, Any], text: str, base: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModalloyError) as caught:
        run(number_config(base, **changes), tmp_path / "parent", data)
    assert text in str(caught.value)
    assert not (tmp_path / "parent").exists()


def test_an_encoder_of_another_modality(base: Path, data: Path, tmp_path: Path) -> None:
    from toy import ToyPlugin

    registry = number_registry()
    registry.register(ToyPlugin("sound"), name="toy-sound")
    config = number_config(base, encoder=ComponentConfig(type="toy-sound"))
    with pytest.raises(SpecError) as caught:
        train(config, tmp_path / "parent", data=data, registry=registry)
    assert str(caught.value) == (
        "encoder 'toy-sound' takes inputs of modality 'sound', the configuration says modality "
        "'sight'; change one of them"
    )
