"""Qwen2-Audio's tower, against transformers' own on a tiny model."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    WhisperFeatureExtractor,
)

from modalloy.connectors import linear
from modalloy.errors import MissingComponentError, ModalloyWarning, SpecError
from modalloy_audio import qwen_config, qwen_encoder
from modalloy_audio.reading import Waveform

ARCHITECTURE: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 128,
    "max_source_positions": 50,  # one second
}
CONFIG: dict[str, Any] = {"architecture": ARCHITECTURE, "seconds": 1.0}
AUDIO, HIDDEN = 40, 20


def whole() -> Any:
    """Make a tiny Qwen2-Audio whose tower is all random, norms too."""
    text = {
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 48,
    }
    config: Any = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **ARCHITECTURE},
        text_config=text,
        audio_token_index=AUDIO,
    )
    model = Qwen2AudioForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(model.model.audio_tower.named_parameters()):
        parameter.data.normal_(std=0.3, generator=generator)
    return model


def loaded(config: dict[str, Any], model: Any) -> nn.Module:
    encoder = qwen_encoder.build(config)
    tower = model.model.audio_tower.state_dict()
    encoder.load_state_dict({f"model.{name}": t for name, t in tower.items()}, strict=True)
    return encoder


def sound(seconds: float, rate: int = 16_000, seed: int = 0) -> Waveform:
    count = round(seconds * rate)
    samples = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    return Waveform(samples * np.float32(0.1), rate)


def extract(waveform: Waveform) -> Any:
    """Return what Qwen2-Audio's processor makes of a recording."""
    extractor: Any = WhisperFeatureExtractor(feature_size=128, chunk_length=1)
    return extractor(
        waveform.samples,
        sampling_rate=16_000,
        return_attention_mask=True,
        padding="max_length",
        return_tensors="pt",
    )


def heard(model: Any, waveform: Waveform, tokens: int) -> Tensor:
    """Return the embeddings that the whole model puts in place of its audio tokens."""
    extracted = extract(waveform)
    found: list[Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(
            input_ids=torch.tensor([[1] + [AUDIO] * tokens + [2]]),
            attention_mask=torch.ones(1, tokens + 2, dtype=torch.long),
            input_features=extracted["input_features"],
            feature_attention_mask=extracted["attention_mask"],
        )
    hook.remove()
    return found[0][0, 1:-1]


@pytest.mark.parametrize(("seconds", "tokens"), [(1.0, 25), (0.5, 12), (0.09, 2)])
def test_a_recording_that_fills_the_window(seconds: float, tokens: int) -> None:
    model = whole()
    config = {**CONFIG, "seconds": seconds}
    encoder = loaded(config, model)
    waveform = sound(seconds)
    connector = linear.build({}, 16, HIDDEN)
    connector.load_state_dict(model.model.multi_modal_projector.linear.state_dict())
    inputs = qwen_encoder.preprocess(waveform, config)
    with torch.no_grad():
        features = encoder(input_features=inputs["input_features"][None])
        found = connector(features)
    assert features.shape == (1, tokens, 16) == (1, *qwen_config.output_shape(config))
    expected = heard(model, waveform, tokens)
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)


def test_the_whole_tower_on_a_batch() -> None:
    model = whole()
    encoder = loaded(CONFIG, model)
    inputs = torch.randn(3, 128, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.model.audio_tower(inputs).last_hidden_state
    assert torch.equal(encoder(input_features=inputs), expected)


def test_what_is_shorter_is_heard_with_silence_after_it() -> None:
    model = whole()
    config = {**CONFIG, "seconds": 0.5}
    encoder = loaded(config, model)
    short = sound(0.25)
    filled = Waveform(np.pad(short.samples, (0, 4000)), 16_000)
    features = [
        encoder(qwen_encoder.preprocess(one, config)["input_features"][None])
        for one in (short, filled)
    ]
    assert torch.equal(features[0], features[1])
    connector = model.model.multi_modal_projector
    with torch.no_grad():
        torch.testing.assert_close(
            connector(features[1])[0], heard(model, filled, 12), rtol=1e-6, atol=1e-6
        )


def test_nothing_behind_the_window_is_heard() -> None:
    config = {**CONFIG, "seconds": 0.5}
    encoder = loaded(config, whole())
    inputs = torch.randn(1, 128, 100, generator=torch.Generator().manual_seed(0))
    changed = inputs.clone()
    changed[..., 52:] += 1  # the convolutions reach one frame further
    assert torch.equal(encoder(inputs), encoder(changed))
    changed[..., 40:] += 1
    assert not torch.allclose(encoder(inputs), encoder(changed))


@pytest.mark.parametrize("seconds", [1.0, 0.7, 0.0125])
def test_the_spectrogram_is_whispers(seconds: float) -> None:
    waveform = sound(seconds)
    inputs = qwen_encoder.preprocess(waveform, CONFIG)
    assert list(inputs) == ["input_features"]
    assert inputs["input_features"].shape == (128, 100)
    assert inputs["input_features"].dtype == torch.float32
    torch.testing.assert_close(inputs["input_features"], extract(waveform)["input_features"][0])


def test_another_rate_and_a_longer_recording() -> None:
    with pytest.warns(ModalloyWarning, match="longer than the 1.00 seconds"):
        inputs = qwen_encoder.preprocess(sound(2.5, 8000), CONFIG)
    assert inputs["input_features"].shape == (128, 100)
    with pytest.warns(ModalloyWarning, match="longer than the 0.50 seconds"):
        inputs = qwen_encoder.preprocess(sound(0.8), {**CONFIG, "seconds": 0.5})
    silence = inputs["input_features"][:, 55:]
    assert torch.equal(silence, silence[:1, :1].expand_as(silence))


def test_frozen_without_random_numbers_and_empty_until_loaded() -> None:
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    encoder = qwen_encoder.build(CONFIG).train()
    assert torch.equal(torch.get_rng_state(), expected)
    inputs = torch.zeros(1, 128, 100)
    message = r"encoder 'qwen2-audio': its configuration holds .* encoder\.safetensors"
    with pytest.raises(MissingComponentError, match=message) as caught:
        encoder(input_features=inputs)
    assert caught.value.component == "qwen2-audio"
    tower = whole().bfloat16().model.audio_tower.state_dict()
    encoder.load_state_dict({f"model.{name}": tensor for name, tensor in tower.items()})
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    assert torch.isfinite(encoder(input_features=inputs)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": 1.01}, "seconds must be from 0.04 to 1, which the tower takes .* found 1.01"),
        ({"seconds": 0.0}, "seconds must be from 0.04 to 1"),
        ({"seconds": 0.02}, "seconds must be from 0.04 to 1"),
        ({"seconds": -1}, "seconds must be from 0.04 to 1"),
        ({"seconds": float("nan")}, "seconds must be from 0.04 to 1"),
        ({"seconds": float("inf")}, "seconds must be from 0.04 to 1"),
        ({"tokens": 25}, "tokens is not a known key"),
        ({"architecture": {}}, "architecture.d_model is missing"),
    ],
)
def test_configurations_that_are_refused(change: dict[str, Any], message: str) -> None:
    for target in (qwen_encoder.build, qwen_config.output_shape):
        with pytest.raises(SpecError, match=message) as caught:
            target({**CONFIG, **change})
        assert caught.value.subject == "encoder 'qwen2-audio'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {}}, "architecture.auto_map is not a known key"),
        ({"_attn_implementation": "a/b"}, "architecture._attn_implementation is not a known key"),
        ({"trust_remote_code": True}, "architecture.trust_remote_code is not a known key"),
        ({"activation_function": "eval"}, "architecture.activation_function"),
        ({"d_model": 15}, "has 15 features, which do not divide into 2 heads"),
        ({"d_model": 0}, "architecture.d_model must be positive and at most 65536, found 0"),
        ({"encoder_layers": 300}, "architecture.encoder_layers must be positive and at most 256"),
        ({"d_model": 60_000, "encoder_layers": 90}, r"makes about [\d,]+ parameters, at most 10,"),
    ],
)
def test_architectures_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        qwen_config.output_shape({**CONFIG, "architecture": {**ARCHITECTURE, **change}})
