"""Encoders ``qwen2-vl``, ``qwen2.5-vl`` and ``qwen3-vl``: vision towers of whole Qwen-VL models.

The merger of such a tower is in two: its norm, and the regrouping of neighbouring patches into one
token, belong to the encoder; its MLP is the parent's connector. Pictures are squares of a fixed
size, so that the number of tokens is fixed. The weights come with the parent.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from modalloy.frozen import FrozenModel, without_weights
from modalloy_vision.pixels import patch_rows, picture_square
from modalloy_vision.tower_configuration import QwenConfig, qwen_config

_CHANNELS = 3


class QwenEncoder(FrozenModel):
    """A frozen vision tower, up to the MLP of its merger.

    Args:
        model: The tower, its merger without the MLP.
        grid: Patches in a row or column of a picture.
        awaiting: Encoder type, see :class:`~modalloy.frozen.FrozenModel`.
    """

    def __init__(self, model: nn.Module, grid: int, *, awaiting: str) -> None:
        super().__init__(model, awaiting=awaiting)
        self.grid = grid

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pictures.

        Args:
            pixel_values: ``(N, P, C * frames * patch * patch)``, P patches of one picture, those
                of one token one after another.

        Returns:
            ``(N, K, F)`` in the dtype of the weights, the tokens row by row.

        Raises:
            MissingComponentError: The weights have not been loaded.
        """
        self.check_loaded()
        count = len(pixel_values)
        grids = torch.tensor([[1, self.grid, self.grid]] * count, device=pixel_values.device)
        output = self.model(pixel_values.flatten(0, 1), grid_thw=grids)
        tokens: torch.Tensor = output.pooler_output
        return tokens.unflatten(0, (count, -1))


def build_qwen2_vl(config: Mapping[str, Any]) -> QwenEncoder:
    """Make the tower of a Qwen2-VL model, in float32 and evaluation mode, without its weights.

    Args:
        config: See :class:`~modalloy_vision.tower_configuration.Qwen2VLConfig`.

    Returns:
        The encoder; its weights are to be loaded into it. It maps ``pixel_values`` to what the
        merger's MLP takes, ``(N, K, F)``.

    Raises:
        SpecError: The configuration is not valid.
    """
    return _build(config, "qwen2-vl")


def build_qwen2_5_vl(config: Mapping[str, Any]) -> QwenEncoder:
    """Make the tower of a Qwen2.5-VL model; else as :func:`build_qwen2_vl`.

    Raises:
        SpecError: The configuration is not valid.
    """
    return _build(config, "qwen2.5-vl")


def build_qwen3_vl(config: Mapping[str, Any]) -> QwenEncoder:
    """Make the tower of a Qwen3-VL model, without DeepStack; else as :func:`build_qwen2_vl`.

    Raises:
        SpecError: The configuration is not valid.
    """
    return _build(config, "qwen3-vl")


def preprocess_qwen2_vl(picture: Image.Image, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turn an RGB picture into the patches that the tower sees.

    A square picture becomes what Qwen's own image processor makes of it at this size.

    Returns:
        ``pixel_values``: float32 ``(P, C * frames * patch * patch)``.

    Raises:
        SpecError: The configuration is not valid.
    """
    return _preprocess(picture, config, "qwen2-vl")


def preprocess_qwen2_5_vl(
    picture: Image.Image, config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """See :func:`preprocess_qwen2_vl`.

    Raises:
        SpecError: The configuration is not valid.
    """
    return _preprocess(picture, config, "qwen2.5-vl")


def preprocess_qwen3_vl(picture: Image.Image, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """See :func:`preprocess_qwen2_vl`.

    Raises:
        SpecError: The configuration is not valid.
    """
    return _preprocess(picture, config, "qwen3-vl")


def _build(config: Mapping[str, Any], kind: str) -> QwenEncoder:
    parsed = qwen_config(config, kind)
    model = without_weights(lambda: _MAKERS[kind](parsed))
    return QwenEncoder(model, parsed.grid, awaiting=kind)


def _qwen2_vl(config: QwenConfig) -> PreTrainedModel:
    # Its hidden_size is what the merger's MLP makes, which is the connector's.
    settings = Qwen2VLVisionConfig(**_settings(config), hidden_size=1)
    return _without(Qwen2VisionTransformerPretrainedModel(settings), "mlp")


def _qwen2_5_vl(config: QwenConfig) -> PreTrainedModel:
    settings = Qwen2_5_VLVisionConfig(**_settings(config), out_hidden_size=1)
    return _without(Qwen2_5_VisionTransformerPretrainedModel(settings), "mlp")


def _qwen3_vl(config: QwenConfig) -> PreTrainedModel:
    # DeepStack adds features of inner layers to the language model's first layers; a composition
    # gives embeddings at the input only.
    settings = Qwen3VLVisionConfig(
        **_settings(config), out_hidden_size=1, deepstack_visual_indexes=[]
    )
    return _without(Qwen3VLVisionModel(settings), "linear_fc1", "act_fn", "linear_fc2")


def _without(model: Any, *layers: str) -> PreTrainedModel:
    """Take layers out of a tower's merger: what reaches them is what it returns."""
    for layer in layers:
        setattr(model.merger, layer, nn.Identity())
    tower: PreTrainedModel = model
    return tower


def _settings(config: QwenConfig) -> dict[str, Any]:
    return {**attrs.asdict(config.architecture), "in_channels": _CHANNELS}


_MAKERS: Mapping[str, Callable[[QwenConfig], PreTrainedModel]] = MappingProxyType(
    {"qwen2-vl": _qwen2_vl, "qwen2.5-vl": _qwen2_5_vl, "qwen3-vl": _qwen3_vl}
)


def _preprocess(
    picture: Image.Image, config: Mapping[str, Any], kind: str
) -> dict[str, torch.Tensor]:
    parsed = qwen_config(config, kind)
    one = parsed.architecture
    pixels = picture_square(picture, parsed.image_size, parsed)
    rows = patch_rows(pixels, one.patch_size, one.spatial_merge_size, one.temporal_patch_size)
    return {"pixel_values": rows}
