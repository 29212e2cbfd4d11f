"""Sensor series for modalloy: CSV and parquet, an encoder by patches, a recipe."""

__version__ = "0.1.0"
