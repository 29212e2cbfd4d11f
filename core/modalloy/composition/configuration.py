"""Configuration of a composed model: its base, its modalities, its streams."""

from dataclasses import field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from modalloy.composition.coefficients import Coefficients
from modalloy.errors import FormatError


class ModalloyConfig(PreTrainedConfig):
    """Everything that is needed to build the modules of a composition, without its weights.

    Attributes:
        text_config: Configuration of the base.
        modalities: By name, sorted: ``content_type``, ``payload_keys``, ``placeholder``,
            ``placeholder_id``, ``token_type_id``, ``tokens`` (per input, prefix and suffix
            included), ``prefix_tokens``, ``suffix_tokens``, ``encoder`` and ``connector``
            (``type``, ``config``), ``requires``, ``text_delta`` and ``modality_delta`` (patterns
            of module names with rank and scale, see
            :mod:`modalloy.composition.layers`; ``modality_delta`` is ``None`` unless decoupled).
        method: Name of the merge method.
        decoupled: Whether a modality's tokens run on its own delta.
        coefficients: See :meth:`modalloy.composition.coefficients.Coefficients.to_dict`.
        base: ``id`` and ``fingerprint`` of the base.
    """

    model_type = "modalloy"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  # transformers' own convention

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    modalities: dict[str, Any] = field(default_factory=dict)
    method: str = "damc"
    decoupled: bool = True
    coefficients: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Open the base's configuration and adopt its embedding tying."""
        if isinstance(self.text_config, dict):
            data = dict(self.text_config)
            kind = data.pop("model_type", None)
            if kind is None:
                raise FormatError(
                    "config.json: text_config has no model_type; it names the base's architecture",
                    path="config.json",
                )
            self.text_config = AutoConfig.for_model(kind, **data)
        self.modalities = dict(sorted(self.modalities.items()))
        if self.text_config is not None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
            # transformers sets the attention of sub-configurations from ours, even where ours
            # is not set: an opened base would lose its own, and its causal mask with it.
            for key in ("attn_implementation", "experts_implementation"):
                kwargs.setdefault(key, getattr(self.text_config, f"_{key}", None))
        super().__post_init__(**kwargs)

    def read_coefficients(self) -> Coefficients:
        """Return the coefficients as values."""
        if not self.coefficients:
            return Coefficients((), ())
        return Coefficients.from_dict(self.coefficients)
