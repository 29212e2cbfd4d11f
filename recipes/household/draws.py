"""Random draws that depend on what they are for alone, not on the process or on their order."""

import zlib
from random import Random

import numpy as np


def dice(*key: object) -> Random:
    """A generator for choices and shuffles, seeded by ``key``."""
    return Random(":".join(map(str, key)))  # noqa: S311 - draws samples, guards no secret


def generator(*key: object) -> np.random.Generator:
    """A generator for arrays, seeded by ``key``."""
    text = ":".join(map(str, key)).encode()
    return np.random.default_rng([zlib.crc32(text), zlib.adler32(text)])
