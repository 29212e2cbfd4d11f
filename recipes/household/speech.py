"""Spoken words: the voicings, and espeak-ng's sound as 16 kHz FLAC."""

import subprocess
from io import BytesIO
from pathlib import Path

import attrs
import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray
from recipes.household.draws import generator

RATE = 16_000
_TRAIN = """
m1 m2 m3 m4 m5 m6 f1 f2 f3 adam Alex Alicia Andy antonio belinda benjamin boris caleb david Diogo
ed Gene Gene2 gustave Henrique iven iven2 iven3 iven4 Jacky john kaukovalta klatt klatt2 klatt3
klatt4 Lee linda Marco Mario max Michael michel Mike Nguyen pablo paul pedro quincy rob steph
steph2 steph3 travis victor
"""
_TEST = """
m8 f5 anika Annie aunty Denis edward edward2 marcelo miguel Mr norbert robert sandro shelby
"""
# Voices that were made from one another (iven, iven2, ...) stand in one split.
VARIANTS = {
    "train": _TRAIN.split(),
    "val": ["m7", "f4", "Andrea", "Hugo", "zac"],
    "test": _TEST.split(),
}
"""espeak-ng's voice variants by split: 55, 5 and 15."""
ACCENTS = ("en-gb", "en-us", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan")
SPEEDS = (110, 130, 150, 175)
PITCHES = (30, 50, 70)
TAKES = 2
"""Recordings of one training voicing: a clean one and one with noise, each with its own gain."""


@attrs.frozen
class Voicing:
    """One way to say a word.

    Attributes:
        variant: Voice variant of espeak-ng.
        accent: Voice of espeak-ng.
        speed: Words a minute.
        pitch: 0 to 99.
    """

    variant: str
    accent: str
    speed: int
    pitch: int

    @property
    def name(self) -> str:
        """Name for files and ids."""
        return f"{self.variant}_{self.accent}_{self.speed}_{self.pitch}".lower()


def voicings(split: str, seed: int) -> list[Voicing]:
    """One voicing for each variant of ``split``, accent, speed and pitch drawn from ``seed``."""
    rng = generator(seed, "voicings", split)
    return [
        Voicing(
            variant=variant,
            accent=ACCENTS[rng.integers(len(ACCENTS))],
            speed=SPEEDS[rng.integers(len(SPEEDS))],
            pitch=PITCHES[rng.integers(len(PITCHES))],
        )
        for variant in VARIANTS[split]
    ]


def missing_variants(espeak: Path) -> list[str]:
    """Variants in :data:`VARIANTS` that the installed espeak-ng does not have, sorted."""
    listing = subprocess.run(
        [espeak, "--voices=variant"], check=True, capture_output=True, text=True
    ).stdout
    known = {line.split("!v/")[1].split()[0] for line in listing.splitlines() if "!v/" in line}
    return sorted(set().union(*VARIANTS.values()) - known)


def say(espeak: Path, word: str, voicing: Voicing) -> NDArray[np.float32]:
    """Speaks ``word``.

    Returns:
        float32 (samples,) at 16 kHz, peak 0.5.

    Raises:
        ValueError: espeak-ng gave silence.
    """
    command: list[str | Path] = [
        espeak,
        *("-v", f"{voicing.accent}+{voicing.variant}", "-s", str(voicing.speed)),
        *("-p", str(voicing.pitch), "--stdout", word),
    ]
    sound = subprocess.run(command, check=True, capture_output=True).stdout
    wave, rate = soundfile.read(BytesIO(sound), dtype="float32")
    wave = torchaudio.functional.resample(torch.from_numpy(wave), rate, RATE).numpy()
    peak = float(np.abs(wave).max(initial=0.0))
    if peak < 0.01:  # noqa: PLR2004 - two grades above rounding
        raise ValueError(
            f"espeak-ng said {word!r} in voice {voicing.name} with peak {peak:.4f}; expected "
            "sound. Does `espeak-ng --voices=variant` list the variant?"
        )
    return _pad(wave * np.float32(0.5 / peak))


def _pad(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Trims the silence of both ends to a tenth of a second."""
    loud = np.flatnonzero(np.abs(wave) > 0.01)  # noqa: PLR2004 - 34 dB below the peak
    edge = np.zeros(RATE // 10, dtype=np.float32)
    return np.concatenate([edge, wave[loud[0] : loud[-1] + 1], edge])


def add_noise(
    wave: NDArray[np.float32], snr: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Adds pink-ish noise.

    Args:
        wave: float32 (samples,).
        snr: Signal power over noise power, in dB.
        rng: Source of the noise.

    Returns:
        float32 (samples,), scaled down where it would clip.
    """
    white = rng.normal(size=len(wave))
    # Half white, half its running mean: hiss and rumble, so that no filter takes all of it.
    low = np.convolve(white, np.ones(8) / 8**0.5, mode="same")
    noise = (white + low) / 2
    power = float(np.mean(np.square(wave, dtype=np.float64)))
    noise *= np.sqrt(power / 10 ** (snr / 10) / np.mean(noise**2))
    mixed = wave + noise
    return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def take(wave: NDArray[np.float32], number: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Recording ``number`` of a training voicing: 0 has no noise, the others 10 to 30 dB."""
    gain = np.float32(rng.uniform(0.4, 1.6))
    if number:
        wave = add_noise(wave, float(rng.uniform(10, 30)), rng)
    return (wave * gain).clip(-1, 1)


def write(path: Path, wave: NDArray[np.float32]) -> None:
    """Writes a mono 16-bit FLAC file, whole or not at all."""
    part = path.with_suffix(".part")
    soundfile.write(part, wave, RATE, format="FLAC", subtype="PCM_16")
    part.rename(path)
