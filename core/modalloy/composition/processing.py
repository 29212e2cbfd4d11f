"""The processor: from messages to token ids, token types and preprocessed inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import BatchFeature, ProcessorMixin

from modalloy.checkpoints.safe_files import check_files
from modalloy.composition.configuration import check_modalities
from modalloy.composition.content import check_layout, check_text, flatten_message
from modalloy.composition.encoders import EncoderStore
from modalloy.composition.marks import as_source, queue_inputs, split_marks
from modalloy.errors import InputError
from modalloy.modality import TEXT_TYPE_ID, resolve
from modalloy.registry import Registry

Conversation = Sequence[Mapping[str, Any]]


_ALWAYS = frozenset({"padding", "return_dict", "return_tensors"})
"""Arguments that change nothing: a dict of padded tensors is returned whatever they say."""

# A template is a program of whoever made the base; what it stumbles over is mostly Python's own.
TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


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
        modalities = {} if modalities is None else modalities
        check_modalities(modalities, "processor_config.json")
        super().__init__(tokenizer, chat_template=chat_template, **kwargs)
        self.modalities = dict(sorted(modalities.items()))
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

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers names each setting
        cls, source: str | Path, *args: Any, **kwargs: Any
    ) -> Any:
        """Open as transformers does, after a look at what it would read of a directory.

        Raises:
            FormatError: A file is damaged, or is not what a composition has there.
            UnsafePathError: A file, or a name in one, leads outside the directory.
        """
        check_files(Path(source) / (kwargs.get("subfolder") or ""))
        parent: Any = super()
        return parent.from_pretrained(source, *args, **kwargs)

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
            InputError: A message or an input cannot be used, or the chat template fails.
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
            try:
                prompt = self.tokenizer.apply_chat_template(
                    [message for message, _ in flat],
                    chat_template=chat_template or self.chat_template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **kwargs,
                )
            except TEMPLATE_ERRORS as error:
                raise InputError(
                    f"the chat template cannot lay out these messages: {error}; change them, or "
                    "give another template under chat_template"
                ) from error
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
        queues = queue_inputs(inputs, by_type)
        laid_out, found = [], []
        for prompt in texts:
            parts = split_marks(prompt, by_type)
            for piece in parts[::2]:
                check_text(piece, self.modalities)
            for kind in parts[1::2]:
                if not queues.get(kind):
                    raise InputError(f"the prompts have more <{kind}> marks than {kind} inputs")
                found.append((by_type[kind], as_source(queues[kind].pop(0))))
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
