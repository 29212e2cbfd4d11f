"""Point clouds for modalloy: how they are read, encoded, and which trained parents come along."""

__version__ = "0.1.0"
