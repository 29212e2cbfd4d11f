"""Configuration of a composed model: its base, its modalities, its streams."""

from dataclasses import field
from typing import Any

import attrs
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from modalloy.composition.coefficients import Coefficients
from modalloy.errors import FormatError, SpecError
from modalloy.parent import ComponentConfig, check_requirement
from modalloy.structured import structure

DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Names of dtypes that a composition runs in; ``"auto"`` is the one that is stored."""


_not_huge = attrs.validators.le(1 << 16)
"""A damaged or hostile number must not become an allocation."""


@attrs.frozen(kw_only=True)
class DeltaEntry:
    """Which modules a delta reaches, see :func:`modalloy.composition.layers.summarise`."""

    module: str
    rank: int = attrs.field(validator=[attrs.validators.ge(1), _not_huge])
    scale: float


@attrs.frozen(kw_only=True)
class EncoderEntry:
    """An encoder: its registered type, plain configuration, and (K, F) of its features."""

    type: str
    config: dict[str, Any]
    shape: list[int]


@attrs.frozen(kw_only=True)
class ModalityEntry:
    """What ``config.json`` has to hold for each modality; see :class:`ModalloyConfig`."""

    content_type: str
    payload_keys: list[str]
    placeholder: str
    placeholder_id: int = attrs.field(validator=attrs.validators.ge(0))
    token_type_id: int = attrs.field(validator=[attrs.validators.ge(1), _not_huge])
    tokens: int = attrs.field(validator=[attrs.validators.ge(1), _not_huge])
    prefix_tokens: int = attrs.field(validator=[attrs.validators.ge(0), _not_huge])
    suffix_tokens: int = attrs.field(validator=[attrs.validators.ge(0), _not_huge])
    encoder: EncoderEntry
    connector: ComponentConfig
    requires: str | None = attrs.field(validator=check_requirement)
    text_delta: list[DeltaEntry]
    modality_delta: list[DeltaEntry] | None


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
        """Check the entries, open the base's configuration and adopt its embedding tying.

        Raises:
            FormatError: ``modalities`` or ``text_config`` is malformed.
        """
        if isinstance(self.text_config, dict):
            data = dict(self.text_config)
            kind = data.pop("model_type", None)
            if kind is None:
                raise FormatError(
                    "config.json: text_config has no model_type; it names the base's architecture",
                    path="config.json",
                )
            try:
                self.text_config = AutoConfig.for_model(kind, **data)
            except (StrictDataclassError, ValueError, TypeError) as error:
                # Transformers' own message may list every model that it knows.
                raise FormatError(
                    f"config.json: text_config is no {kind!r} configuration of this transformers: "
                    f"{str(error)[:200]}",
                    path="config.json",
                ) from error
        if not isinstance(self.modalities, dict):
            raise FormatError("config.json: modalities must be a mapping", path="config.json")
        for name, entry in self.modalities.items():
            structure(entry, ModalityEntry, f"config.json, modality {name!r}")
        for key in ("token_type_id", "placeholder_id", "content_type"):
            values = [entry[key] for entry in self.modalities.values()]
            if len(set(values)) < len(values):
                raise FormatError(
                    f"config.json: two modalities have the same {key} ({values}), so tokens could "
                    "not be told apart; compose anew",
                    path="config.json",
                )
        self.modalities = dict(sorted(self.modalities.items()))
        if self.text_config is not None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
            # transformers sets the attention of sub-configurations from ours, even where ours
            # is not set: an opened base would lose its own, and its causal mask with it.
            for key in ("attn_implementation", "experts_implementation"):
                kwargs.setdefault(key, getattr(self.text_config, f"_{key}", None))
        super().__post_init__(**kwargs)

    def read_coefficients(self) -> Coefficients:
        """Return the coefficients as values.

        Raises:
            SpecError: They are malformed, or not those of these modalities.
        """
        if not self.coefficients and not self.modalities:
            return Coefficients((), ())
        coefficients = Coefficients.from_dict(self.coefficients)
        if coefficients.modalities != tuple(self.modalities):
            raise SpecError(
                f"config.json: coefficients are for {', '.join(coefficients.modalities)}, the "
                f"modalities are {', '.join(self.modalities)}; compose anew",
                subject="coefficients",
            )
        return coefficients


def check_dtype(dtype: object) -> None:
    """Check that a dtype given by name is one that a composition runs in.

    Raises:
        SpecError: It is not.
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise SpecError(
            f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}; got {dtype!r}",
            subject="dtype",
        )
