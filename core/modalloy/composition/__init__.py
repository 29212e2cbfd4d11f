"""Composition: base, parents and a method become one transformers model."""
