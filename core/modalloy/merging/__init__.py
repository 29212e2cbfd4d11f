"""Merging: parents' deltas become one, in closed form and without data."""
