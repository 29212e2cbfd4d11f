"""Where the sound is in a recording, and clips of fixed length around it; numpy only."""

import warnings

import numpy as np
from numpy.typing import NDArray

from modalloy.errors import ModalloyWarning

Samples = NDArray[np.float32]

_WINDOW = 0.02  # seconds over which loudness is measured: two periods of a low voice
_QUIET = 0.01  # -40 dB below the loudest moment counts as silence
_NOISE = 2.0  # so does what is within 6 dB of the steady noise
_INAUDIBLE = 1e-6  # of full scale, below what 16 or 20 bits can hold: noise of arithmetic
_MOST = 0.25  # but never what is within 12 dB of the loudest moment


def trim(samples: Samples, rate: int) -> Samples:
    """Return the sound without the background before and after it.

    Loudness is the RMS over 20 ms around each sample. A recording is heard as if silence lay
    around it, so that one that starts or ends within the sound gives the same as a longer one.

    Args:
        samples: Mono, shape ``(n,)``, n > 0.
        rate: Samples a second.

    Returns:
        From the first to the last moment louder than the background; silence as it is.
    """
    window = max(1, round(_WINDOW * rate))
    padded = np.pad(samples, window)
    loudness = _rms(padded, window)
    peak = float(loudness.max())
    noise = float(np.percentile(loudness, 10))
    threshold = min(max(_QUIET * peak, _NOISE * noise), _MOST * peak)
    active = np.flatnonzero(loudness > threshold)
    if active.size == 0:
        return samples
    return padded[active[0] : active[-1] + 1]


def cut(samples: Samples, length: int, rate: int) -> Samples:
    """Return at most ``length`` samples; of a longer sound, its most energetic part."""
    if len(samples) <= length:
        return samples
    # The text names no length of the recording's own, so that a hundred of them warn once.
    warnings.warn(
        f"audio: a sound longer than the {length / rate:.2f} seconds that the encoder hears is "
        "cut to its loudest part",
        ModalloyWarning,
        stacklevel=3,
    )
    energy = np.concatenate(([0.0], np.cumsum(samples.astype(np.float64) ** 2)))
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return samples[start : start + length]


def centre(samples: Samples, length: int) -> Samples:
    """Return exactly ``length`` samples: the sound in the middle, zeros around it."""
    spare = length - len(samples)
    return np.pad(samples, (spare // 2, spare - spare // 2))


def level(samples: Samples, target: float) -> Samples:
    """Return ``samples`` scaled to a peak of ``target``; silence stays as it is."""
    peak = float(np.abs(samples).max())
    return samples * np.float32(target / peak) if peak > _INAUDIBLE else samples


def _rms(samples: Samples, window: int) -> NDArray[np.float64]:
    """Return the RMS over ``window`` samples centred on each sample, shape ``(n,)``."""
    padded = np.pad(samples.astype(np.float64), (window // 2, window - window // 2 - 1))
    total = np.concatenate(([0.0], np.cumsum(padded**2)))
    return np.sqrt(np.maximum(total[window:] - total[:-window], 0.0) / window)
