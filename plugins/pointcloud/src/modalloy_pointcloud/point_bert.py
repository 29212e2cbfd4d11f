"""Encoder ``point-bert``: a transformer over groups of neighbouring points, plain PyTorch.

A reconstruction from the description of Point-BERT (arXiv 2111.14819), in the sizes in which
PointLLM and ModelCompose use it: 8192 coloured points, 512 groups of 32, depth 12, width 384, 6
heads, 513 tokens. No weights come with it. Tensors are named as below; a checkpoint converted to
safetensors must hold exactly these (``num_batches_tracked`` aside), whatever prefix stood before::

    cls_token, cls_pos                                    (1, 1, width)
    encoder.first_conv.{0,1,3}, encoder.second_conv.{0,1,3}   1x1 convolution, batch norm, the same
    reduce_dim                                            linear, patch_width to width
    pos_embed.{0,2}                                       linear 3 to 128, linear 128 to width
    blocks.blocks.<layer>.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2}   qkv has no bias
    norm                                                  layer norm
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from modalloy.checkpoints.reader import CheckpointReader
from modalloy.errors import MissingComponentError, SpecError
from modalloy_pointcloud.cloud import PointCloud
from modalloy_pointcloud.configuration import PointBertConfig, point_bert_config
from modalloy_pointcloud.sampling import farthest_points, normalise, thin

_SUFFIX = ".safetensors"
_FILE = f"model{_SUFFIX}"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COUNTER = "num_batches_tracked"  # of batch norms; nothing reads it in evaluation mode
_MLP_RATIO = 4


class _PatchEmbedding(nn.Module):
    """A small PointNet: one vector for each group of points."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(channels, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, width, 1)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Map ``(N, G, S, C)`` to ``(N, G, width)``."""
        points = self.first_conv(patches.flatten(0, 1).transpose(1, 2))
        whole = points.amax(dim=2, keepdim=True).expand_as(points)
        points = self.second_conv(torch.cat([whole, points], dim=1))
        return points.amax(dim=2).unflatten(0, patches.shape[:2])


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(N, K, width)`` to the same shape; every token attends to every other."""
        query, key, value = (
            self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(N, K, width)`` to the same shape, token by token."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(N, K, width)`` to the same shape."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _Blocks(nn.Module):
    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Run all layers; the positions are added anew before each."""
        for block in self.blocks:
            tokens = block(tokens + places)
        return tokens


class PointBert(nn.Module):
    """A frozen transformer over groups of points.

    It stays in evaluation mode, whatever the mode of the model around it.

    Args:
        config: Sizes, and which tokens are returned.
    """

    def __init__(self, config: PointBertConfig) -> None:
        super().__init__()
        width = config.width
        self.pool = config.pool
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = _PatchEmbedding(6 if config.colours else 3, config.patch_width)
        self.reduce_dim = nn.Linear(config.patch_width, width)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.blocks = _Blocks(width, config.depth, config.heads)
        self.norm = nn.LayerNorm(width)
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Stay in evaluation mode; ``mode`` is ignored on purpose, see the class."""
        del mode
        return super().train(mode=False)

    def forward(self, patches: Tensor, centres: Tensor) -> Tensor:
        """Encode clouds that are cut into groups.

        Args:
            patches: ``(N, G, S, C)``: each group's points, xyz relative to its centre.
            centres: ``(N, G, 3)``: the groups' centres.

        Returns:
            ``(N, K, F)`` in the dtype of the weights.
        """
        tokens = self.reduce_dim(self.encoder(patches.to(self.cls_token.dtype)))
        places = self.pos_embed(centres.to(self.cls_token.dtype))
        first = self.cls_token.expand(len(tokens), -1, -1)
        first_place = self.cls_pos.expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        tokens = self.norm(self.blocks(tokens, torch.cat([first_place, places], dim=1)))
        if self.pool == "none":
            return tokens
        pooled = {"cls": tokens[:, :1], "max": tokens[:, 1:].amax(dim=1, keepdim=True)}
        return torch.cat([pooled[name] for name in self.pool.split("+")], dim=1)


def build(config: Mapping[str, Any]) -> PointBert:
    """Build the encoder with its weights, in float32 and evaluation mode.

    Args:
        config: See :class:`~modalloy_pointcloud.configuration.PointBertConfig`.

    Returns:
        The encoder; it maps ``patches`` and ``centres`` to ``(N, K, F)``.

    Raises:
        SpecError: The configuration is not valid, or the weights are not those of its sizes.
        MissingComponentError: The weights are not there or cannot be fetched.
        FormatError: The weights' file is damaged.
    """
    parsed = point_bert_config(config)
    encoder = PointBert(parsed)
    file = _weights(parsed)
    with CheckpointReader(file.parent, file.stem) as reader:
        names = [name for name in reader.names() if not name.endswith(_COUNTER)]
        _check_tensors(encoder, {name: reader.shape(name) for name in names}, file)
        tensors = {name: reader.tensor(name).float() for name in names}
        encoder.load_state_dict(tensors, strict=False)  # only the counters are not there
    return encoder


def preprocess(cloud: PointCloud, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Cut a cloud into groups of neighbours: farthest points are centres, the nearest join them.

    A cloud without colours is black where the encoder looks at colours.

    Args:
        cloud: Any cloud.
        config: See :class:`~modalloy_pointcloud.configuration.PointBertConfig`.

    Returns:
        ``patches``: float32 ``(groups, group_size, 6 or 3)``; ``centres``: float32
        ``(groups, 3)``.
    """
    parsed = point_bert_config(config)
    cloud = normalise(thin(cloud, parsed.points))
    cloud = cloud.select(np.arange(parsed.points) % len(cloud))
    centres = cloud.xyz[farthest_points(cloud.xyz, parsed.groups)]
    lengths = np.square(cloud.xyz).sum(axis=1)
    distances = lengths - 2 * centres @ cloud.xyz.T  # squared, but for each centre's own length
    members = np.argpartition(distances, parsed.group_size - 1, axis=1)[:, : parsed.group_size]
    patches = cloud.xyz[members] - centres[:, None]
    if parsed.colours:
        rgb = np.zeros_like(cloud.xyz) if cloud.rgb is None else cloud.rgb
        patches = np.concatenate([patches, rgb[members]], axis=2)
    return {"patches": torch.from_numpy(patches), "centres": torch.from_numpy(centres)}


def _weights(config: PointBertConfig) -> Path:
    """Return the weights' file, fetched where the configuration names a Hub id."""
    local = Path(config.model)
    file = local if local.suffix == _SUFFIX else local / _FILE
    if file.is_file():
        return file
    if local.suffix == _SUFFIX or local.exists() or not _HUB_ID.fullmatch(config.model):
        raise MissingComponentError(
            f"encoder 'point-bert': there are no weights at {file}; name a {_SUFFIX} file, a "
            f"directory that holds {_FILE}, or a Hub id 'owner/name'",
            component=config.model,
        )
    try:
        return Path(hf_hub_download(config.model, _FILE, revision=config.revision))
    except (HfHubHTTPError, OSError) as error:
        raise MissingComponentError(
            f"encoder 'point-bert': {_FILE} of {config.model!r} cannot be fetched ({error})",
            component=config.model,
        ) from error


def _check_tensors(encoder: PointBert, found: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Compare names and shapes: a tensor that is missing would stay random."""
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in encoder.state_dict().items()
        if not name.endswith(_COUNTER)
    }
    problems = [f"lacks {name!r}" for name in expected if name not in found]
    problems += [f"has an unknown {name!r}" for name in found if name not in expected]
    problems += [
        f"has {name!r} of shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f", and {len(problems) - 1} more such" if len(problems) > 1 else ""
        raise SpecError(
            f"encoder 'point-bert': {file} {problems[0]}{more}; convert the weights to the names "
            "that modalloy_pointcloud.point_bert lists, and set the configuration to their sizes",
            subject="encoder 'point-bert'",
        )
