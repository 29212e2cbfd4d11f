"""AST and Whisper through transformers, as tiny models with random weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ASTModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from modalloy.errors import MissingComponentError, ModalloyWarning, SpecError
from modalloy_audio import transformers_encoder
from modalloy_audio.configs import ast_shape, whisper_shape
from modalloy_audio.reading import Waveform
from modalloy_audio.transformers_encoder import (
    build_ast,
    build_whisper,
    preprocess_ast,
    preprocess_whisper,
)

HEADS: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WHISPER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_mel_bins": 80,
    "max_source_positions": 100,  # two seconds
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


@pytest.fixture(autouse=True)
def fresh_extractors() -> Iterator[None]:
    transformers_encoder._extractor.cache_clear()
    yield
    transformers_encoder._extractor.cache_clear()


def save_ast(path: Path, family: Any = ASTForAudioClassification) -> ASTModel:
    torch.manual_seed(0)
    # 2 rows of patches by 5 columns.
    model = family(ASTConfig(hidden_size=8, max_length=56, num_mel_bins=32, **HEADS)).eval()
    model.save_pretrained(path)
    ASTFeatureExtractor(max_length=56, num_mel_bins=32).save_pretrained(path)
    return model.base_model


def save_whisper(path: Path, family: Any = WhisperForConditionalGeneration) -> Any:
    torch.manual_seed(0)
    model = family(WhisperConfig(**WHISPER)).eval()
    model.save_pretrained(path)
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(path)
    return model.get_encoder()


def noise(seconds: float, rate: int = 16_000) -> Waveform:
    draw = np.random.default_rng(0).normal(0, 0.1, round(seconds * rate))
    return Waveform(draw.astype(np.float32), rate)


@pytest.mark.parametrize("family", [ASTModel, ASTForAudioClassification])
def test_ast_averages_patches_over_frequency_and_time(family: Any, tmp_path: Path) -> None:
    model = save_ast(tmp_path, family)
    config = {"model": str(tmp_path), "tokens": 5, "features": 8}
    inputs = preprocess_ast(noise(0.5), config)
    assert inputs["input_values"].shape == (56, 32)
    assert inputs["input_values"].dtype == torch.float32
    batch = inputs["input_values"][None]
    found = build_ast(config)(batch)
    assert found.shape == (1, *ast_shape(config))
    states = model(batch).last_hidden_state[:, 2:]
    # transformers lays the patches out row by row, a row being a band of frequencies.
    assert torch.allclose(found[0, 3], (states[0, 3] + states[0, 5 + 3]) / 2, atol=1e-6)


@pytest.mark.parametrize("family", [WhisperModel, WhisperForConditionalGeneration])
def test_whisper_opens_its_encoder_alone(family: Any, tmp_path: Path) -> None:
    model = save_whisper(tmp_path, family)
    config = {"model": str(tmp_path), "tokens": 4, "features": 16}
    inputs = preprocess_whisper(noise(1.0, 8000), config)
    assert inputs["input_features"].shape == (80, 200)
    assert inputs["input_features"].dtype == torch.float32
    batch = inputs["input_features"][None]
    encoder = build_whisper(config)
    found = encoder(batch)
    assert found.shape == (1, *whisper_shape(config))
    assert torch.allclose(found[0, 1], model(batch).last_hidden_state[0, 25:50].mean(0), atol=1e-6)
    assert not [name for name in encoder.state_dict() if "decoder" in name]


def test_encoders_stay_frozen_and_in_evaluation_mode(tmp_path: Path) -> None:
    save_whisper(tmp_path)
    encoder = build_whisper({"model": str(tmp_path), "tokens": 4, "features": 16}).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_half_precision_weights_take_float_inputs(tmp_path: Path) -> None:
    save_ast(tmp_path)
    config = {"model": str(tmp_path), "tokens": 1, "features": 8}
    batch = preprocess_ast(noise(0.5), config)["input_values"][None]
    assert build_ast(config).to(torch.bfloat16)(batch).dtype == torch.bfloat16


def test_recording_longer_than_the_model_hears_is_cut_with_a_warning(tmp_path: Path) -> None:
    save_whisper(tmp_path)
    config = {"model": str(tmp_path), "tokens": 4, "features": 16}
    with pytest.warns(ModalloyWarning, match=r"longer than the 2\.00 seconds .* is cut to its"):
        assert preprocess_whisper(noise(3.0), config)["input_features"].shape == (80, 200)


def test_configuration_must_fit_the_model(tmp_path: Path) -> None:
    save_ast(tmp_path)
    path = str(tmp_path)
    with pytest.raises(SpecError, match=r"encoder 'ast': '.*' has 8 features, .* says 9"):
        build_ast({"model": path, "tokens": 5, "features": 9})
    with pytest.raises(SpecError, match=r"yields 5 steps in time, .* to 6 tokens; ask for 5 at"):
        build_ast({"model": path, "tokens": 6, "features": 8})
    with pytest.raises(SpecError, match="encoder 'ast': features is missing"):
        ast_shape({"model": path, "tokens": 5})
    with pytest.raises(
        SpecError, match=r"encoder 'whisper': value of .tokens. must be positive, found 0"
    ):
        whisper_shape({"model": path, "tokens": 0, "features": 8})


def test_missing_weights_are_never_random(tmp_path: Path) -> None:
    save_ast(tmp_path)
    config = ASTConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = 2
    config.save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=r"weights of .* lack \d+ tensors, 'layers\.1.* first"):
        build_ast({"model": str(tmp_path), "tokens": 5, "features": 8})


def test_absent_model_is_named(tmp_path: Path) -> None:
    config = {"model": str(tmp_path / "nowhere"), "tokens": 5, "features": 8}
    with pytest.raises(MissingComponentError, match=r"the model of '.*nowhere' cannot be opened"):
        build_ast(config)
    with pytest.raises(MissingComponentError, match=r"the feature extractor of '.*nowhere' cannot"):
        preprocess_ast(noise(0.1), config)
