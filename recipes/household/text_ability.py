"""What a composition keeps of its base's command of text: the perplexity of a plain text."""

import math
from collections.abc import Callable, Sequence

import attrs
import torch
import torch.nn.functional as F

WINDOW, STRIDE = 512, 256
"""Tokens that are read at once, and by how many the window moves on."""

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Ids ``(1, T)`` to logits ``(1, T, V)``."""


@attrs.frozen
class TextScore:
    """How well a text was foretold.

    Attributes:
        loss: Mean negative log-likelihood of a token, in nats.
        tokens: How many tokens were foretold.
    """

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return math.exp(self.loss)


@torch.no_grad()
def foretell(
    logits: Logits, ids: Sequence[int], window: int = WINDOW, stride: int = STRIDE
) -> TextScore:
    """Score every token of a text but the first, each once.

    A token is foretold from at least ``window - stride`` tokens before it, or from all there are.

    Args:
        logits: The model.
        ids: The text.
        window: Tokens read at once.
        stride: By how many the window moves on; at most ``window - 1``.

    Raises:
        ValueError: The text has no second token, or the window does not move as it should.
    """
    if len(ids) < 2 or not 0 < stride < window:  # noqa: PLR2004 - a token and one to foretell
        raise ValueError(
            f"expected two tokens or more and 0 < stride < window; found {len(ids)} tokens, stride "
            f"{stride}, window {window}"
        )
    total, done = 0.0, 1
    for start in range(0, len(ids), stride):
        row = torch.tensor([list(ids[start : start + window])])
        end = start + row.shape[1]
        scores = logits(row)[0, done - start - 1 : -1].float()
        target = row[0, done - start :]
        total += float(F.cross_entropy(scores, target, reduction="sum"))
        done = end
        if end == len(ids):
            break
    return TextScore(total / (len(ids) - 1), len(ids) - 1)
