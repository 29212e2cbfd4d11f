"""Names that transformers and its users know: Auto classes, pipelines, parts of the model."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, pipeline
from transformers.modeling_outputs import BaseModelOutputWithPooling

import modalloy
from composing import BOTH, HEAR, SEE, TEXT, compose
from modalloy import API_VERSION, Modality, ModalloyForConditionalGeneration, Registry, hookimpl
from modalloy.errors import InputError, MissingComponentError
from tiny import tiny_base
from toy import TOKENS, ToyEncoder, ToyPlugin, toy_parent, toy_registry
from weighed import WeighedEncoder, weighed_parent, weighed_registry

GREEDY: Any = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
PREFIX = 2


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("names")
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


def made(places: dict[str, Path]) -> Any:
    parents = [places["sight"], places["sound"]]
    return compose(places["base"], parents, registry=weighed_registry())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the toys installed, as far as code is concerned that asks what is."""
    monkeypatch.setattr(modalloy.Registry, "discover", lambda *_, **__: weighed_registry())


def answer_of(model: Any, processor: Any, chat: Any) -> str:
    batch = processor.apply_chat_template(chat, add_generation_prompt=True)
    ids = model.generate(**batch, **GREEDY)[0, batch["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True)


OPEN = """
import json, sys
from transformers import AutoModelForImageTextToText
early = "modalloy.composition.modeling" in sys.modules
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
print(json.dumps([early, type(model).__module__]))
"""


@pytest.mark.parametrize(
    ("start", "early"),
    [("import modalloy", False), ("from transformers import AutoProcessor; import modalloy", True)],
)
def test_the_auto_class_for_pictures_opens_it(
    places: dict[str, Path], start: str, *, early: bool
) -> None:
    done = subprocess.run(  # noqa: S603 - this interpreter, our own script
        [sys.executable, "-c", f"{start}\n{OPEN}", str(places["whole"])],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [early, "modalloy.composition.modeling"]


@pytest.mark.usefixtures("installed")
def test_the_pipeline_for_pictures_chats(places: dict[str, Path]) -> None:
    model, processor = modalloy.load(places["whole"])
    pipe = pipeline("image-text-to-text", model=str(places["whole"]), device="cpu")
    assert type(pipe.model) is ModalloyForConditionalGeneration
    given: Any = {"return_full_text": False, "generate_kwargs": GREEDY}
    goals = [answer_of(model, processor, chat) for chat in (SEE, BOTH, TEXT)]
    for chat, goal in zip((SEE, BOTH, TEXT), goals, strict=True):
        (one,) = pipe(text=chat, **given)
        assert one["generated_text"] == goal
    many = pipe(text=[SEE, BOTH], **given)
    assert [one["generated_text"] for (one,) in many] == goals[:2]


def test_the_pipeline_for_pictures_tells_what_a_composition_cannot_take(
    places: dict[str, Path],
) -> None:
    model, processor = compose(places["base"], [places["sound"]])
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    (found,) = pipe(text=HEAR, return_full_text=False, generate_kwargs=GREEDY)
    assert found["generated_text"] == answer_of(model, processor, HEAR)
    with pytest.raises(InputError, match="part 'image'; this composition understands text, audio"):
        pipe(text=SEE)


def grey(source: Any, limits: Any) -> torch.Tensor:
    """Read a picture as its first pixel."""
    del limits
    return torch.tensor(source.convert("L").getpixel((0, 0)) / 255)


class PicturePlugin(ToyPlugin):
    """The toy modality ``sight`` of pictures instead of numbers."""

    @hookimpl
    def register_modalities(self, register: Callable[[Modality], None]) -> None:
        register(
            Modality(
                name="sight",
                api_version=API_VERSION,
                content_type="image",
                placeholder="<|sight|>",
                read=grey,
                limits={"bytes": 1000},
            )
        )


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_pipelines_take_one_picture_beside_a_text(
    places: dict[str, Path], tmp_path: Path, task: str
) -> None:
    registry = Registry()
    registry.register(PicturePlugin("sight"), name="toy-sight")
    parent = toy_parent(tmp_path / "p", places["base"], "sight", seed=1)
    model, processor = compose(places["base"], [parent], registry=registry)
    pipe: Any = pipeline(task, model=model, processor=processor, device="cpu")
    picture = Image.new("L", (2, 2), 99)
    goal = model.generate(**processor("<image> what", image=[picture]), **GREEDY)[0, -8:]
    for images in (picture, [picture]):
        (found,) = pipe(
            text="<image> what", images=images, return_full_text=False, generate_kwargs=GREEDY
        )
        assert found["generated_text"] == processor.decode(goal, skip_special_tokens=True)


def test_towers_are_the_encoders(places: dict[str, Path]) -> None:
    model, _ = made(places)
    before = sorted(name for name, _ in model.named_parameters())
    assert type(model.vision_tower) is WeighedEncoder
    assert model.vision_tower.table.abs().max() > 0
    assert model.vision_tower is model.image_tower is model.get_encoder("image")
    assert type(model.audio_tower) is ToyEncoder
    assert model.audio_tower is model.get_encoder("audio")
    assert model.get_encoder() is model
    assert sorted(name for name, _ in model.named_parameters()) == before


@pytest.mark.parametrize("given", ["sight_values", "values"])
def test_features_are_what_stands_in_the_prompt(places: dict[str, Path], given: str) -> None:
    model, processor = made(places)
    batch = processor.apply_chat_template([SEE, BOTH])
    found = model.get_image_features(**{given: batch["sight_values"].requires_grad_()})
    assert type(found) is BaseModelOutputWithPooling
    assert found.last_hidden_state.shape[:2] == (2, TOKENS)
    assert torch.equal(found.last_hidden_state, model.vision_tower(batch["sight_values"]))
    assert not found.last_hidden_state.requires_grad
    types = batch["mm_token_type_ids"]
    media = {name: batch[name] for name in ("sight_values", "sound_values")}
    stands = model.embed(batch["input_ids"], types, media)[types == model.type_ids["sight"]]
    assert found.pooler_output.shape[1] == TOKENS + PREFIX
    assert torch.equal(found.pooler_output.flatten(0, 1), stands)
    heard = model.get_audio_features(sound_values=batch["sound_values"], return_dict=False)
    stands = model.embed(batch["input_ids"], types, media)[types == model.type_ids["sound"]]
    assert type(heard) is tuple
    assert torch.equal(heard[1].flatten(0, 1), stands)


def test_features_train_the_connector(places: dict[str, Path]) -> None:
    model, processor = made(places)
    values = processor.apply_chat_template(SEE)["sight_values"]
    model.get_image_features(values=values).pooler_output.sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all(name.startswith("connectors.sight.") for name in trained)


def test_other_tensors_are_refused(places: dict[str, Path]) -> None:
    model, _ = made(places)
    with pytest.raises(InputError, match=r"encoder of 'sight': .*it was given sight_pixel_values"):
        model.get_image_features(pixel_values=torch.zeros(1, 3))


def test_a_single_connector_is_the_projector(places: dict[str, Path]) -> None:
    model, _ = compose(places["base"], [places["sound"]])
    assert model.multi_modal_projector is model.connectors["sound"]
    two, _ = made(places)
    with pytest.raises(
        AttributeError,
        match=r"no one 'multi_modal_projector': .* each of sight, sound; take connectors\[",
    ):
        two.multi_modal_projector  # noqa: B018 - what is looked up is the point


def test_types_of_the_compositions_own_have_names_too(places: dict[str, Path]) -> None:
    model, processor = compose(places["base"], [places["touch"]], registry=toy_registry("touch"))
    chat = [{"role": "user", "content": [{"type": "pressure", "pressure": [0.4]}]}]
    values = processor.apply_chat_template(chat)["touch_values"]
    found = model.get_pressure_features(touch_values=values)
    assert torch.equal(found.last_hidden_state, model.pressure_tower(values))


@pytest.mark.parametrize(
    "name", ["video_tower", "get_video_features", "point_cloud_tower", "get_point_cloud_features"]
)
def test_there_is_no_name_for_what_a_composition_does_not_take(
    places: dict[str, Path], name: str
) -> None:
    model, _ = made(places)
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=f"no '{name}': .* understands audio, image"):
        getattr(model, name)
    with pytest.raises(InputError, match=r"no encoder of 'video' inputs: .* understands audio, im"):
        model.get_encoder("video")
    with pytest.raises(AttributeError, match="has no attribute 'model'"):
        model.model  # noqa: B018 - as above


def test_a_tower_that_is_not_installed_is_told(places: dict[str, Path]) -> None:
    model, _ = made(places)
    model.encoders.registry = toy_registry("sound")
    with pytest.raises(MissingComponentError, match="which no installed plugin supplies"):
        model.vision_tower  # noqa: B018 - as above


def test_a_model_that_is_not_made_yet_has_no_names() -> None:
    empty = ModalloyForConditionalGeneration.__new__(ModalloyForConditionalGeneration)
    with pytest.raises(AttributeError):
        empty.vision_tower  # noqa: B018 - as above


@pytest.mark.usefixtures("installed")
def test_copies_have_the_names_too(places: dict[str, Path]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(places["whole"])
    copy = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own
    assert torch.equal(copy.vision_tower.table, model.vision_tower.table)
