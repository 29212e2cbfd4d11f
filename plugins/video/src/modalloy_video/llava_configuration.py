"""Configuration of the encoder ``video-llava`` and the shape that follows, checked without torch.

Its architecture stands in ``parent.json``, in the words of transformers' own configuration. What is
no size, no activation and no small constant is not among them: no key of a stranger's file chooses
code.
"""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from modalloy.errors import FormatError, SpecError
from modalloy.structured import structure
from modalloy_video.configuration import KEPT, MOST

VIDEO_LLAVA = "video-llava"

_SUBJECT = f"encoder {VIDEO_LLAVA!r}"
_DEEPEST = 256
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
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"] = (
        "quick_gelu"
    )
    layer_norm_eps: float = 1e-5

    @property
    def tokens(self) -> int:
        """Tokens of one frame: its patches, and the class token before them."""
        return (self.image_size // self.patch_size) ** 2 + 1


@attrs.frozen(kw_only=True)
class VideoLlavaConfig:
    """Video tower of a Video-LLaVA model; its weights come with the parent.

    Attributes:
        architecture: Of the tower, a CLIP vision model that looks at single frames.
        mean: Subtracted from each channel, on the scale where white is 1.
        std: Each channel is divided by it, same scale.
        frames: Frames that are taken of a clip, one from the middle of each of as many spans.
        layer: Which hidden state: 0 is the embeddings, -1 the last layer's output, -2
            (Video-LLaVA's choice) the one before it.
    """

    architecture: ClipArchitecture
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    frames: int = 8
    layer: int = -2

    @property
    def tokens(self) -> int:
        """K: all tokens of every frame, class tokens too, as Video-LLaVA has it."""
        return self.frames * self.architecture.tokens


def video_llava_config(config: Mapping[str, Any]) -> VideoLlavaConfig:
    """Check the configuration of encoder ``video-llava``.

    Raises:
        SpecError: A key is missing, unknown or of the wrong type, or a value makes no sense.
    """
    try:
        parsed = structure(dict(config), VideoLlavaConfig, _SUBJECT)
    except FormatError as error:
        raise SpecError(str(error), subject=_SUBJECT) from error
    _check_architecture(parsed.architecture)
    if not 0 < parsed.frames <= KEPT:
        raise _refuse(
            f"frames must be from 1 to {KEPT}, which a clip keeps once it is read, found "
            f"{parsed.frames}"
        )
    if parsed.tokens > MOST:
        raise _refuse(
            f"{parsed.frames} frames of {parsed.architecture.tokens} tokens each make "
            f"{parsed.tokens} tokens a clip, at most {MOST} are taken"
        )
    depth = parsed.architecture.num_hidden_layers
    if not -depth - 1 <= parsed.layer <= depth:
        raise _refuse(
            f"architecture has {depth} layers, so layer must be from {-depth - 1} to {depth}, "
            f"found {parsed.layer}"
        )
    if min(parsed.std) <= 0:
        raise _refuse(f"std must be positive, found {list(parsed.std)}")
    return parsed


def video_llava_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return (K, F) of encoder ``video-llava``.

    Raises:
        SpecError: ``config`` is not valid.
    """
    parsed = video_llava_config(config)
    return parsed.tokens, parsed.architecture.hidden_size


def _check_architecture(architecture: ClipArchitecture) -> None:
    for name, value in attrs.asdict(architecture).items():
        bound = _DEEPEST if name == "num_hidden_layers" else MOST
        if isinstance(value, int | float) and not 0 < value <= bound:
            raise _refuse(
                f"architecture.{name} must be positive and at most {bound}, found {value}"
            )
    if architecture.patch_size > architecture.image_size:
        raise _refuse(
            f"architecture.patch_size {architecture.patch_size} is larger than the picture, "
            f"image_size {architecture.image_size}"
        )
    width, heads = architecture.hidden_size, architecture.num_attention_heads
    if width % heads:
        raise _refuse(f"architecture has {width} features, which do not divide into {heads} heads")
    inner = architecture.intermediate_size
    parameters = architecture.num_hidden_layers * width * (4 * width + 2 * inner)
    if parameters > _MOST_PARAMETERS:
        raise _refuse(
            f"architecture makes about {parameters:,} parameters, at most {_MOST_PARAMETERS:,} are "
            "taken; its numbers are not those of a vision tower"
        )


def _refuse(problem: str) -> SpecError:
    return SpecError(f"{_SUBJECT}: {problem}", subject=_SUBJECT)
