"""Encoder ``timm``: the last feature map of any timm backbone, averaged to a grid."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from modalloy.errors import FormatError, MissingComponentError, SpecError
from modalloy.opened import fetch_weights
from modalloy_vision.configuration import TimmConfig, timm_config
from modalloy_vision.pixels import fit_square, normalise

WEIGHTS = Path(__file__).parent / "weights"
"""Where the packaged backbones lie, ``<model>.safetensors`` each, float16."""

_MAP_DIMS = 4
_SEQUENCE_DIMS = 3


class TimmEncoder(nn.Module):
    """A frozen timm backbone and the pooling of its last feature map.

    It stays in evaluation mode, whatever the mode of the model around it: with frozen weights,
    batch statistics and dropout would only add noise.

    Args:
        backbone: A timm model without classifier (``num_classes=0``).
        grid: Rows and columns of the result.
    """

    def __init__(self, backbone: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(requires_grad=False)
        self.grid = grid
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Stay in evaluation mode; ``mode`` is ignored on purpose, see the class."""
        del mode
        return super().train(mode=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pictures.

        Args:
            pixel_values: ``(N, 3, image_size, image_size)``.

        Returns:
            ``(N, K, F)`` in the dtype of the weights, the grid's cells row by row.
        """
        features = self.feature_map(pixel_values)
        return F.adaptive_avg_pool2d(features, self.grid).flatten(2).transpose(1, 2)

    def feature_map(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the backbone's last feature map, ``(N, F, rows, columns)``."""
        backbone: Any = self.backbone
        features = cast("torch.Tensor", backbone.forward_features(pixel_values))
        if features.dim() == _MAP_DIMS:
            if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
                return features.permute(0, 3, 1, 2)
            return features
        if features.dim() == _SEQUENCE_DIMS and hasattr(backbone, "patch_embed"):
            rows, columns = backbone.patch_embed.grid_size
            patches = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
            return patches.transpose(1, 2).unflatten(2, (rows, columns))
        raise SpecError(
            f"encoder 'timm': {type(self.backbone).__name__} returns features of shape "
            f"{tuple(features.shape)}, neither a map nor a sequence of patches; choose "
            "another model",
            subject="encoder 'timm'",
        )


def build(config: Mapping[str, Any]) -> TimmEncoder:
    """Build the encoder, weights included, in float32 and evaluation mode.

    Args:
        config: See :class:`~modalloy_vision.configuration.TimmConfig`.

    Returns:
        The encoder; it maps ``pixel_values`` to ``(N, K, F)``.

    Raises:
        SpecError: The configuration is not valid or does not fit the model.
        MissingComponentError: The weights are not packaged, cannot be fetched, or are not in
            safetensors.
        FormatError: The weights are damaged.
    """
    parsed = timm_config(config)
    if parsed.model not in timm.list_models():
        raise SpecError(
            f"encoder 'timm': timm {timm.__version__} has no model {parsed.model!r}; "
            "timm.list_models() lists what it has",
            subject="encoder 'timm'",
        )
    backbone = _packaged(parsed) if parsed.weights == "packaged" else _pretrained(parsed)
    encoder = TimmEncoder(backbone, parsed.grid)
    _verify(encoder, parsed)
    return encoder


def preprocess(picture: Image.Image, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turn a picture into the encoder's input.

    Args:
        picture: RGB, of any size.
        config: See :class:`~modalloy_vision.configuration.TimmConfig`.

    Returns:
        ``pixel_values``: float32 ``(3, image_size, image_size)``.
    """
    parsed = timm_config(config)
    square = fit_square(picture, parsed.image_size)
    return {"pixel_values": normalise(square, parsed.mean, parsed.std)}


def _packaged(config: TimmConfig) -> nn.Module:
    file = WEIGHTS / f"{config.model}.safetensors"
    if not file.is_file():
        packaged = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
        raise MissingComponentError(
            f"encoder 'timm': no weights of {config.model!r} are packaged (packaged: "
            f"{', '.join(packaged) or 'none'}); set weights to 'timm' to fetch timm's own",
            component=config.model,
        )
    backbone = timm.create_model(config.model, pretrained=False, num_classes=0)
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        raise SpecError(
            f"encoder 'timm': {file.name} does not fit timm {timm.__version__}'s "
            f"{config.model!r} ({error}); reinstall modalloy-vision",
            subject="encoder 'timm'",
        ) from error
    return backbone


def _pretrained(config: TimmConfig) -> nn.Module:
    """Make a backbone with timm's own weights.

    They are fetched here: timm itself would open a pickle where there are no safetensors.
    """
    problem = f"encoder 'timm': pretrained weights of {config.model!r} cannot be fetched"
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
            f"encoder 'timm': {file} does not fit timm {timm.__version__}'s "
            f"{config.model!r} ({error}); fetch it again",
            path=file,
        ) from error


@torch.inference_mode()
def _verify(encoder: TimmEncoder, config: TimmConfig) -> None:
    """Run one blank picture, so that a wrong shape fails here and not in the middle of a prompt."""
    features = encoder.feature_map(torch.zeros(1, 3, config.image_size, config.image_size))
    channels, rows, columns = features.shape[1:]
    if channels != config.features:
        raise SpecError(
            f"encoder 'timm': {config.model!r} has {channels} features, the configuration says "
            f"{config.features}; set features to {channels}",
            subject="encoder 'timm'",
        )
    if rows < config.grid[0] or columns < config.grid[1]:
        raise SpecError(
            f"encoder 'timm': grid {list(config.grid)} is finer than the {rows}x{columns} feature "
            f"map of {config.model!r} at image_size {config.image_size}; choose a coarser grid",
            subject="encoder 'timm'",
        )
