"""Waveforms at another sampling rate."""

import numpy as np
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample


def at_rate(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Return samples ``(n,)`` at ``rate`` Hz as samples at ``wanted`` Hz, with no aliasing."""
    if rate == wanted:
        return samples
    # A copy, because the samples may be the caller's own array, which torch must not share.
    resampled: NDArray[np.float32] = resample(torch.tensor(samples), rate, wanted).numpy()
    return resampled
