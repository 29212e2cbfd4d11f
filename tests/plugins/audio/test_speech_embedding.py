"""Google's speech embedding: the same numbers as its ONNX original, and its clips."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from modalloy.errors import ModalloyWarning, SpecError
from modalloy_audio.configs import SpeechEmbeddingConfig, speech_embedding_shape
from modalloy_audio.reading import Waveform
from modalloy_audio.speech_embedding import SpeechEmbedding, build, preprocess

VECTORS = Path(__file__).parent / "data" / "speech_embedding.safetensors"


@pytest.fixture(scope="module")
def encoder() -> SpeechEmbedding:
    return build({})


@pytest.fixture(scope="module")
def word() -> NDArray[np.float32]:
    """A sound of 0.6 s that swells, glides and dies away, at 22,050 Hz."""
    time = np.arange(13_230) / 22_050
    sound = np.sin(2 * np.pi * (200 * time + 900 * time**2)) * np.sin(np.pi * time / 0.6)
    return (0.3 * sound).astype(np.float32)


def spoken(word: NDArray[np.float32], at: int, of: int = 60_000) -> Waveform:
    samples = np.zeros(of, dtype=np.float32)
    samples[at : at + len(word)] = word
    return Waveform(samples, 22_050)


def test_numbers_are_those_of_the_onnx_original(encoder: SpeechEmbedding) -> None:
    stored = load_file(VECTORS)
    frames = encoder.mel(stored["samples"].float()[None] / 32768)
    found = encoder.embed(frames)[0]
    assert torch.allclose(frames[0, -1], stored["last_frame"], atol=1e-3)
    assert found.shape == stored["embeddings"].shape == (6, 96)
    assert stored["embeddings"].abs().max() > 10
    assert torch.allclose(found, stored["embeddings"], atol=1e-3)


def test_token_holds_consecutive_embeddings_side_by_side(encoder: SpeechEmbedding) -> None:
    clip = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 32_000))).float()
    embeddings = encoder.embed(encoder.mel(clip))[0]
    assert embeddings.shape == (16, 96)
    assert torch.equal(encoder(clip)[0, 1], embeddings[4:8].flatten() / 16)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({}, (4, 384)),
        ({"seconds": 2.0, "tokens": 16}, (16, 96)),
        ({"seconds": 1.36, "tokens": 4}, (4, 192)),
    ],
)
def test_shape_follows_from_the_configuration(
    config: dict[str, float], shape: tuple[int, int], word: NDArray[np.float32]
) -> None:
    assert speech_embedding_shape(config) == shape
    clip = preprocess(spoken(word, 1000), config)["waveform"]
    assert clip.shape == (SpeechEmbeddingConfig(**config).samples,)  # type: ignore[arg-type]
    assert clip.dtype == torch.float32
    features = build(config)(clip[None])
    assert features.shape == (1, *shape)
    assert features.dtype == torch.float32


def test_batch_gives_what_single_clips_give(
    encoder: SpeechEmbedding, word: NDArray[np.float32]
) -> None:
    # A loud neighbour would lift the floor of a quiet clip if the floor were the batch's.
    loud = preprocess(spoken(word, 1000), {})["waveform"]
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 1e-4, 32_000)).float()
    together = encoder(torch.stack([loud, noise]))
    for clip, features in zip((loud, noise), together, strict=True):
        assert torch.allclose(encoder(clip[None])[0], features, atol=1e-4)


def test_half_precision_weights_stay_close(
    encoder: SpeechEmbedding, word: NDArray[np.float32]
) -> None:
    clip = preprocess(spoken(word, 1000), {})["waveform"][None]
    half = build({}).to(torch.bfloat16)(clip.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    same = torch.cosine_similarity(half.float().flatten(), encoder(clip).flatten(), dim=0)
    assert same > 0.99


def test_place_and_loudness_change_nothing(
    encoder: SpeechEmbedding, word: NDArray[np.float32]
) -> None:
    first = preprocess(spoken(word, 0), {})["waveform"]
    again = preprocess(spoken(word, 0), {})["waveform"]
    assert torch.equal(first, again)
    expected = encoder(first[None])
    for at in (7, 10_001, 60_000 - len(word)):
        quiet = spoken(word * np.float32(0.05), at)
        clip = preprocess(quiet, {})["waveform"]
        assert torch.allclose(clip, first, atol=1e-5)
        assert torch.allclose(encoder(clip[None]), expected, atol=0.02)


def test_word_is_found_in_noise(word: NDArray[np.float32]) -> None:
    noise = np.random.default_rng(0).normal(0, 0.003, 60_000).astype(np.float32)
    for at in (5000, 40_000):
        clip = preprocess(Waveform(spoken(word, at).samples + noise, 22_050), {})["waveform"]
        energy = clip.square()
        centre = (energy * torch.arange(32_000)).sum() / energy.sum()
        assert centre == pytest.approx(16_000, abs=800)


def test_word_lies_in_the_middle_at_half_scale(word: NDArray[np.float32]) -> None:
    clip = preprocess(spoken(word, 20_000), {})["waveform"]
    assert clip.abs().max() == pytest.approx(0.5, abs=0.01)
    sounding = torch.nonzero(clip.abs() > 1e-3)
    assert int(sounding[0]) == pytest.approx(32_000 - int(sounding[-1]), abs=400)


def test_sound_too_long_is_cut_to_its_loudest_part() -> None:
    samples = np.random.default_rng(0).normal(0, 0.02, 16_000 * 5).astype(np.float32)
    samples[50_000:60_000] *= 3
    with pytest.warns(ModalloyWarning, match=r"longer than the 2\.00 seconds .* is cut to its"):
        clip = preprocess(Waveform(samples, 16_000), {})["waveform"]
    assert clip.shape == (32_000,)
    loud = samples[50_000:60_000] * np.float32(0.5 / np.abs(samples).max())
    assert loud.tobytes() in clip.numpy().tobytes()


@pytest.mark.parametrize("samples", [1, 5, 30_000])
def test_silence_and_single_samples_are_heard_as_such(
    encoder: SpeechEmbedding, samples: int
) -> None:
    for value in (0.0, 1e-45, 0.25):
        clip = preprocess(Waveform(np.full(samples, value, np.float32), 16_000), {})["waveform"]
        assert clip.shape == (32_000,)
        assert torch.isfinite(encoder(clip[None])).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tokens": 5}, "yields 16 embeddings, which cannot be shared out evenly to 5 tokens"),
        ({"seconds": 0.5}, "a clip of 0.5 seconds yields 0 embeddings"),
        ({"tokens": 0}, "value of .tokens. must be positive, found 0"),
        ({"token": 4}, "token is not a known key .*Did you mean 'tokens'"),
        ({"seconds": "2"}, "seconds must be float, found '2'"),
    ],
)
def test_bad_configuration_is_named(config: dict[str, object], message: str) -> None:
    for function in (speech_embedding_shape, build):
        with pytest.raises(SpecError, match=f"encoder 'speech-embedding': .*{message}"):
            function(config)
