"""A composition is a model like any other of transformers: opening, placing, generating."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

import modalloy
from composing import BOTH, CLOSE, HEAR, SEE, TEXT, compose, logits
from modalloy import ModalloyConfig, ModalloyForConditionalGeneration, ModalloyProcessor
from modalloy.errors import FormatError, InputError, IntegrityError, UnsafePathError
from tiny import tiny_base
from toy import ask, toy_parent, toy_registry
from weighed import weighed_parent, weighed_registry

GREEDY: Any = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
"""Long enough that text is decoded on folded weights where they may be."""

TOUCH = ask("feel", ("pressure", [0.4]), "this")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("standard")
    base = tiny_base(root / "base", seed=3)
    places = {
        "base": base,
        "sight": weighed_parent(root / "p1", base, seed=1),
        "sound": toy_parent(root / "p2", base, "sound", seed=2, suffix=1),
        "touch": toy_parent(root / "p3", base, "touch", seed=4),
    }
    model, processor = made(places)
    model.save_pretrained(root / "whole")
    processor.save_pretrained(root / "whole")
    return {**places, "whole": root / "whole"}


def made(places: dict[str, Path], **settings: Any) -> Any:
    parents = [places["sight"], places["sound"]]
    return compose(places["base"], parents, registry=weighed_registry(), **settings)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the toys installed, as far as code is concerned that asks what is."""
    monkeypatch.setattr(modalloy.Registry, "discover", lambda *_, **__: weighed_registry())


OPEN = """
import json, sys
result = {"before": sorted({"torch", "transformers"} & set(sys.modules))}
from transformers import AutoConfig
path = sys.argv[1]
result["config"] = type(AutoConfig.from_pretrained(path)).__name__
result["modeling"] = "modalloy.composition.modeling" in sys.modules
from transformers import AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer, pipeline
from transformers.models.auto import modeling_auto
result["tokenizer"] = AutoTokenizer.from_pretrained(path).convert_tokens_to_ids("<|sight|>")
result["processor"] = type(AutoProcessor.from_pretrained(path)).__module__
result["model"] = type(AutoModelForMultimodalLM.from_pretrained(path)).__module__
result["loaders"] = modeling_auto.__spec__.loader is modeling_auto.__loader__
result["loader"] = type(modeling_auto.__loader__).__module__
print(json.dumps(result))
"""


@pytest.mark.parametrize(
    ("start", "before", "early"),
    [
        ("import modalloy", [], False),
        ("from transformers import AutoConfig; import modalloy", ["torch", "transformers"], False),
        (
            "from transformers import AutoProcessor; import modalloy",
            ["torch", "transformers"],
            True,
        ),
    ],
)
def test_after_import_modalloy_the_auto_classes_open_it(
    places: dict[str, Path], start: str, before: list[str], *, early: bool
) -> None:
    done = subprocess.run(  # noqa: S603 - this interpreter, our own script
        [sys.executable, "-c", f"{start}\n{OPEN}", str(places["whole"])],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == {
        "before": before,
        "config": "ModalloyConfig",
        "modeling": early,
        "tokenizer": 284,
        "processor": "modalloy.composition.processing",
        "model": "modalloy.composition.modeling",
        "loaders": True,
        "loader": "_frozen_importlib_external",
    }


@pytest.mark.usefixtures("installed")
def test_auto_classes_open_all_that_load_opens(places: dict[str, Path]) -> None:
    path = places["whole"]
    known, reader = modalloy.load(path)
    assert type(AutoConfig.from_pretrained(path)) is ModalloyConfig
    assert AutoTokenizer.from_pretrained(path).get_vocab() == reader.tokenizer.get_vocab()
    processor = AutoProcessor.from_pretrained(path)
    assert type(processor) is ModalloyProcessor
    batch = processor.apply_chat_template([BOTH, SEE], add_generation_prompt=True)
    goal = logits(known, batch)
    for kind in (AutoModelForMultimodalLM, ModalloyForConditionalGeneration):
        model = kind.from_pretrained(path)
        assert not model.training
        assert model.provenance == known.provenance
        assert model.encoders.files == {"sight": path / "encoders" / "sight.safetensors"}
        # Bit for bit, the encoder's own weights included, which are not among the model's.
        assert torch.equal(logits(model, batch), goal)
        assert torch.equal(model.generate(**batch, **GREEDY), known.generate(**batch, **GREEDY))


def test_from_pretrained_takes_a_registry_and_tells_what_it_loaded(
    places: dict[str, Path], tmp_path: Path
) -> None:
    kind = ModalloyForConditionalGeneration
    model, report = kind.from_pretrained(
        places["whole"], registry=weighed_registry(), output_loading_info=True
    )
    assert not any(report.values())
    assert "sight" in model.encoders.registry.modalities
    assert "registry" not in model.generation_config.to_dict()
    model.save_pretrained(tmp_path / "again")
    for file in sorted(places["whole"].rglob("*")):
        name = file.relative_to(places["whole"])
        if file.is_file() and name.name[:4] not in {"chat", "proc", "toke"}:
            assert (tmp_path / "again" / name).read_bytes() == file.read_bytes(), name


def test_from_pretrained_refuses_what_load_refuses(places: dict[str, Path], tmp_path: Path) -> None:
    model, _ = modalloy.load(places["whole"], registry=weighed_registry())
    kind = ModalloyForConditionalGeneration

    def opened(name: str) -> Any:
        return kind.from_pretrained(tmp_path / name, registry=weighed_registry())

    for name in ("record", "changed", "gone", "outside"):
        model.save_pretrained(tmp_path / name, max_shard_size="40KB")
    (tmp_path / "record" / "modalloy.json").unlink()
    with pytest.raises(FormatError, match=r"has no modalloy\.json, so it is not known which"):
        opened("record")
    encoder = tmp_path / "changed" / "encoders" / "sight.safetensors"
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="is not the encoder that"):
        opened("changed")
    index = tmp_path / "outside" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(UnsafePathError, match=r"climbs|leads outside"):
        opened("outside")


def test_an_encoder_that_is_gone_is_missed_when_it_is_needed(
    places: dict[str, Path], tmp_path: Path
) -> None:
    model, processor = made(places)
    model.save_pretrained(tmp_path / "gone")
    (tmp_path / "gone" / "encoders" / "sight.safetensors").unlink()
    bare = ModalloyForConditionalGeneration.from_pretrained(
        tmp_path / "gone", registry=weighed_registry()
    )
    hear = processor.apply_chat_template(HEAR)
    assert torch.equal(logits(bare, hear), logits(model, hear))
    with pytest.raises(FormatError, match="does not hold the weights of encoder 'sight'"):
        bare(**processor.apply_chat_template(SEE))
    with pytest.raises(FormatError, match=r"the encoder of 'sight' cannot be saved: .* not there"):
        bare.save_pretrained(tmp_path / "copy")


def test_other_processes_leave_saving_to_the_main_one(
    places: dict[str, Path], tmp_path: Path
) -> None:
    model, _ = made(places)
    model.save_pretrained(tmp_path / "second", is_main_process=False)
    assert list((tmp_path / "second").iterdir()) == []


@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("name", ["bfloat16", "float32"])
@pytest.mark.usefixtures("installed")
def test_in_a_dtype_that_is_asked_for(places: dict[str, Path], keyword: str, name: str) -> None:
    path, dtype = places["whole"], getattr(torch, name)
    batch = AutoProcessor.from_pretrained(path).apply_chat_template([SEE, BOTH])
    for value in (dtype, name):
        model = AutoModelForMultimodalLM.from_pretrained(path, **{keyword: value})
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model.dtype == dtype
        goal = logits(modalloy.load(path, dtype=name)[0], batch)
        assert torch.equal(logits(model, batch), goal)


def test_a_row_does_not_depend_on_its_neighbours(places: dict[str, Path]) -> None:
    model, processor = made(places)
    chats = [SEE, BOTH, TEXT, HEAR, ask("a much longer text than the others " * 3)]
    alone = [
        logits(model, processor.apply_chat_template(chat, add_generation_prompt=True))[0]
        for chat in chats
    ]
    for order in ([0, 1, 2, 3, 4], [3, 0, 1], [2, 1], [1, 4, 0]):
        batch = processor.apply_chat_template([chats[i] for i in order], add_generation_prompt=True)
        found = logits(model, batch)
        for row, i in enumerate(order):
            torch.testing.assert_close(found[row, -len(alone[i]) :], alone[i], **CLOSE)
            padding = batch["attention_mask"][row, : -len(alone[i])]
            assert not padding.any()


def test_answers_in_a_batch_are_those_given_alone(places: dict[str, Path]) -> None:
    model, processor = made(places)
    chats = [SEE, BOTH, TEXT]
    batch = processor.apply_chat_template(chats, add_generation_prompt=True)
    together = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    for row, chat in enumerate(chats):
        one = processor.apply_chat_template(chat, add_generation_prompt=True)
        alone = model.generate(**one, **GREEDY)[:, one["input_ids"].shape[1] :]
        assert together[row].tolist() == alone[0].tolist()


def test_sampling_follows_the_seed(places: dict[str, Path]) -> None:
    model, processor = made(places)
    batch = processor.apply_chat_template([BOTH, SEE], add_generation_prompt=True)
    sample: Any = {"do_sample": True, "max_new_tokens": 8, "min_new_tokens": 8, "top_k": 0}

    def drawn(seed: int, **more: Any) -> list[list[int]]:
        torch.manual_seed(seed)
        return model.generate(**batch, **sample, **more).tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    several = drawn(1, num_return_sequences=2)
    assert len(several) == 4
    assert several[0] != several[1]


def test_beams_are_scored_as_the_model_scores_them(places: dict[str, Path]) -> None:
    """Beams move rows about, in the cache and among the types; coefficients must go with them."""
    model, processor = made(places)
    batch = processor.apply_chat_template([BOTH, SEE, TEXT], add_generation_prompt=True)
    found = model.generate(
        **batch, num_beams=4, num_return_sequences=2, max_new_tokens=6, min_new_tokens=6,
        do_sample=False, length_penalty=0.0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    prompt = batch["input_ids"].shape[1]
    answers = found.sequences[:, prompt:]
    assert answers.shape == (6, 6)
    for row, answer in enumerate(answers):
        ids, mask, types = (
            batch[key][row // 2][None]
            for key in ("input_ids", "attention_mask", "mm_token_type_ids")
        )
        single = processor.apply_chat_template([[*(BOTH, SEE, TEXT)[row // 2]]])
        media = {k: v for k, v in single.items() if k.endswith("_values")}
        whole = {
            "input_ids": torch.cat([ids, answer[None]], dim=1),
            "attention_mask": torch.cat([mask, torch.ones_like(answer)[None]], dim=1),
            "mm_token_type_ids": torch.cat([types, torch.zeros_like(answer)[None]], dim=1),
        }
        scores = logits(model, {**whole, **media})[0, prompt - 1 : -1].log_softmax(-1)
        # Six sums of logarithms, on folded and on unfolded weights.
        total = scores.gather(1, answer[:, None]).sum()
        torch.testing.assert_close(found.sequences_scores[row], total, rtol=1e-4, atol=1e-4)


def test_streamed_text_is_the_answer(
    places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = made(places)
    batch = processor.apply_chat_template(SEE, add_generation_prompt=True)
    answer = model.generate(**batch, **GREEDY)[0, batch["input_ids"].shape[1] :]
    text = processor.decode(answer, skip_special_tokens=True)
    settings: Any = {"skip_prompt": True, "skip_special_tokens": True}
    capsys.readouterr()
    model.generate(**batch, **GREEDY, streamer=TextStreamer(processor.tokenizer, **settings))
    assert capsys.readouterr().out == f"{text}\n"
    streamer = TextIteratorStreamer(processor.tokenizer, timeout=60, **settings)
    thread = threading.Thread(
        target=model.generate, kwargs={**batch, **GREEDY, "streamer": streamer}
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == text
    assert len(pieces) > 2


MAPS: Any = [
    ("auto", {}, 0),
    ("cpu", {}, 0),
    ("auto", {"max_memory": {"cpu": "120KB"}}, 100),
    ({"": "disk"}, {}, 110),
    ({"language_model": "cpu", "connectors": "disk"}, {}, 6),
    (
        {
            "language_model.model.embed_tokens": "cpu",
            "language_model.lm_head": "cpu",
            "language_model.model.layers.0": "disk",
            "language_model.model.layers.1": "cpu",
            "language_model.model.norm": "cpu",
            "language_model.model.rotary_emb": "cpu",
            "connectors.sight": "disk",
            "connectors.sound": "cpu",
        },
        {},
        50,
    ),
]


@pytest.mark.parametrize(("device_map", "settings", "elsewhere"), MAPS)
@pytest.mark.usefixtures("installed")
def test_placed_by_a_device_map(
    places: dict[str, Path], tmp_path: Path, device_map: Any, settings: Any, elsewhere: int
) -> None:
    known, processor = modalloy.load(places["whole"])
    model = AutoModelForMultimodalLM.from_pretrained(
        places["whole"], device_map=device_map, offload_folder=tmp_path, **settings
    )
    assert sum(p.is_meta for p in model.parameters()) >= elsewhere
    assert model.device == torch.device("cpu")
    batch = processor.apply_chat_template([BOTH, SEE, TEXT], add_generation_prompt=True)
    assert torch.equal(logits(model, batch), logits(known, batch))
    assert torch.equal(model.generate(**batch, **GREEDY), known.generate(**batch, **GREEDY))
    kept = sum(p.is_meta for p in model.parameters())
    with model.folded_for({"sight"}):
        see = processor.apply_chat_template(SEE)
        torch.testing.assert_close(logits(model, see), logits(known, see), **CLOSE)
    assert sum(p.is_meta for p in model.parameters()) == kept


def test_dispatched_by_accelerate_itself(places: dict[str, Path], tmp_path: Path) -> None:
    known, processor = made(places)
    model, _ = made(places)
    batch = processor.apply_chat_template([BOTH, SEE], add_generation_prompt=True)
    placed = dispatch_model(
        model,
        {"language_model": "disk", "connectors": "cpu"},
        main_device="cpu",
        offload_dir=str(tmp_path),
    )
    assert torch.equal(placed.generate(**batch, **GREEDY), known.generate(**batch, **GREEDY))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("trained", ["all", "deltas"])
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(
    places: dict[str, Path], trained: str, *, reentrant: bool
) -> None:
    plain, processor = made(places)
    saving, _ = made(places)
    batch = dict(processor.apply_chat_template([SEE, BOTH, TEXT]))
    batch["labels"] = torch.where(batch["mm_token_type_ids"] == 0, batch["input_ids"], -100)
    for model in (plain, saving):
        model.train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained == "all" or "text_" in name or "modality_" in name)
    saving.enable_input_require_grads()
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert all(layer.gradient_checkpointing for layer in saving.get_decoder().layers)
    found = []
    for model in (plain, saving):
        model(**batch, use_cache=False).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    expected, checkpointed = found
    assert checkpointed.keys() == expected.keys()
    assert len(expected) == (110 if trained == "all" else 84)
    for name, value in expected.items():
        torch.testing.assert_close(checkpointed[name], value, msg=lambda m, n=name: f"{n}: {m}")


def answer_of(model: Any, processor: Any, chat: Any, **settings: Any) -> str:
    batch = processor.apply_chat_template(chat, add_generation_prompt=True)
    ids = model.generate(**batch, **settings)[0, batch["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_pipeline_chats(places: dict[str, Path], dtype: str) -> None:
    model, processor = modalloy.load(places["whole"], dtype=dtype)
    named = pipeline("any-to-any", model=str(places["whole"]), dtype=dtype, device="cpu")
    given = pipeline("any-to-any", model=model, processor=processor, device="cpu")
    goals = {i: answer_of(model, processor, c, **GREEDY) for i, c in enumerate((SEE, BOTH, TEXT))}
    for pipe in (named, given):
        for i, chat in enumerate((SEE, BOTH, TEXT)):
            (one,) = pipe(text=chat, return_full_text=False, generate_kwargs=GREEDY)
            assert one["generated_text"] == goals[i]
            (whole,) = pipe(text=chat, generate_kwargs=GREEDY)
            assert whole["generated_text"] == [*chat, {"role": "assistant", "content": goals[i]}]
        many = pipe(text=[SEE, BOTH], return_full_text=False, generate_kwargs=GREEDY)
        assert [one["generated_text"] for (one,) in many] == [goals[0], goals[1]]
    batched = given(
        text=[TEXT, ask("who")], batch_size=2, return_full_text=False, generate_kwargs=GREEDY
    )
    assert batched[0][0]["generated_text"] == goals[2]


def test_the_pipeline_goes_on_with_an_answer(places: dict[str, Path]) -> None:
    model, processor = made(places)
    pipe = pipeline("any-to-any", model=model, processor=processor, device="cpu")
    begun = {"role": "assistant", "content": [{"type": "text", "text": "It is a"}]}
    (found,) = pipe(text=[*SEE, begun], return_full_text=False, generate_kwargs=GREEDY)
    batch = processor.apply_chat_template([*SEE, begun], continue_final_message=True)
    assert processor.decode(batch["input_ids"][0]).endswith("It is a")
    ids = model.generate(**batch, **GREEDY)[0, batch["input_ids"].shape[1] :]
    assert found["generated_text"] == processor.decode(ids, skip_special_tokens=True)


def test_the_pipeline_takes_marks_and_inputs(places: dict[str, Path]) -> None:
    model, processor = made(places)
    pipe = pipeline("any-to-any", model=model, processor=processor, device="cpu")
    (found,) = pipe(
        text="<image> and <audio>?",
        images=[[0.3]],
        audio=[[0.2]],
        return_full_text=False,
        generate_kwargs=GREEDY,
    )
    batch = processor("<image> and <audio>?", image=[[0.3]], audio=[[0.2]])
    ids = model.generate(**batch, **GREEDY)[0, batch["input_ids"].shape[1] :]
    assert found["generated_text"] == processor.decode(ids, skip_special_tokens=True)


def test_the_pipeline_takes_types_of_the_compositions_own(places: dict[str, Path]) -> None:
    registry = toy_registry("touch")
    model, processor = compose(places["base"], [places["touch"]], registry=registry)
    pipe = pipeline("any-to-any", model=model, processor=processor, device="cpu")
    (found,) = pipe(text=TOUCH, return_full_text=False, generate_kwargs=GREEDY)
    assert found["generated_text"] == answer_of(model, processor, TOUCH, **GREEDY)


def test_a_base_without_a_padding_token_chats_too(tmp_path: Path) -> None:
    """What stands for inputs in the returned prompt must not show as text."""
    base = tiny_base(tmp_path / "base", seed=3)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        data = json.loads((base / name).read_text())
        data.pop("pad_token_id", None)
        data.pop("pad_token", None)
        (base / name).write_text(json.dumps(data))
    parent = toy_parent(tmp_path / "p", base, "sight", seed=1)
    model, processor = compose(base, [parent], registry=toy_registry("sight"))
    assert model.generation_config.pad_token_id is None
    pipe = pipeline("any-to-any", model=model, processor=processor, device="cpu")
    (found,) = pipe(text=SEE, return_full_text=False, generate_kwargs=GREEDY)
    assert found["generated_text"] == answer_of(model, processor, SEE, **GREEDY)
    batch = processor.apply_chat_template(SEE, add_generation_prompt=True)
    assert (
        model.generate(**batch, **GREEDY)[0].tolist().count(model.config.text_config.eos_token_id)
        >= 3
    )


def test_inputs_keep_their_dtype_and_move(places: dict[str, Path]) -> None:
    _, processor = made(places)
    batch = processor.apply_chat_template(SEE)
    for moved in (
        batch.to(torch.bfloat16),
        batch.to(dtype=torch.float16),
        batch.to("cpu", torch.bfloat16),
        batch.to(device="cpu", dtype=torch.bfloat16),
    ):
        assert moved["sight_values"].dtype == torch.float32
        assert moved["input_ids"].dtype == torch.int64
    assert batch.to("meta")["sight_values"].is_meta


def test_processor_kwargs_that_change_nothing_are_refused(places: dict[str, Path]) -> None:
    _, processor = made(places)
    fine = {"padding": True, "return_tensors": "pt"}
    assert "input_ids" in processor.apply_chat_template(SEE, processor_kwargs=fine)
    with pytest.raises(InputError, match="processor_kwargs holds do_resize, which change nothing"):
        processor.apply_chat_template(SEE, processor_kwargs={**fine, "do_resize": False})
