"""From a prompt's ids and media to embeddings: the part of a composed model before its base."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from modalloy.composition.caches import NAMES
from modalloy.composition.configuration import ModalloyConfig
from modalloy.composition.devices import execution_device
from modalloy.composition.encoders import EncoderStore
from modalloy.composition.folding import Folding
from modalloy.composition.streams import Routing, StreamRouter, check_types, route
from modalloy.composition.vectors import StreamEmbedding
from modalloy.errors import InputError
from modalloy.modality import TEXT_TYPE_ID

_FOREIGN = frozenset(
    {
        *GenerationConfig().to_dict(),
        *("attention_mask", "cache_position", "input_ids", "inputs_embeds", "logits_processor"),
        *("num_items_in_batch", "position_ids", "return_dict", "token_type_ids", *NAMES),
    }
)
"""Arguments of transformers' own, which a modality of such a name must not capture."""


class MediaEmbedding:
    """What a composed model does with its inputs, see the class that mixes this in.

    Attributes:
        config: Of the composition.
        connectors: Connector by modality.
        encoders: Opens and keeps the encoders.
        type_ids: Value in ``mm_token_type_ids`` by modality.
    """

    config: ModalloyConfig
    connectors: nn.ModuleDict
    encoders: EncoderStore
    type_ids: dict[str, int]
    device: torch.device
    get_input_embeddings: Callable[[], nn.Module]
    coefficients: Any
    trial: torch.Tensor | None
    router: StreamRouter
    head_router: StreamRouter | None
    folding: Folding

    def encode(self, modality: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Turn preprocessed inputs into embeddings.

        Args:
            modality: Name of the modality.
            inputs: Tensors of its encoder's ``preprocess``, stacked over N inputs.

        Returns:
            ``(N, tokens, D)`` in the connector's dtype, prefix and suffix included.

        Raises:
            MissingComponentError: The encoder is not installed.
        """
        with torch.no_grad():
            features = self.encoders.run(modality, inputs, self.device)
        return self.connect(modality, features)

    def connect(self, modality: str, features: torch.Tensor) -> torch.Tensor:
        """Turn an encoder's features ``(N, K, F)`` into embeddings ``(N, tokens, D)``."""
        connector = self.connectors[modality]
        dtype = next((p.dtype for p in connector.parameters()), features.dtype)
        return connector(features.to(device=execution_device(connector), dtype=dtype))

    def route(self, types: torch.Tensor, present: torch.Tensor) -> Routing:
        """Return the streams of the tokens of a pass.

        Args:
            types: ``(B, T)`` ``mm_token_type_ids`` of its tokens.
            present: ``(B, M)`` bool: modalities in each row's whole prompt.
        """
        decoupled, trial = self.config.decoupled, self.trial
        return route(
            types, present, self.type_ids, self.coefficients, decoupled=decoupled, trial=trial
        )

    def start_pass(
        self, types: torch.Tensor, present: torch.Tensor, cached: int, keep: int | torch.Tensor
    ) -> None:
        """Tell the stream-aware layers which streams the tokens of the coming pass are on.

        Args:
            types: ``(B, T)``, as in :meth:`route`.
            present: ``(B, M)``, as in :meth:`route`.
            cached: Tokens in the cache.
            keep: ``logits_to_keep`` of the pass.
        """
        self.router.routing = self.route(types, present)
        self.folding.before_pass(self.router, cached=cached)
        if self.head_router is not None:
            columns = slice(-keep if keep else None, None) if isinstance(keep, int) else keep
            self.head_router.routing = self.route(types[:, columns], present)
            self.head_router.runs_folded = self.router.runs_folded

    def end_pass(self) -> None:
        """Forget the streams of the pass."""
        for router in (self.router, self.head_router):
            if router is not None:
                router.clear()

    def present(self, types: torch.Tensor) -> torch.Tensor:
        """Return ``(B, M)`` bool: which modalities the rows of ``types (B, T)`` hold inputs of."""
        columns = [(types == value).any(dim=1) for value in self.type_ids.values()]
        return torch.stack(columns, dim=1)

    def embed(
        self,
        input_ids: torch.Tensor,
        types: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the embeddings of a prompt, inputs in place of their placeholders.

        Args:
            input_ids: ``(B, T)`` int64.
            types: ``(B, T)`` ``mm_token_type_ids``.
            inputs: ``<modality>_<tensor>``: preprocessed inputs ``(N, ...)``, or
                ``<modality>_features (N, K, F)`` where they were encoded before.
            present: ``(B, M)`` bool: modalities of the whole prompts, where ``input_ids`` are a
                part of them; read off ``types`` if left out.

        Returns:
            ``(B, T, D)``.

        Raises:
            InputError: A tensor belongs to no modality, or inputs and placeholders differ in
                number, or there are placeholders and no inputs.
        """
        # Placeholders may have ids beyond the embedding; their rows are overwritten or unused.
        text = torch.where(types == TEXT_TYPE_ID, input_ids, 0)
        embedding = self.get_input_embeddings()
        if isinstance(embedding, StreamEmbedding):
            routing = self.route(types, self.present(types) if present is None else present)
            embeds = embedding(text, routing)
        else:
            embeds = embedding(text)
        groups = self._by_modality(inputs)
        for name, value in self.type_ids.items() if bool(types.any()) else ():
            if name not in groups and bool((types == value).any()):
                raise InputError(
                    f"{name}: the prompt has placeholder tokens and there are no inputs for them; "
                    f"give the processor's {name}_* tensors beside input_ids"
                )
        for name, tensors in groups.items():
            ready = tensors.get("features")
            vectors = self.connect(name, ready) if ready is not None else self.encode(name, tensors)
            mask = types == self.type_ids[name]
            found, needed = int(mask.sum()), vectors.shape[0] * vectors.shape[1]
            if found != needed:
                raise InputError(
                    f"{name}: the prompt has {found} placeholder tokens, {vectors.shape[0]} inputs "
                    f"of {vectors.shape[1]} tokens need {needed}; lay the prompt out with the "
                    "composition's own processor (and a connector that changes how many there are "
                    "has to declare output_tokens)"
                )
            vectors = vectors.to(device=embeds.device, dtype=embeds.dtype).flatten(0, 1)
            embeds = embeds.masked_scatter(mask[..., None], vectors)
        return embeds

    def _by_modality(
        self, inputs: Mapping[str, torch.Tensor]
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Group ``<modality>_<tensor>`` by modality, the longest matching name first."""
        groups: dict[str, dict[str, torch.Tensor]] = {}
        names = sorted(self.connectors, key=len, reverse=True)
        for key in sorted(inputs):
            owner = next((name for name in names if key.startswith(f"{name}_")), None)
            if owner is None:
                raise InputError(
                    f"forward got {key!r}, which no modality of this composition takes; inputs "
                    f"are named <modality>_<tensor>, the modalities are {', '.join(sorted(names))}"
                )
            groups.setdefault(owner, {})[key[len(owner) + 1 :]] = inputs[key]
        return groups

    def token_types(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        mm_token_type_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return ``(B, T)`` types, read off the placeholders where they are not given.

        Raises:
            InputError: A type is not the composition's, or there are both or no ids and
                embeddings.
        """
        if mm_token_type_ids is not None:
            check_types(mm_token_type_ids, self.type_ids)
            return mm_token_type_ids
        if input_ids is not None:
            types = torch.zeros_like(input_ids)
            for entry in self.config.modalities.values():
                types[input_ids == entry["placeholder_id"]] = entry["token_type_id"]
            return types
        if inputs_embeds is not None:
            shape, device = inputs_embeds.shape[:2], inputs_embeds.device
            return torch.zeros(shape, dtype=torch.long, device=device)
        raise InputError("give input_ids or inputs_embeds")

    def take_media(self, kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Take ``<modality>_<tensor>`` out of ``kwargs``, and nothing that transformers knows."""
        prefixes = tuple(f"{name}_" for name in self.connectors)
        names = [k for k in sorted(kwargs) if k.startswith(prefixes) and k not in _FOREIGN]
        return {name: kwargs.pop(name) for name in names}
