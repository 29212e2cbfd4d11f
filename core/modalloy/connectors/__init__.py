"""Connectors that the core ships; each maps features ``(N, K, F)`` to embeddings ``(N, K', D)``."""
