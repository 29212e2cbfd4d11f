"""Deltas: what tuning changed in a base, as low-rank pairs."""
