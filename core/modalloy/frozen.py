"""For encoders of plugins: frozen models of transformers, and those that wait for their weights."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from modalloy.errors import MissingComponentError
from modalloy.parent import ENCODER_FILE

M = TypeVar("M", bound=PreTrainedModel)


class FrozenModel(nn.Module):
    """A frozen model that stays in evaluation mode, whatever the mode of the model around it.

    Args:
        model: Its tensors are ``model.`` and their names in its own class.
        awaiting: Encoder type, where the weights are still to be loaded: until then the encoder
            refuses to encode. ``None`` where the model has them.
    """

    def __init__(self, model: nn.Module, *, awaiting: str | None = None) -> None:
        super().__init__()
        self.model = model.requires_grad_(requires_grad=False)
        self.awaiting = awaiting
        self.register_load_state_dict_post_hook(_note_loaded)
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Stay in evaluation mode; ``mode`` is ignored on purpose, see the class."""
        del mode
        return super().train(mode=False)

    def check_loaded(self) -> None:
        """Refuse to go on without weights.

        Raises:
            MissingComponentError: They have not been loaded.
        """
        if self.awaiting is not None:
            raise MissingComponentError(
                f"encoder {self.awaiting!r}: its configuration holds an architecture and no "
                f"weights, which a parent brings in {ENCODER_FILE}, and none were loaded; restore "
                "that file beside parent.json, or convert the model again",
                component=self.awaiting,
            )


def without_weights(make: Callable[[], M]) -> M:
    """Make a model whose weights are to be loaded: none are set, no random numbers are drawn."""
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu")
    parameters: Any = model.parameters()
    for parameter in parameters:
        parameter._is_hf_initialized = True  # noqa: SLF001 - transformers' mark of what is loaded
    model.initialize_weights()  # positions and frequencies, which no file holds
    return model


def _note_loaded(module: nn.Module, incompatible: Any) -> None:
    if isinstance(module, FrozenModel) and not incompatible.missing_keys:
        module.awaiting = None
