"""The composed model: one language model, with an encoder and a connector per modality."""

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from modalloy.composition.caches import CACHE, take_cache
from modalloy.composition.coefficients import (
    Coefficients,
    Spec,
    make_coefficients,
    named_honestly,
)
from modalloy.composition.configuration import ModalloyConfig
from modalloy.composition.connecting import build_connector
from modalloy.composition.embedding import MediaEmbedding
from modalloy.composition.encoders import EncoderStore
from modalloy.composition.folding import Folding
from modalloy.composition.layers import insert_streams, separate_head
from modalloy.composition.loss import labelled_columns, labelled_loss
from modalloy.composition.names import FamiliarNames
from modalloy.composition.offloading import PlacedModel
from modalloy.composition.storage import StoredModel, opening_registry
from modalloy.composition.streams import route
from modalloy.errors import InputError
from modalloy.modality import TEXT_TYPE_ID
from modalloy.registry import Registry


class ModalloyForConditionalGeneration(  # type: ignore[misc, override]  # mixins come first
    StoredModel, PlacedModel, FamiliarNames, MediaEmbedding, PreTrainedModel, GenerationMixin
):
    """Base, connectors and streams of a composition.

    Encoders are not among its parameters: each is opened when an input of its modality is first
    encoded, so that a composition builds, saves and runs on ``inputs_embeds`` without them.

    Attributes:
        language_model: The base as transformers opened it, with stream-aware layers.
        connectors: :class:`~modalloy.composition.connecting.ModalityConnector` by modality.
        router: What the stream-aware layers share.
        head_router: What the head has of its own, which runs on the tokens whose logits are kept;
            ``None`` where no delta reaches it.
        encoders: Opens and keeps the encoders.
        provenance: What ``modalloy.json`` holds.
        folding: When text tokens run on folded weights; its ``limit`` bounds their memory.
        trial: ``(1, groups, layers)`` float32 coefficients that stand in for the composition's
            own while they are learned; ``None`` otherwise.
    """

    config: ModalloyConfig
    config_class = ModalloyConfig
    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: ModalloyConfig,
        *,
        language_model: PreTrainedModel | None = None,
        registry: Registry | None = None,
    ) -> None:
        super().__init__(config)
        registry = registry or opening_registry() or Registry.discover()
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        self.router = insert_streams(
            self.language_model, config.text_deltas(), config.modality_deltas()
        )
        self.head_router = separate_head(self.language_model)
        self.encoders = EncoderStore(config.modalities, registry)
        hidden = int(config.get_text_config().hidden_size)
        self.connectors = nn.ModuleDict(
            {
                name: build_connector(entry, self.encoders.features(name), hidden, registry)
                for name, entry in config.modalities.items()
            }
        )
        takes = inspect.signature(self.language_model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self.provenance: dict[str, Any] = {}
        self.folding = Folding(self.language_model)
        self.trial: torch.Tensor | None = None
        self.type_ids = {n: entry["token_type_id"] for n, entry in config.modalities.items()}
        self._coefficients = config.read_coefficients()
        self.post_init()

    @property
    def coefficients(self) -> Coefficients:
        """How much of each group of text deltas a prompt gets.

        May be set, to :class:`~modalloy.composition.coefficients.Coefficients` or to what
        ``compose`` takes for ``coefficients``; the next pass runs on them, and they are saved with
        the model.

        Raises:
            SpecError: They are malformed, not known to the merge method, or for other groups.
            UnknownNameError: A rule or values were given and the method is not installed.
        """
        return self._coefficients

    @coefficients.setter
    def coefficients(self, value: Coefficients | Spec) -> None:
        if not isinstance(value, Coefficients):
            rules = self.encoders.registry.merge_method(self.config.method).rules
            value = make_coefficients(value, self.config.text_deltas(), rules)
        value = self.config.check_coefficients(Coefficients.from_dict(value.to_dict()))
        self._coefficients = named_honestly(value)
        self.config.coefficients = self._coefficients.to_dict()
        if self.provenance:
            self.provenance = {**self.provenance, "coefficients": self.config.coefficients}
        self.folding.drop()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Say that weights are initialised as those of transformers' own models are."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        """Return the base's token embedding."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Return the base's head."""
        return self.language_model.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """Return the base without its head."""
        return self.language_model.get_decoder()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the language model, each token on its stream.

        Args:
            input_ids: ``(B, T)`` int64; this or ``inputs_embeds``.
            attention_mask: ``(B, T)``, or over the cached tokens too.
            inputs_embeds: ``(B, T, D)``, inputs already in place.
            mm_token_type_ids: Types of the tokens, ``(B, T)``, or of the cached tokens too; where
                left out, read off the placeholders in ``input_ids`` (all text with embeddings).
                In cached decoding, coefficients by presence need it over the whole prompt.
            position_ids: ``(B, T)`` int64, for bases that take them; counted from the attention
                mask by the base where left out.
            cache: Cache of an earlier pass, as transformers calls it from 5.24 on.
            past_key_values: The same, by its earlier name.
            labels: ``(B, T)`` int64, :data:`~modalloy.composition.loss.IGNORED` where a token
                does not count.
            logits_to_keep: As in transformers; 0 keeps all.
            **kwargs: ``<modality>_<tensor>`` inputs; the rest goes to the base.

        Returns:
            Logits ``(B, T, V)``; with labels, the loss and the logits of the columns in which
            some row has a label.

        Raises:
            InputError: The inputs do not fit together.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds, and not both")
        media = self.take_media(kwargs)
        types = self.token_types(input_ids, inputs_embeds, mm_token_type_ids)
        given = inputs_embeds if input_ids is None else input_ids
        length = int(given.shape[1]) if given is not None else 0
        cache = past_key_values if cache is None else cache
        cached = 0 if cache is None else int(cache.get_seq_length())
        self._check_history(types, cached, length)
        present = self.present(types)
        types = types[:, -length:]
        if input_ids is not None:
            inputs_embeds = self.embed(input_ids, types, media, present=present)
        elif media:
            raise InputError(f"inputs_embeds leave no place for {', '.join(media)}")
        items = kwargs.pop("num_items_in_batch", None)
        positions = {"position_ids": position_ids} if self._takes_positions else {}
        columns = None if labels is None else labelled_columns(labels)
        keep = logits_to_keep if columns is None else columns
        self.start_pass(types, present, cached, keep)
        try:
            outputs = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                **{CACHE: cache},
                **positions,
                logits_to_keep=keep,
                **kwargs,
            )
        finally:
            if not (self.language_model.training and torch.is_grad_enabled()):
                self.end_pass()  # no layer will be recomputed in a backward pass
        if labels is not None and columns is not None:
            outputs.loss = labelled_loss(outputs.logits, labels[:, columns + 1], items)
        return outputs

    @contextmanager
    def folded_for(self, present: Collection[str]) -> Iterator[None]:
        """Keep the text stream's weights folded for many prompts of one set of modalities.

        Their text tokens then cost what the base's cost, within ``folding.limit``; other prompts
        run meanwhile as ever, and no weight may change. Folded weights are rounded once more, to
        their dtype.

        Args:
            present: Names of the modalities that each prompt holds inputs of.

        Raises:
            ModalloyError: Weights are kept folded already.
        """
        here = torch.tensor([[name in present for name in self.type_ids]])
        nothing = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        routing = route(
            nothing, here, self.type_ids, self.coefficients, decoupled=self.config.decoupled
        )
        with self.folding.held(routing):
            yield

    def _check_history(self, types: torch.Tensor, cached: int, length: int) -> None:
        """Check that the types cover this pass, and the cache where coefficients look at it."""
        whole = types.shape[1] == cached + length
        if whole or (types.shape[1] == length and not self.coefficients.by_presence):
            return
        raise InputError(
            f"mm_token_type_ids covers {types.shape[1]} tokens; this pass has {length} after "
            f"{cached} cached ones, and the coefficients depend on the whole prompt: give it over "
            f"all {cached + length} tokens, as attention_mask is"
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Keep the whole prompt's types beside the tokens of the next pass."""
        types = kwargs.get("mm_token_type_ids")
        parent: Any = super()
        prepared: dict[str, Any] = parent.prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, **kwargs
        )
        if types is not None:
            prepared["mm_token_type_ids"] = types
        return prepared

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as transformers does; inputs are encoded once, before beams are expanded.

        Placeholders in the returned prompts are replaced by the padding token, since logits
        processors index the vocabulary by the ids they see. A later turn over a kept cache gives
        the inputs of its new tokens alone, and ``mm_token_type_ids`` over the whole conversation.

        Raises:
            InputError: There is no prompt, or a cache comes without the types of what is in it.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        embeds = kwargs.pop("inputs_embeds", None)
        media = self.take_media(kwargs)
        if input_ids is None and embeds is None:
            raise InputError("generate needs input_ids or inputs_embeds")
        cache, types = take_cache(kwargs), kwargs.pop("mm_token_type_ids", None)
        if cache is not None:
            kwargs[CACHE] = cache
        cached = 0 if cache is None else int(cache.get_seq_length())
        if cached and types is None and self.coefficients.by_presence:
            raise InputError(
                "generate goes on from a cache, and the coefficients depend on what is in it: give "
                "mm_token_type_ids over the whole conversation (its earlier ones, 0 for answers)"
            )
        types = self.token_types(input_ids, embeds, types)
        if input_ids is not None:
            config = generation_config or self.generation_config
            end = config.eos_token_id
            ends = end if isinstance(end, list) else [end]
            pad = next((one for one in (config.pad_token_id, *ends) if one is not None), 0)
            if kwargs.get("attention_mask") is None:
                # Placeholders look like padding below, and in what an earlier turn returned.
                padded = config.pad_token_id not in (None, *ends)
                mask = (input_ids != pad) | (types != TEXT_TYPE_ID)
                kwargs["attention_mask"] = (mask if padded else torch.ones_like(mask)).long()
            if embeds is None:
                here = self.present(types)
                new = self.embed(input_ids[:, cached:], types[:, cached:], media, present=here)
                embeds = new.new_zeros(new.shape[0], cached, new.shape[2])  # never looked at
                embeds = torch.cat([embeds, new], dim=1)
            kwargs["input_ids"] = torch.where(types == TEXT_TYPE_ID, input_ids, pad)
        parent: Any = super()
        return parent.generate(
            generation_config=generation_config,
            inputs_embeds=embeds,
            mm_token_type_ids=types,
            **kwargs,
        )
