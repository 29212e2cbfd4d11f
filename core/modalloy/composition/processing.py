"""The processor: from messages to token ids, token types and preprocessed inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from modalloy.composition.content import check_layout, check_text, flatten_message
from modalloy.composition.encoders import EncoderStore
from modalloy.errors import InputError
from modalloy.modality import TEXT_TYPE_ID, resolve
from modalloy.registry import Registry

Conversation = Sequence[Mapping[str, Any]]


_ALWAYS = frozenset({"padding", "return_dict", "return_tensors"})
"""Arguments that change nothing: a dict of padded tensors is returned whatever they say."""


class ModelInputs(BatchFeature):
    """Tensors of a prompt, as a composition's ``forward`` and ``generate`` take them."""

    def to(self, *args: Any, **kwargs: Any) -> "ModelInputs":
        """Move the tensors to a device; their dtypes stay.

        A pipeline casts a model's inputs to its dtype. Of ours only those of the encoders are
        floating, and encoders run in float32 whatever the composition runs in.
        """
        device = kwargs.get("device")
        if device is None:
            device = next((one for one in args if not isinstance(one, torch.dtype)), None)
        if device is not None:
            super().to(device, non_blocking=kwargs.get("non_blocking", False))
        return self


class ModalloyProcessor(ProcessorMixin):
    """Lays out prompts for a composition.

    Attributes:
        tokenizer: The base's, with the placeholders added.
        modalities: ``modalities`` of the composition's configuration.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        modalities: dict[str, Any] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template, **kwargs)
        self.modalities = dict(sorted((modalities or {}).items()))
        self._registry: Registry | None = None
        if tokenizer is not None:
            tokenizer.padding_side = "left"

    def bind(self, registry: Registry) -> "ModalloyProcessor":
        """Use the modalities and encoders of ``registry`` and return this processor."""
        self._registry = registry
        return self

    @property
    def registry(self) -> Registry:
        """Supplies readers and encoders; what is installed, unless bound."""
        if self._registry is None:
            self._registry = Registry.discover()
        return self._registry

    def to_dict(self) -> dict[str, Any]:
        """Return what ``processor_config.json`` holds; what is installed is not part of it."""
        registry, self._registry = self._registry, None
        try:
            data = super().to_dict()
        finally:
            self._registry = registry
        data.pop("_registry", None)
        return data

    def save_pretrained(
        self,
        save_directory: str | Path,
        push_to_hub: bool = False,  # noqa: FBT001, FBT002 - as in transformers
        **kwargs: Any,
    ) -> Any:
        """Save as transformers does, which takes no path where it also pushes."""
        return super().save_pretrained(str(save_directory), push_to_hub=push_to_hub, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that every prompt has."""
        return ["input_ids", "attention_mask", "mm_token_type_ids"]

    def apply_chat_template(  # type: ignore[override]  # always returns padded tensors
        self,
        conversation: Conversation | Sequence[Conversation],
        chat_template: str | None = None,
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Turn one conversation, or several, into model inputs.

        Args:
            conversation: Messages of one conversation, or a list of such lists.
            chat_template: Jinja template in place of the base's.
            tokenize: False returns the prompt as text, placeholders included.
            add_generation_prompt: Whether the prompt ends where the answer begins.
            **kwargs: Further variables of the template.

        Returns:
            ``input_ids``, ``attention_mask`` and ``mm_token_type_ids`` ``(B, T)`` int64, padded
            on the left, and ``<modality>_<tensor>`` ``(N, ...)`` for each modality present.

        Raises:
            InputError: A message or an input cannot be used.
            LimitError: An input is larger than its modality allows.
            MissingComponentError: An encoder is not installed.
        """
        for key in _ALWAYS:
            kwargs.pop(key, None)
        unknown = (kwargs.pop("processor_kwargs", None) or {}).keys() - _ALWAYS
        if unknown:
            raise InputError(
                f"processor_kwargs holds {', '.join(sorted(unknown))}, which change nothing here: "
                "how inputs are read and preprocessed is part of the composition"
            )
        if not conversation:
            raise InputError("there is no conversation; give messages, or a list of conversations")
        if not (chat_template or self.chat_template or self.tokenizer.chat_template):
            raise InputError(
                "the base's tokenizer has no chat template, so messages cannot be laid out; give "
                "one under chat_template, or write the prompt yourself and call the processor"
            )
        single = isinstance(conversation[0], Mapping)
        batch: Any = [conversation] if single else conversation
        texts, inputs = [], []
        for messages in batch:
            flat = [flatten_message(message, self.modalities) for message in messages]
            found = [one for _, found in flat for one in found]
            prompt = self.tokenizer.apply_chat_template(
                [message for message, _ in flat],
                chat_template=chat_template or self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **kwargs,
            )
            texts.append(check_layout(prompt, found, self.modalities))
            inputs += found
        if not tokenize:
            return texts[0] if single else texts
        return self.encode_prompts(texts, inputs)

    def __call__(self, text: str | Sequence[str] | None = None, **inputs: Any) -> ModelInputs:
        """Lay out prompts given as text.

        Args:
            text: Prompts; each modality's content type in angle brackets, such as ``<image>``,
                stands for one input.
            **inputs: Lists of inputs by content type, in prompt order, as in
                ``processor("<image>What is this?", image=["cat.png"])``; ``images`` will do too.

        Returns:
            As :meth:`apply_chat_template`.

        Raises:
            InputError: A content type is unknown, inputs and marks differ in number, or a prompt
                holds a placeholder.
        """
        for key in _ALWAYS:
            inputs.pop(key, None)
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts:
            raise InputError("there is no prompt; give a text, or a list of texts")
        by_type = {entry["content_type"]: name for name, entry in self.modalities.items()}
        queues = _queues(inputs, by_type)
        laid_out, found = [], []
        for prompt in texts:
            parts = _split_marks(prompt, by_type)
            for piece in parts[::2]:
                check_text(piece, self.modalities)
            for kind in parts[1::2]:
                if not queues.get(kind):
                    raise InputError(f"the prompts have more <{kind}> marks than {kind} inputs")
                found.append((by_type[kind], _as_source(queues[kind].pop(0))))
            for index in range(1, len(parts), 2):
                entry = self.modalities[by_type[parts[index]]]
                parts[index] = entry["placeholder"] * entry["tokens"]
            laid_out.append("".join(parts))
        left = sorted(kind for kind, queue in queues.items() if queue)
        if left:
            raise InputError(f"there are more {', '.join(left)} inputs than marks in the prompts")
        return self.encode_prompts(laid_out, found)

    def encode_prompts(
        self, texts: Sequence[str], inputs: Sequence[tuple[str, Any]]
    ) -> ModelInputs:
        """Tokenise laid-out prompts and preprocess their inputs.

        Args:
            texts: Prompts with placeholders, one per row.
            inputs: ``(modality, source)`` of all rows, in prompt order.
        """
        encoded = self.tokenizer(
            list(texts),
            padding=True,
            padding_side="left",  # answers start where every row ends
            add_special_tokens=False,
            return_tensors="pt",
        )
        data = {key: encoded[key] for key in ("input_ids", "attention_mask")}
        data["mm_token_type_ids"] = self.token_types(data["input_ids"])
        data |= self.preprocess(inputs)
        return ModelInputs(data)

    def token_types(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return ``mm_token_type_ids (B, T)`` of ids ``(B, T)``."""
        types = torch.full_like(input_ids, TEXT_TYPE_ID)
        for entry in self.modalities.values():
            types[input_ids == entry["placeholder_id"]] = entry["token_type_id"]
        return types

    def preprocess(self, inputs: Sequence[tuple[str, Any]]) -> dict[str, torch.Tensor]:
        """Read and preprocess inputs.

        Args:
            inputs: ``(modality, source)`` in prompt order.

        Returns:
            ``<modality>_<tensor> (N, ...)``.
        """
        store = EncoderStore(self.modalities, self.registry)
        items: dict[str, list[dict[str, torch.Tensor]]] = {}
        for name, source in inputs:
            encoder = store.kind(name)
            modality = self.registry.modality(name, requires=self.modalities[name]["requires"])
            decoded = resolve(modality.read)(source, modality.limits)
            tensors = resolve(encoder.preprocess)(
                decoded, self.modalities[name]["encoder"]["config"]
            )
            items.setdefault(name, []).append(tensors)
        return {
            f"{name}_{key}": torch.stack([one[key] for one in found])
            for name, found in items.items()
            for key in found[0]
        }


def _split_marks(prompt: str, by_type: Mapping[str, str]) -> list[str]:
    """Split at ``<kind>`` marks: texts at even places, kinds at odd ones."""
    parts = [prompt]
    for kind in by_type:
        parts = [
            piece
            for index, part in enumerate(parts)
            for piece in ([part] if index % 2 else _interleave(part, kind))
        ]
    return parts


def _interleave(part: str, kind: str) -> list[str]:
    pieces = part.split(f"<{kind}>")
    return [item for piece in pieces for item in (piece, kind)][:-1]


def _queues(inputs: Mapping[str, Any], by_type: Mapping[str, str]) -> dict[str, list[Any]]:
    """Return lists of inputs by content type; transformers says ``images`` and ``videos``."""
    queues: dict[str, list[Any]] = {}
    unknown = []
    for key, values in inputs.items():
        kind = key[:-1] if key not in by_type and key[:-1] in by_type else key
        if values is None:
            continue
        if kind in queues:
            raise InputError(f"{kind} inputs are given twice; give them under one name")
        if kind in by_type:
            queues[kind] = _as_list(values)
        else:
            unknown.append(key)
    if unknown:
        raise InputError(
            f"no modality of this composition takes {', '.join(sorted(unknown))}; it takes "
            f"{', '.join(sorted(by_type))}"
        )
    return queues


def _as_list(values: Any) -> list[Any]:
    """Return a list of inputs; a single file needs no list around it."""
    return [values] if isinstance(values, str | bytes | Path) else list(values)


def _as_source(value: Any) -> Any:
    return Path(value) if isinstance(value, str) else value
