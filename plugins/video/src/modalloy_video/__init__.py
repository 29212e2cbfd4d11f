"""Moving pictures for modalloy: how they are read, encoded, and which parents come along."""

__version__ = "0.1.0"
