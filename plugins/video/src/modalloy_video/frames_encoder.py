"""Encoder ``frames``: frames of a clip through any timm backbone, averaged over spans of time.

Nothing here says which span a token stands for: the tokens are in order, and the language
model tells them apart by their positions in the prompt.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from modalloy.errors import FormatError, MissingComponentError, SpecError
from modalloy.opened import fetch_weights
from modalloy_video.clip import Clip, sample
from modalloy_video.configuration import FramesConfig, frames_config
from modalloy_video.pixels import fit_squares, normalise

WEIGHTS = Path(__file__).parent / "weights"
"""Where the packaged backbones lie, ``<model>.safetensors`` each, float16."""

_SUBJECT = "encoder 'frames'"
_CHUNK = 16  # frames that go through the backbone at a time, whatever the batch
_MAP_DIMS = 4
_SEQUENCE_DIMS = 3


class FramesEncoder(nn.Module):
    """A frozen timm backbone, applied to frames one by one, and the averages of its features.

    It stays in evaluation mode, whatever the mode of the model around it: with frozen weights,
    batch statistics and dropout would only add noise.

    Args:
        backbone: A timm model without classifier (``num_classes=0``).
        tokens: Equal spans of time, K, that the frames are averaged to.
    """

    def __init__(self, backbone: nn.Module, tokens: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(requires_grad=False)
        self.tokens = tokens
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Stay in evaluation mode; ``mode`` is ignored on purpose, see the class."""
        del mode
        return super().train(mode=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode clips.

        Args:
            pixel_values: ``(N, frames, 3, image_size, image_size)``.

        Returns:
            ``(N, K, F)`` in the dtype of the weights, the spans in order of time.
        """
        chunks = pixel_values.flatten(0, 1).split(_CHUNK)
        each = torch.cat([self.frame_features(chunk) for chunk in chunks])
        clips = each.unflatten(0, pixel_values.shape[:2])
        return F.adaptive_avg_pool1d(clips.transpose(1, 2), self.tokens).transpose(1, 2)

    def frame_features(self, frames: torch.Tensor) -> torch.Tensor:
        """Map frames ``(n, 3, image_size, image_size)`` to the means of their maps ``(n, F)``."""
        backbone: Any = self.backbone
        features = cast("torch.Tensor", backbone.forward_features(frames))
        if features.dim() == _MAP_DIMS:
            channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
            return features.mean((1, 2) if channels_last else (2, 3))
        if features.dim() == _SEQUENCE_DIMS and hasattr(backbone, "patch_embed"):
            return features[:, getattr(backbone, "num_prefix_tokens", 0) :].mean(1)
        raise SpecError(
            f"{_SUBJECT}: {type(self.backbone).__name__} returns features of shape "
            f"{tuple(features.shape)}, neither a map nor a sequence of patches; choose another "
            "model",
            subject=_SUBJECT,
        )


def build(config: Mapping[str, Any]) -> FramesEncoder:
    """Build the encoder, weights included, in float32 and evaluation mode.

    Args:
        config: See :class:`~modalloy_video.configuration.FramesConfig`.

    Returns:
        The encoder; it maps ``pixel_values`` to ``(N, K, F)``.

    Raises:
        SpecError: The configuration is not valid or does not fit the model.
        MissingComponentError: The weights are not packaged, cannot be fetched, or are not in
            safetensors.
        FormatError: The weights are damaged.
    """
    parsed = frames_config(config)
    if parsed.model not in timm.list_models():
        raise SpecError(
            f"{_SUBJECT}: timm {timm.__version__} has no model {parsed.model!r}; "
            "timm.list_models() lists what it has",
            subject=_SUBJECT,
        )
    backbone = _packaged(parsed) if parsed.weights == "packaged" else _pretrained(parsed)
    encoder = FramesEncoder(backbone, parsed.tokens)
    _verify(encoder, parsed)
    return encoder


def preprocess(clip: Clip, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turn a clip into the encoder's input.

    Args:
        clip: Of any size and length.
        config: See :class:`~modalloy_video.configuration.FramesConfig`.

    Returns:
        ``pixel_values``: float32 ``(frames, 3, image_size, image_size)``, in order of time.

    Raises:
        SpecError: The configuration is not valid.
    """
    parsed = frames_config(config)
    squares = fit_squares(sample(clip, parsed.frames), parsed.image_size)
    return {"pixel_values": normalise(squares, parsed.mean, parsed.std)}


def _packaged(config: FramesConfig) -> nn.Module:
    file = WEIGHTS / f"{config.model}.safetensors"
    if not file.is_file():
        packaged = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
        raise MissingComponentError(
            f"{_SUBJECT}: no weights of {config.model!r} are packaged (packaged: "
            f"{', '.join(packaged) or 'none'}); set weights to 'timm' to fetch timm's own",
            component=config.model,
        )
    backbone = timm.create_model(config.model, pretrained=False, num_classes=0)
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        raise SpecError(
            f"{_SUBJECT}: {file.name} does not fit timm {timm.__version__}'s {config.model!r} "
            f"({error}); reinstall modalloy-video",
            subject=_SUBJECT,
        ) from error
    return backbone


def _pretrained(config: FramesConfig) -> nn.Module:
    """Make a backbone with timm's own weights.

    They are fetched here: timm itself would open a pickle where there are no safetensors.
    """
    problem = f"{_SUBJECT}: pretrained weights of {config.model!r} cannot be fetched"
    settings = timm.get_pretrained_cfg(config.model)
    if settings is None or not settings.hf_hub_id:
        raise MissingComponentError(
            f"{problem}: timm {timm.__version__} knows no Hub repository of them, and weights "
            "from elsewhere are pickles, which are not opened; choose another model",
            component=config.model,
        )
    repository, _, revision = settings.hf_hub_id.partition("@")
    file = fetch_weights(problem, repository, revision or None)
    try:
        return timm.create_model(
            config.model,
            pretrained=True,
            num_classes=0,
            pretrained_cfg_overlay={"file": str(file), "custom_load": False},
        )
    except (OSError, RuntimeError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise FormatError(
            f"{_SUBJECT}: {file} does not fit timm {timm.__version__}'s "
            f"{config.model!r} ({error}); fetch it again",
            path=file,
        ) from error


@torch.inference_mode()
def _verify(encoder: FramesEncoder, config: FramesConfig) -> None:
    """Run one blank frame, so that a wrong shape fails here and not in the middle of a prompt."""
    blank = torch.zeros(1, 3, config.image_size, config.image_size)
    found = encoder.frame_features(blank).shape[1]
    if found != config.features:
        raise SpecError(
            f"{_SUBJECT}: {config.model!r} has {found} features, the configuration says "
            f"{config.features}; set features to {found}",
            subject=_SUBJECT,
        )
