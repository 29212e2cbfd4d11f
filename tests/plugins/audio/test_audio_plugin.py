"""What the plugin declares."""

from importlib.metadata import entry_points
from typing import Any

from modalloy.modality import resolve
from modalloy_audio import plugin


def declared(hook: Any) -> dict[str, Any]:
    found: list[Any] = []
    hook(found.append)
    return {value.name: value for value in found}


def test_entry_point_names_the_plugin() -> None:
    (entry,) = entry_points(group="modalloy", name="audio")
    assert entry.load() is plugin


def test_sound_is_declared_with_its_limits() -> None:
    (audio,) = declared(plugin.register_modalities).values()
    assert (audio.content_type, audio.placeholder, audio.token_type_id) == (
        "audio",
        "<|audio|>",
        3,
    )
    assert audio.payload_keys == ("audio", "input_audio")
    assert dict(audio.limits) == {"bytes": 52_428_800, "seconds": 600}
    assert callable(resolve(audio.read))


def test_every_target_of_every_encoder_resolves() -> None:
    encoders = declared(plugin.register_encoders)
    assert sorted(encoders) == ["ast", "qwen2-audio", "speech-embedding", "whisper"]
    for encoder in encoders.values():
        assert encoder.modality == "audio"
        for target in (encoder.build, encoder.preprocess, encoder.output_shape):
            assert callable(resolve(target))


def test_both_parents_are_declared() -> None:
    parents = declared(plugin.register_parents)
    assert {name: (p.base, p.strategy, p.licence) for name, p in parents.items()} == {
        "audio-smollm2-decoupled": ("smollm2", "decoupled", "Apache-2.0"),
        "audio-smollm2-naive": ("smollm2", "naive", "Apache-2.0"),
    }
    assert parents["audio-smollm2-naive"].source.parts[-2:] == ("parents", "smollm2-naive")
