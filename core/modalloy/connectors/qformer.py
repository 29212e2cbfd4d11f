"""The ``qformer_{N}N_{L}L`` connector of ModelCompose (Chen et al., arXiv 2402.12750).

A Q-Former (Li et al., arXiv 2301.12597): N learned queries gather what an encoder has found, by
the layers of a BERT with cross-attention in each. It is run without dropout, also in training.

    x = norm(queries), features += position_embedding
    in each layer: x = norm(x + self_attention(x)), x = norm(x + cross_attention(x, features)),
        x = norm(x + down(gelu(up(x))))
    output(x)
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from modalloy.connectors.qformer_options import NAME, read
from modalloy.errors import InputError

_EPSILON = 1e-12  # BERT's
_DEVIATION = 0.02  # of BERT's initial weights


def build(config: Mapping[str, Any], features: int, hidden: int) -> nn.Module:
    """Return a Q-Former from ``(N, K, F)`` to ``(N, queries, D)``.

    Args:
        config: ``{"queries": int, "layers": int, "width": int, "heads": int, "positions": int,
            "intermediate": int}``; 32, 2, 768, 12, 1024 and 0 by default, which stands for four
            times the width. ``positions`` bounds K.
        features: F, features per token of the encoder.
        hidden: D, hidden size of the base.

    Raises:
        SpecError: The configuration has an unknown key or a wrong value.
    """
    return QFormer(read(config), features, hidden)


class QFormer(nn.Module):
    """Learned queries that attend to an encoder's features (W: width, P: positions).

    Attributes:
        query_tokens: ``(1, queries, W)``.
        position_embedding: ``(P, F)``, added to the features.
        norm: Of the queries.
        layers: :class:`QFormerLayer`, one after another.
        output: W to D.
    """

    def __init__(self, options: Mapping[str, int], features: int, hidden: int) -> None:
        super().__init__()
        width = options["width"]
        self.query_tokens = nn.Parameter(torch.empty(1, options["queries"], width))
        nn.init.normal_(self.query_tokens, std=_DEVIATION)
        self.position_embedding = nn.Embedding(options["positions"], features)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.layers = nn.ModuleList(
            QFormerLayer(width, options["heads"], options["intermediate"], features)
            for _ in range(options["layers"])
        )
        self.output = nn.Linear(width, hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features ``(N, K, F)`` to embeddings ``(N, queries, D)``.

        Raises:
            InputError: K exceeds the positions.
        """
        count, positions = features.shape[1], self.position_embedding.num_embeddings
        if count > positions:
            raise InputError(
                f"connector {NAME!r} has {positions} positions, it was given {count} tokens an "
                "input; give it features of the encoder that it was trained with"
            )
        features = features + self.position_embedding.weight[:count]
        x = self.norm(self.query_tokens).expand(features.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, features)
        projected: torch.Tensor = self.output(x)
        return projected


class QFormerLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with its norm after the sum."""

    def __init__(self, width: int, heads: int, intermediate: int, features: int) -> None:
        super().__init__()
        self.self_attention = QFormerAttention(width, heads, width)
        self.cross_attention = QFormerAttention(width, heads, features)
        self.up = _linear(width, intermediate)
        self.down = _linear(intermediate, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Map ``(N, Q, W)`` to ``(N, Q, W)`` by way of features ``(N, K, F)``."""
        x = self.self_attention(x, x)
        x = self.cross_attention(x, features)
        normed: torch.Tensor = self.norm(x + self.down(F.gelu(self.up(x))))
        return normed


class QFormerAttention(nn.Module):
    """Attention of one sequence to another, with its norm after the sum."""

    def __init__(self, width: int, heads: int, source: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = _linear(width, width)
        self.key = _linear(source, width)
        self.value = _linear(source, width)
        self.output = _linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Return ``x (N, Q, W)`` plus what it finds in ``source (N, S, *)``, normed."""
        query, key, value = (
            tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tensor in (self.query(x), self.key(source), self.value(source))
        )
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        normed: torch.Tensor = self.norm(x + self.output(found))
        return normed


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that starts as BERT's do."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=_DEVIATION)
    nn.init.zeros_(layer.bias)
    return layer
