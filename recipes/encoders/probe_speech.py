"""How well a linear probe tells spoken words apart by the speech embedding's features.

Twenty household words are spoken by Debian's ``espeak-ng`` in 55 voicings (accent, voice, speed
and pitch), put at a random place in three seconds of silence or noise and at a random loudness,
and encoded as the plugin encodes them. Three of the twelve voices are held out for testing::

    python recipes/encoders/probe_speech.py --seconds 2.0 --tokens 4
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalloy_audio.reading import Waveform, read
from modalloy_audio.speech_embedding import build, preprocess

WORDS = (
    "bed",
    "chair",
    "table",
    "lamp",
    "sofa",
    "desk",
    "door",
    "window",
    "mirror",
    "sink",
    "toilet",
    "bath",
    "oven",
    "fridge",
    "plant",
    "car",
    "bookcase",
    "piano",
    "clock",
    "curtain",
)
ACCENTS = (
    "en-us",
    "en-gb",
    "en-gb-scotland",
    "en-029",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)
VOICES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")
HELD_OUT = frozenset({"m7", "f3", "f5"})
VOICINGS = 55
LIMITS = {"bytes": 1 << 20, "seconds": 10}
STEPS = 300

Voicing = tuple[str, str, int, int]


def voicings() -> list[Voicing]:
    """Return accent, voice, words a minute and pitch of every voicing."""
    draw = Random(0)  # noqa: S311 - not for secrets
    return [
        (
            ACCENTS[index % len(ACCENTS)],
            VOICES[index % len(VOICES)],
            draw.choice([110, 130, 150, 175, 200]),
            draw.choice([20, 35, 50, 65, 80]),
        )
        for index in range(VOICINGS)
    ]


def speak(word: str, voicing: Voicing) -> Waveform:
    """Return espeak-ng's recording of one word."""
    accent, voice, speed, pitch = voicing
    options = ["-v", f"{accent}+{voice}", "-s", str(speed), "-p", str(pitch), "--stdout"]
    done = subprocess.run(["espeak-ng", *options, word], capture_output=True, check=True)
    waveform: Waveform = read(done.stdout, LIMITS)
    return waveform


def place(waveform: Waveform, noise: float | None, draw: np.random.Generator) -> Waveform:
    """Put a word anywhere in three seconds, at any loudness, ``noise`` dB above white noise."""
    samples, rate = waveform.samples, waveform.sampling_rate
    scene = np.zeros(3 * rate, dtype=np.float32)
    start = int(draw.integers(0, len(scene) - len(samples)))
    scene[start : start + len(samples)] = samples * draw.uniform(0.1, 1)
    if noise is not None:
        power = float((scene**2).sum()) / len(samples) * 10 ** (-noise / 10)
        scene += draw.normal(0, power**0.5, len(scene)).astype(np.float32)
    return Waveform(scene, rate)


def probe(features: Tensor, labels: Tensor, test: Tensor) -> float:
    """Train a linear classifier on standardised features; return its accuracy on ``test``."""
    flat = features.flatten(1)
    seen = flat[~test]
    flat = (flat - seen.mean(0)) / (seen.std(0) + 1e-3)
    linear = nn.Linear(flat.shape[1], len(WORDS))
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.AdamW(linear.parameters(), 1e-3, weight_decay=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(linear(flat[~test]), labels[~test]).backward()
        optimizer.step()
    return float((linear(flat[test]).argmax(1) == labels[test]).float().mean())


def measure(spoken: list[Waveform], config: Mapping[str, Any], noise: float | None) -> Tensor:
    """Return the features of all recordings, shape ``(N, K, F)``."""
    encoder, draw = build(config), np.random.default_rng(5)
    clips = [preprocess(place(word, noise, draw), config)["waveform"] for word in spoken]
    with torch.no_grad():
        return torch.cat([encoder(batch) for batch in torch.stack(clips).split(64)])


def main() -> int:
    """Speak, encode, probe, and print the accuracy without noise and with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--tokens", type=int, default=4)
    options = parser.parse_args()
    config = {"seconds": options.seconds, "tokens": options.tokens}
    voiced = voicings()
    spoken = [speak(word, voicing) for voicing in voiced for word in WORDS]
    labels = torch.arange(len(WORDS)).repeat(len(voiced))
    held_out = torch.tensor([voicing[1] in HELD_OUT for voicing in voiced])
    test = held_out.repeat_interleave(len(WORDS))
    print(f"{len(spoken)} recordings, {int(test.sum())} of them for testing, {config}")
    for noise in (None, 20.0, 10.0, 5.0):
        accuracy = probe(measure(spoken, config, noise), labels, test)
        print(f"{'clean' if noise is None else f'{noise:.0f} dB'}: {accuracy:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
