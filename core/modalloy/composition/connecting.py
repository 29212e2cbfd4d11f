"""Connectors of a composition: from an encoder's features to embeddings of the base."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from modalloy.errors import SpecError
from modalloy.modality import resolve
from modalloy.registry import Registry

_AXES = 3  # N, K, D


class ModalityConnector(nn.Module):
    """A connector with its learned embeddings before and after the features.

    Args:
        projection: The connector.
        hidden: D, hidden size of the base.
        prefix: P.
        suffix: S.
        kind: Name of the connector's type, for messages.

    Attributes:
        projection: The connector, ``(N, K, F)`` to ``(N, K', D)``.
        prefix: ``(P, D)``, or ``None``.
        suffix: ``(S, D)``, or ``None``.
    """

    def __init__(
        self, projection: nn.Module, hidden: int, prefix: int, suffix: int, kind: str = ""
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.kind = kind
        self.projection = projection
        self.prefix = nn.Parameter(torch.zeros(prefix, hidden)) if prefix else None
        self.suffix = nn.Parameter(torch.zeros(suffix, hidden)) if suffix else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(N, K, F)`` to ``(N, P + K' + S, D)``.

        Raises:
            SpecError: The connector returns something else than ``(N, K', D)``: embeddings of
                another width would slide into one another unseen.
        """
        body = self.projection(features)
        count = features.shape[0]
        if body.dim() != _AXES or (body.shape[0], body.shape[2]) != (count, self.hidden):
            raise SpecError(
                f"connector {self.kind!r} returned {tuple(body.shape)} for features "
                f"{tuple(features.shape)}, expected ({count}, tokens, {self.hidden}); the last is "
                "the base's hidden size, the third argument of its build",
                subject=self.kind,
            )
        ends = [None if e is None else e.expand(count, -1, -1) for e in (self.prefix, self.suffix)]
        return torch.cat([part for part in (ends[0], body, ends[1]) if part is not None], dim=1)


def build_connector(
    entry: Mapping[str, Any], features: int, hidden: int, registry: Registry
) -> ModalityConnector:
    """Return the connector of a modality, untrained.

    Args:
        entry: Its entry in ``modalities`` of the configuration.
        features: F, features per token of its encoder.
        hidden: D, hidden size of the base.
        registry: Supplies the connector type.
    """
    connector = entry["connector"]
    kind = registry.connector(connector["type"])
    projection = resolve(kind.build)(connector["config"], features, hidden)
    ends = entry["prefix_tokens"], entry["suffix_tokens"]
    return ModalityConnector(projection, hidden, *ends, kind.name)
