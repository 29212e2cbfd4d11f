"""Vision towers whose architecture stands in ``parent.json``, checked without torch.

Such a tower was taken out of a whole fine-tuned model: ``encoder.safetensors`` brings its weights.
The words are those of transformers' own configurations, and what is no size, no activation and no
small constant is not among them: no key of a stranger's file chooses code.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import attrs

from modalloy.errors import SpecError

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"]

_MOST: Mapping[str, int] = MappingProxyType({"depth": 256, "tokens": 1 << 16})
_WIDEST = 1 << 16
# A damaged or hostile number must not become an allocation; the largest towers have 6e9.
_MOST_PARAMETERS = 10**10


@attrs.frozen(kw_only=True)
class ClipArchitecture:
    """What of transformers' ``CLIPVisionConfig`` shapes the hidden states; the words are its."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def patches(self) -> int:
        """Patches of one picture; what is left at its edges is not seen."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token."""
        return 1

    def check(self, subject: str) -> None:
        """Check the numbers; ``subject`` is named in messages.

        Raises:
            SpecError: They make no sense, alone or together.
        """
        check_numbers(subject, self)
        if self.patch_size > self.image_size:
            raise SpecError(
                f"{subject}: architecture.patch_size {self.patch_size} is larger than the picture, "
                f"image_size {self.image_size}",
                subject=subject,
            )
        check_size(
            subject,
            depth=self.num_hidden_layers,
            width=self.hidden_size,
            inner=self.intermediate_size,
            tokens=self.patches,
        )
        check_heads(subject, self.hidden_size, self.num_attention_heads, 1)


@attrs.frozen(kw_only=True)
class SiglipArchitecture(ClipArchitecture):
    """As :class:`ClipArchitecture`, of ``SiglipVisionConfig``.

    Attributes:
        vision_use_head: Whether the tower has a pooling head, which features do not pass through.
    """

    hidden_act: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vision_use_head: bool = True

    @property
    def prefix(self) -> int:
        """There is no class token."""
        return 0


@attrs.frozen(kw_only=True)
class QwenArchitecture(ABC):
    """What the vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL have in common.

    Attributes:
        depth: Layers.
        num_heads: Heads of each.
        patch_size: Side of a patch in pixels.
        spatial_merge_size: Side, in patches, of the square that becomes one token.
        temporal_patch_size: Frames of a patch; a picture is as many frames alike.
    """

    depth: int
    num_heads: int
    patch_size: int
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2

    @property
    @abstractmethod
    def width(self) -> int:
        """Features of a patch."""

    @property
    @abstractmethod
    def inner(self) -> int:
        """Features inside a layer's MLP."""

    def check(self, subject: str) -> None:
        """Check the numbers; ``subject`` is named in messages.

        Raises:
            SpecError: They make no sense, alone or together.
        """
        check_numbers(subject, self)
        check_size(subject, depth=self.depth, width=self.width, inner=self.inner)
        # Rotary embeddings turn pairs of features, half of the pairs by row, half by column.
        check_heads(subject, self.width, self.num_heads, 4)


@attrs.frozen(kw_only=True)
class Qwen2VLArchitecture(QwenArchitecture):
    """Of ``Qwen2VLVisionConfig``, whose ``hidden_size`` is the language model's and not here."""

    embed_dim: int
    mlp_ratio: int = 4
    patch_size: int = 14
    hidden_act: Activation = "quick_gelu"

    @property
    def width(self) -> int:
        """Features of a patch."""
        return self.embed_dim

    @property
    def inner(self) -> int:
        """Features inside a layer's MLP."""
        return self.embed_dim * self.mlp_ratio


@attrs.frozen(kw_only=True)
class _Wide(QwenArchitecture):
    hidden_size: int
    intermediate_size: int

    @property
    def width(self) -> int:
        """Features of a patch."""
        return self.hidden_size

    @property
    def inner(self) -> int:
        """Features inside a layer's MLP."""
        return self.intermediate_size


@attrs.frozen(kw_only=True)
class Qwen25VLArchitecture(_Wide):
    """Of ``Qwen2_5_VLVisionConfig``.

    Attributes:
        window_size: Side, in pixels, of the windows that attention keeps to.
        fullatt_block_indexes: Layers whose attention sees the whole picture.
    """

    patch_size: int = 14
    hidden_act: Activation = "silu"
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)

    def check(self, subject: str) -> None:
        """See :meth:`QwenArchitecture.check`."""
        super().check(subject)
        if self.window_size < self.patch_size * self.spatial_merge_size:
            raise SpecError(
                f"{subject}: architecture.window_size {self.window_size} is smaller than a token, "
                f"{self.patch_size * self.spatial_merge_size} pixels",
                subject=subject,
            )
        out = [index for index in self.fullatt_block_indexes if not 0 <= index < self.depth]
        if out:
            raise SpecError(
                f"{subject}: architecture.fullatt_block_indexes names layer {out[0]}, but there "
                f"are {self.depth} from 0 on",
                subject=subject,
            )


@attrs.frozen(kw_only=True)
class Qwen3VLArchitecture(_Wide):
    """Of ``Qwen3VLVisionConfig``; DeepStack's mergers are no part of the encoder.

    Attributes:
        num_position_embeddings: Of a square grid, which is stretched over the picture.
    """

    patch_size: int = 16
    hidden_act: Activation = "gelu_pytorch_tanh"
    num_position_embeddings: int = 2304

    def check(self, subject: str) -> None:
        """See :meth:`QwenArchitecture.check`."""
        super().check(subject)
        positions = self.num_position_embeddings
        if round(positions**0.5) ** 2 != positions:
            raise SpecError(
                f"{subject}: architecture.num_position_embeddings must be the square of a whole "
                f"number, found {positions}",
                subject=subject,
            )


def check_numbers(subject: str, architecture: Any) -> None:
    """Check that every number of an architecture is positive and not huge.

    Raises:
        SpecError: One is not.
    """
    found = attrs.asdict(architecture, recurse=False)
    numbers = {name: value for name, value in found.items() if type(value) in (int, float)}
    for name, value in numbers.items():
        if not 0 < value <= _WIDEST:
            raise SpecError(
                f"{subject}: architecture.{name} must be positive and at most {_WIDEST}, found "
                f"{value}",
                subject=subject,
            )


def check_size(subject: str, *, depth: int, width: int, inner: int, tokens: int = 1) -> None:
    """Check that a tower is not larger than any there is.

    Raises:
        SpecError: It has too many layers, tokens, or parameters in all.
    """
    for name, value in (("depth", depth), ("tokens", tokens)):
        if value > _MOST[name]:
            raise SpecError(
                f"{subject}: architecture makes {value} "
                f"{'layers' if name == 'depth' else 'tokens'}, at most {_MOST[name]} are taken",
                subject=subject,
            )
    parameters = depth * width * (4 * width + 3 * inner)
    if parameters > _MOST_PARAMETERS:
        raise SpecError(
            f"{subject}: architecture makes about {parameters:,} parameters, at most "
            f"{_MOST_PARAMETERS:,} are taken; its numbers are not those of a vision tower",
            subject=subject,
        )


def check_heads(subject: str, width: int, heads: int, step: int) -> None:
    """Check that features divide into heads, of a multiple of ``step`` features each.

    Raises:
        SpecError: They do not.
    """
    if width % (heads * step):
        multiple = f" of a multiple of {step} features" if step > 1 else ""
        raise SpecError(
            f"{subject}: architecture has {width} features, which do not divide into {heads} "
            f"heads{multiple}",
            subject=subject,
        )
