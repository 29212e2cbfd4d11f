"""Towers and projectors of whole models, as encoders and connectors.

What is read here is a configuration; which tensor goes where follows from it. The encoder types are
those of the plugins, by name: the core imports none of them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

from modalloy.errors import FormatError, SpecError
from modalloy.interop.accounting import ENCODER
from modalloy.modality import resolve
from modalloy.parent import ComponentConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig


Placing = tuple[str, str]
"""A fate, and the tensor's name there, or why it is skipped."""


@attrs.frozen(kw_only=True)
class Tower:
    """One modality of a whole model.

    Attributes:
        modality: Its name here.
        encoder: The tower.
        connector: The projector.
        requires: Requirement of the plugin that has the encoder type.
        place: Tells the fate of a tensor of a part that is not the language model.
        connector_names: Tensors that the connector needs.
        first: The one that takes the encoder's features.
        notes: What the composition does otherwise than the model.
    """

    modality: str
    encoder: ComponentConfig
    connector: ComponentConfig
    requires: str
    place: Callable[[str, str], Placing]
    connector_names: frozenset[str]
    first: str
    notes: tuple[str, ...] = ()

    @property
    def features(self) -> int:
        """F, features of a token."""
        return self.encoder.shape[1] if self.encoder.shape else 0

    def reason(self, fate: str) -> str:
        """Return what a placed tensor has become a part of, for the accounting."""
        kind = self.encoder if fate == ENCODER else self.connector
        return f"{kind.type} {fate} of modality {self.modality!r}"


FAMILIES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "llava": {"vision": "llava_towers:pictures"},
        "llava_next": {"vision": "llava_towers:tiles"},
        "video_llava": {
            "video": "llava_towers:clips",
            "vision": "llava_towers:pictures_beside_clips",
        },
        "qwen2_vl": {"vision": "qwen_towers:pictures"},
        "qwen2_5_vl": {"vision": "qwen_towers:pictures"},
        "qwen3_vl": {"vision": "qwen_towers:pictures"},
        "qwen2_audio": {"audio": "qwen_towers:sounds"},
    }
)
"""What describes each modality of a model type: functions of this package, by module and name."""


@attrs.frozen(kw_only=True)
class Sizes:
    """Of inputs, for towers that take inputs of any size; ``None`` leaves it to the family.

    Attributes:
        image_size: Side in pixels of the square that pictures become.
        seconds: Length of the window that sounds are cut to.
    """

    image_size: int | None = None
    seconds: float | None = None

    def refuse(self, subject: str, **why: str) -> None:
        """Refuse a size that has no effect.

        Args:
            subject: What the tower is of, for messages.
            **why: By the name of a size, what there is in its place.

        Raises:
            SpecError: One was given.
        """
        for name, reason in sorted(why.items()):
            if getattr(self, name) is not None:
                raise SpecError(
                    f"{subject}: {name} does not apply, {reason}; leave it out", subject=name
                )


def describe_tower(
    config: "PretrainedConfig", source: Path, modality: str | None, sizes: Sizes
) -> Tower:
    """Return the tower and projector of a modality.

    Args:
        config: The whole model's configuration.
        source: Its directory, for what its processor does to inputs.
        modality: Which; the model's first if left out.
        sizes: Of inputs.

    Raises:
        FormatError: The model is of no supported family.
        SpecError: It has no such modality, or something that no encoder or connector has.
    """
    families = FAMILIES.get(config.model_type)
    if families is None:
        raise FormatError(
            f"{source}: {config.model_type!r} models are not converted whole; those that are: "
            f"{', '.join(sorted(FAMILIES))}. An adapter (PEFT) or a ModelCompose release of such "
            "a model can be",
            path=source,
        )
    name = modality or next(iter(families))
    if name not in families:
        raise SpecError(
            f"{source}: a {config.model_type!r} model has no modality {name!r}, only "
            f"{', '.join(families)}",
            subject="modality",
        )
    build = resolve(f"modalloy.interop.{families[name]}")
    tower: Tower = build(config, source, sizes)
    return tower
