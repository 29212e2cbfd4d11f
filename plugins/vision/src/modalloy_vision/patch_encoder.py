"""Frozen vision transformers that return the patches of one hidden state."""

import torch
from torch import nn

from modalloy.frozen import FrozenModel


class PatchEncoder(FrozenModel):
    """A frozen vision transformer that returns the patches of one hidden state.

    Args:
        model: Maps ``pixel_values`` to hidden states ``(N, prefix + K, F)``.
        layer: Which hidden state, see :class:`~modalloy_vision.configuration.TransformersConfig`.
        prefix: Tokens before those that are returned: 1 where there is a class token and it is
            not selected, else 0.
        awaiting: See :class:`~modalloy.frozen.FrozenModel`.
    """

    def __init__(
        self, model: nn.Module, layer: int, prefix: int, *, awaiting: str | None = None
    ) -> None:
        super().__init__(model, awaiting=awaiting)
        self.layer = layer
        self.prefix = prefix

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pictures.

        Args:
            pixel_values: ``(N, 3, image_size, image_size)``.

        Returns:
            ``(N, K, F)`` in the dtype of the weights, the patches row by row.

        Raises:
            MissingComponentError: The weights have not been loaded.
        """
        self.check_loaded()
        states = self.model(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        return states[self.layer][:, self.prefix :]
