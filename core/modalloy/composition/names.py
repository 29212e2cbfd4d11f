"""Names by which users of transformers know the parts of a multimodal model.

They follow LLaVA and the models after it (``transformers.models.llava``), by content type: what is
an encoder and a connector here is a tower and a projector there. Names that could not mean the same
are left out. ``model.model`` is LLaVA's model without its head: here ``get_decoder()`` is. And
``get_placeholder_mask`` returns one mask, two or three, as an architecture has it: here
``token_types(input_ids) == type_ids[modality]`` is the mask of each modality.
"""

import functools
import re
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modalloy.composition.configuration import ModalloyConfig
from modalloy.composition.encoders import EncoderStore
from modalloy.errors import InputError

_PATTERN = re.compile(r"(?P<tower>\w+)_tower|get_(?P<features>\w+)_features")
_PROJECTOR = "multi_modal_projector"
_TYPES = {"vision": "image"}
"""Words of transformers' that are no content type."""


class FamiliarNames:
    """Aliases on a composed model, see the class that mixes this in.

    ``vision_tower``, ``audio_tower``, ``<content type>_tower``: the encoder, opened. It is no
    submodule of the model, and returns features ``(N, K, F)``.

    ``get_image_features``, ``get_audio_features``, ``get_<content type>_features``: see
    :meth:`_features`.

    ``multi_modal_projector``: the connector of a composition of one modality.

    A composition has those of its own modalities and no others.

    Attributes:
        config: Of the composition.
        connectors: Connector by modality.
        encoders: Opens and keeps the encoders.
    """

    config: ModalloyConfig
    connectors: nn.ModuleDict
    device: torch.device
    encoders: EncoderStore
    connect: Any

    def __getattr__(self, name: str) -> Any:
        """Return what an alias stands for.

        Raises:
            AttributeError: There is no such attribute, or the composition has no such modality.
            MissingComponentError: The encoder of a tower is not installed.
        """
        found = _PATTERN.fullmatch(name)
        if name == _PROJECTOR:
            return self._connector()
        if found is None:
            parent: Any = super()
            return parent.__getattr__(name)
        modality = self._of_type(found["tower"] or found["features"])
        if modality is None:
            raise AttributeError(
                f"there is no {name!r}: this composition understands "
                f"{', '.join(sorted(self._types()))}"
            )
        if found["tower"]:
            return self.encoders.opened(modality)
        return functools.partial(self._features, modality)

    def get_encoder(self, modality: str | None = None) -> Any:
        """Return the encoder of a content type, as transformers' models do; the model for none.

        Raises:
            InputError: The composition has no such modality.
            MissingComponentError: The encoder is not installed.
        """
        if modality is None:
            return self
        name = self._of_type(modality)
        if name is None:
            raise InputError(
                f"there is no encoder of {modality!r} inputs: this composition understands "
                f"{', '.join(sorted(self._types()))}"
            )
        return self.encoders.opened(name)

    def _features(
        self, modality: str, /, *, return_dict: bool | None = None, **inputs: torch.Tensor
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        """Encode and connect inputs, which is what ``get_image_features`` and its like are.

        Args:
            modality: Name of the modality.
            return_dict: False returns a tuple, as in transformers.
            **inputs: The processor's tensors, stacked over N inputs, with or without their
                ``<modality>_``.

        Returns:
            ``last_hidden_state``, the encoder's features ``(N, K, F)`` float32, and
            ``pooler_output``, the embeddings ``(N, tokens, D)`` that stand in the prompt.

        Raises:
            InputError: The inputs are not those that the encoder takes.
            MissingComponentError: The encoder is not installed.
        """
        given = {name.removeprefix(f"{modality}_"): tensor for name, tensor in inputs.items()}
        with torch.no_grad():
            features = self.encoders.run(modality, given, self.device)
        output = BaseModelOutputWithPooling(
            last_hidden_state=features, pooler_output=self.connect(modality, features)
        )
        return output.to_tuple() if return_dict is False else output

    def _connector(self) -> nn.Module:
        connectors = list(self.connectors.values())
        if len(connectors) != 1:
            raise AttributeError(
                f"there is no one {_PROJECTOR!r}: this composition has a connector for each of "
                f"{', '.join(self.connectors)}; take connectors[<modality>]"
            )
        return connectors[0]

    def _types(self) -> dict[str, str]:
        return {entry["content_type"]: name for name, entry in self.config.modalities.items()}

    def _of_type(self, word: str) -> str | None:
        return self._types().get(_TYPES.get(word, word))
