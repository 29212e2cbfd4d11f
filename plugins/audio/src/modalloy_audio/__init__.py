"""Hearing for modalloy: reads sound, encodes it, and brings parents tuned on it."""

__version__ = "0.1.0"
