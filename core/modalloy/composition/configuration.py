"""Configuration of a composed model: its base, its modalities, its streams."""

from dataclasses import field
from typing import Any, Self

import attrs
from transformers import AutoConfig, PreTrainedConfig

from modalloy.base_config import CONFIG_FILE, configuration_errors, is_quantised, sanitise
from modalloy.composition.coefficients import Coefficients
from modalloy.errors import FormatError, SpecError
from modalloy.modality import MERGED, is_name
from modalloy.parent import ComponentConfig, check_requirement
from modalloy.structured import structure

DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Names of dtypes that a composition runs in; ``"auto"`` is the one that is stored."""


_not_huge = attrs.validators.le(1 << 16)
"""A damaged or hostile number must not become an allocation."""

_FOREIGN = frozenset({"attribute_map", "transformers_weights"})
"""Keys by which transformers would read other weights, or other keys, than were checked."""


@attrs.frozen(kw_only=True)
class DeltaEntry:
    """Which modules a delta reaches, see :mod:`modalloy.composition.patterns`."""

    module: str
    rank: int = attrs.field(validator=[attrs.validators.ge(0), _not_huge])
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


@attrs.frozen(kw_only=True)
class _MergedEntry:
    merged_delta: list[DeltaEntry]


def check_modalities(modalities: object, file: str) -> None:
    """Check what a file of a composition says about its modalities.

    Args:
        modalities: Entry by name.
        file: The file's name, for messages.

    Raises:
        FormatError: It is no mapping, or a name or an entry is malformed.
    """
    if not isinstance(modalities, dict):
        raise FormatError(f"{file}: modalities must be a mapping", path=file)
    for name, entry in modalities.items():
        if not is_name(name):
            raise FormatError(
                f"{file}: a modality is called {name!r}; names are lower-case words joined by "
                "'-', '_' or '.'",
                path=file,
            )
        structure(entry, ModalityEntry, f"{file}, modality {name!r}")


def _check_foreign(data: dict[str, Any]) -> None:
    """Refuse a configuration by which other weights would be read than those that are checked.

    Raises:
        FormatError: It is one.
    """
    found = sorted(_FOREIGN & data.keys())
    if found:
        raise FormatError(
            f"config.json holds {found[0]!r}, by which something else would be read than what "
            "is checked; compose anew, or take this model from a source that you trust",
            path=CONFIG_FILE,
        )


class ModalloyConfig(PreTrainedConfig):
    """Everything that is needed to build the modules of a composition, without its weights.

    Attributes:
        text_config: Configuration of the base.
        modalities: By name, sorted: ``content_type``, ``payload_keys``, ``placeholder``,
            ``placeholder_id``, ``token_type_id``, ``tokens`` (per input, prefix and suffix
            included), ``prefix_tokens``, ``suffix_tokens``, ``encoder`` and ``connector``
            (``type``, ``config``), ``requires``, ``text_delta`` and ``modality_delta`` (patterns
            of module names with rank and scale, see
            :mod:`modalloy.composition.patterns`; ``modality_delta`` is ``None`` unless decoupled).
        method: Name of the merge method.
        method_options: The options that it ran with.
        decoupled: Whether a modality's tokens run on its own delta.
        merged_delta: Patterns, as above, of the merged text delta; ``None`` where the method makes
            none.
        coefficients: See :meth:`modalloy.composition.coefficients.Coefficients.to_dict`.
        base: ``id`` and ``fingerprint`` of the base.
    """

    model_type = "modalloy"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  # transformers' own convention

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    modalities: dict[str, Any] = field(default_factory=dict)
    method: str = "damc"
    method_options: dict[str, Any] = field(default_factory=dict)
    decoupled: bool = True
    merged_delta: list[Any] | None = None
    coefficients: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Return the configuration that a file holds, without what would choose the code that runs.

        transformers' own classes read a composition's ``config.json`` through here. Attention and
        experts run as the caller says in ``kwargs``; a file that names them is not followed.

        Args:
            config_dict: What the file holds; left as it is.
            kwargs: As for transformers' own; a caller's, so that they are taken as given.

        Raises:
            FormatError: As for :meth:`__post_init__`.
        """
        _check_foreign(config_dict)
        read: Self = super().from_dict(sanitise(config_dict), **kwargs)
        return read

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the entries, open the base's configuration and adopt its embedding tying.

        Raises:
            FormatError: ``modalities`` or ``text_config`` is malformed, or the weights would be
                quantised, or not those that were checked.
        """
        _check_foreign(kwargs)
        if is_quantised([kwargs, self.text_config]):
            raise FormatError(
                "config.json: the composition is quantised; deltas are added to plain weights, "
                "compose over the unquantised base",
                path=CONFIG_FILE,
            )
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
            except configuration_errors() as error:
                # Transformers' own message may list every model that it knows.
                raise FormatError(
                    f"config.json: text_config is no {kind!r} configuration of this transformers: "
                    f"{str(error)[:200]}",
                    path="config.json",
                ) from error
        elif not isinstance(self.text_config, PreTrainedConfig | None):
            raise FormatError("config.json: text_config must be a mapping", path=CONFIG_FILE)
        check_modalities(self.modalities, CONFIG_FILE)
        self._check_merged()
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
            attention = getattr(self.text_config, "_attn_implementation", None)
            kwargs.setdefault("attn_implementation", attention)
            # The same for experts, which the composition itself has none of: transformers asks the
            # class that holds the configuration whether it can run them.
            kwargs.setdefault("experts_implementation", {"": None})
        super().__post_init__(**kwargs)

    def _check_merged(self) -> None:
        if MERGED in self.modalities:
            raise FormatError(
                f"config.json: a modality is called {MERGED!r}, which stands for the merged text "
                "delta; compose anew",
                path="config.json",
            )
        if self.merged_delta is not None:
            data = {"merged_delta": self.merged_delta}
            structure(data, _MergedEntry, "config.json")

    def text_deltas(self) -> dict[str, list[dict[str, Any]]]:
        """Return the patterns of the text stream's deltas by group, in the order of coefficients.

        The groups are the modalities, and ``"merged"`` where there is a merged delta: beside them
        if decoupled, in their place if not.
        """
        groups: dict[str, list[dict[str, Any]]] = {}
        if self.decoupled or self.merged_delta is None:
            groups = {name: entry["text_delta"] for name, entry in self.modalities.items()}
        if self.merged_delta is not None:
            groups[MERGED] = self.merged_delta
        return groups

    def modality_deltas(self) -> dict[str, list[dict[str, Any]]]:
        """Return the patterns of the modality deltas by modality; empty unless decoupled."""
        entries = self.modalities.items() if self.decoupled else ()
        return {name: entry["modality_delta"] for name, entry in entries}

    def read_coefficients(self) -> Coefficients:
        """Return the coefficients as values.

        Raises:
            SpecError: They are malformed, or not those of these groups.
        """
        if not self.coefficients and not self.modalities:
            return Coefficients((), ())
        return self.check_coefficients(Coefficients.from_dict(self.coefficients))

    def check_coefficients(self, coefficients: Coefficients) -> Coefficients:
        """Return coefficients that have the groups of this composition.

        Raises:
            SpecError: They are for others.
        """
        groups = tuple(self.text_deltas())
        if coefficients.groups != groups:
            raise SpecError(
                f"coefficients are for {', '.join(coefficients.groups)}, the groups of this "
                f"composition are {', '.join(groups)}; give one value for each, or compose anew",
                subject="coefficients",
            )
        layers = getattr(self.get_text_config(), "num_hidden_layers", None)
        if coefficients.layers and coefficients.layers != layers:
            raise SpecError(
                f"coefficients by layer are for {coefficients.layers} layers, the base has "
                f"{layers}; give one number for each, or one for all",
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
