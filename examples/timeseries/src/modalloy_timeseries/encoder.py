"""Encoder ``timeseries-patches``: patches of a series, each told by frequencies and statistics.

It has no trained weights. A series of any length is first brought to even intervals: the mean of
each, and how much its readings spread about a line through the means, which is what is left of
vibrations too fast for the intervals.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from modalloy.errors import InputError
from numpy.typing import NDArray
from torch import nn

from modalloy_timeseries.configuration import SCALES, read_config
from modalloy_timeseries.series import Series

_TINY = float(np.finfo(np.float64).tiny)
_LARGE = 50.0  # log(1 + exp(x)) is x from here on
_FLAT = float(np.finfo(np.float32).eps)  # of the largest value: below, it is rounding that varies


class PatchEncoder(nn.Module):
    """Cosine transforms (DCT-II) of each patch, the sizes of the whole's, and statistics.

    Without their signs, the whole's tell which waves there are, wherever they begin.

    Args:
        tokens: K, patches.
        samples: Intervals of a patch.
    """

    patch: torch.Tensor
    whole: torch.Tensor

    def __init__(self, tokens: int, samples: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.register_buffer("patch", _cosines(samples, samples))
        self.register_buffer("whole", _cosines(tokens * samples, samples))

    def forward(
        self,
        level: torch.Tensor,
        rough: torch.Tensor,
        scale: torch.Tensor,
    ) -> torch.Tensor:
        """Encode N series of C columns.

        Args:
            level: ``(N, C, K * samples)``, means of intervals, of mean 0 and deviation 1.
            rough: ``(N, C, K * samples)``, spread within intervals.
            scale: ``(N, C, 3)``.

        Returns:
            Features ``(N, K, F)``.
        """
        own = level.unflatten(-1, (self.tokens, -1)) @ self.patch
        shared = (level @ self.whole).abs().unsqueeze(-2).expand_as(own)
        rough = rough.unflatten(-1, (self.tokens, -1)).mean(dim=-1, keepdim=True)
        scale = scale.unsqueeze(-2).expand(-1, -1, self.tokens, -1)
        columns = torch.cat([own, shared, rough, scale], dim=-1)  # (N, C, K, F / C)
        return columns.transpose(1, 2).flatten(2)


def _cosines(size: int, count: int) -> torch.Tensor:
    """Return the first ``count`` cosines over ``size`` samples, ``(size, count)``, of unit norm."""
    time = torch.arange(size, dtype=torch.float64)[:, None] + 0.5
    waves = torch.cos(math.pi / size * time * torch.arange(count, dtype=torch.float64))
    return (waves / waves.norm(dim=0).clamp(min=1e-9)).float()


def build(config: Mapping[str, Any]) -> nn.Module:
    """Return the encoder.

    Raises:
        SpecError: The configuration is not the encoder's.
    """
    parsed = read_config(config)
    return PatchEncoder(parsed.tokens, parsed.samples)


def preprocess(decoded: Series, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Bring a series to even intervals, and each column to mean 0 and deviation 1.

    Args:
        decoded: What ``read`` returned.
        config: The encoder's configuration.

    Returns:
        ``level`` and ``rough`` of shape ``(C, K * samples)``, and ``scale (C, 3)``: the column's
        mean and deviation, of both the logarithm, and the share of readings that are missing.
        All float32.

    Raises:
        InputError: The series has more columns than the encoder takes.
        SpecError: The configuration is not the encoder's.
    """
    parsed = read_config(config)
    found = decoded.values.shape[1]
    if found > parsed.columns:
        raise InputError(
            f"the series has {found} columns ({', '.join(decoded.names[:8])}), the encoder takes "
            f"{parsed.columns}; leave out those that it was not trained on"
        )
    size = parsed.tokens * parsed.samples
    level, rough = np.zeros((2, parsed.columns, size), dtype=np.float32)
    scale = np.zeros((parsed.columns, SCALES), dtype=np.float32)
    times = np.arange(len(decoded.values)) if decoded.times is None else decoded.times
    for index, column in enumerate(decoded.values.T):
        known = ~np.isnan(column)
        largest = max(float(np.abs(column[known]).max()), _TINY)
        means, spreads = _intervals(column[known] / largest, times[known], float(times[-1]), size)
        middle, deviation = float(means.mean()), float(means.std())
        # Relative to both, so that a column of nothing but vibration is told as well.
        rough[index] = spreads / (deviation + spreads.mean() + _FLAT)
        if deviation > _FLAT:
            level[index] = (means - middle) / deviation
        scale[index] = (
            math.copysign(_log(abs(middle), largest), middle),
            _log(deviation if deviation > _FLAT else 0.0, largest),
            1 - known.mean(),
        )
    arrays = {"level": level, "rough": rough, "scale": scale}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _log(share: float, largest: float) -> float:
    """Return ``log(1 + share * largest)``, which may be beyond what a float holds."""
    if share == 0:
        return 0.0
    exponent = math.log(share) + math.log(largest)
    return exponent if exponent > _LARGE else math.log1p(math.exp(exponent))


def _intervals(
    values: NDArray[np.float64], times: NDArray[Any], last: float, size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and spread of readings in ``size`` even intervals from 0 to ``last``.

    An interval without a reading has the value of a line between its neighbours, and no spread.
    """
    place = np.minimum((times / last * size).astype(np.int64), size - 1)
    count = np.bincount(place, minlength=size)
    full = np.flatnonzero(count)
    some = np.bincount(place, weights=values, minlength=size)[full] / count[full]
    centres = (full + 0.5) * last / size
    means = np.interp((np.arange(size) + 0.5) * last / size, centres, some)
    left = values - np.interp(times, centres, some)
    spreads = np.zeros(size)
    spreads[full] = np.sqrt(np.bincount(place, weights=left**2, minlength=size)[full] / count[full])
    return means, spreads
