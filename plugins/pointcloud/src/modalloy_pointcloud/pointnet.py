"""Encoder ``pointnet``: a light hierarchy of neighbourhoods, in the manner of PointNet++.

Each point is embedded with its place in the object's box, the neighbours' embeddings are pooled
around 128 and then 32 of the points, these regions attend to one another, and four tokens sum them
up. Three things keep it small and fast: the heading is found by geometry rather than learned, the
linear layer of a neighbourhood runs once for each point and not once for each pair, and the points
arrive farthest first, so that the first m of them are the centres.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from modalloy.errors import MissingComponentError, SpecError
from modalloy_pointcloud.cloud import PointCloud
from modalloy_pointcloud.configuration import PointNetConfig, pointnet_config
from modalloy_pointcloud.sampling import normalise, resample

WEIGHTS = Path(__file__).parent / "weights"
"""Where the packaged weights lie, ``pointnet_<model>.safetensors`` each, float16."""

TOKENS = 4
"""K: the maximum over all regions, and three weighted means of them."""
FEATURES = 256
"""F of each token."""
CENTRES = (128, 32)
"""Points around which the two levels pool."""
NEIGHBOURS = 16
_WIDTHS = (48, 96, 192)
_SPREAD = (4.0, 2.0)  # brings distances within a neighbourhood to about 1
_HEADS = 4
_HEADINGS = 45  # tried within a right angle: every 2 degrees
_XYZ, _RGB = 3, 6
_THIN = 0.05  # a panel's thickness says nothing: proportions stop here, in radii


class Normed(nn.Module):
    """Batch normalisation over all axes but the last.

    Args:
        width: Size of the last axis.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Normalise ``(..., width)``."""
        return cast("torch.Tensor", self.norm(values.flatten(0, -2))).view(values.shape)


class Neighbourhoods(nn.Module):
    """One level: the maximum over each centre's neighbours, then a residual layer.

    Args:
        taken: Features of a point.
        width: Features of a region.
        spread: Factor on coordinates.
    """

    def __init__(self, taken: int, width: int, spread: float) -> None:
        super().__init__()
        self.spread = spread
        self.features = nn.Linear(taken, width, bias=False)
        self.places = nn.Linear(_XYZ, width, bias=False)
        self.norm = Normed(width)
        self.residual = nn.Sequential(
            nn.Linear(width, width, bias=False),
            Normed(width),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
            Normed(width),
        )

    def forward(self, xyz: torch.Tensor, features: torch.Tensor, centres: int) -> torch.Tensor:
        """Pool around the first ``centres`` points.

        Args:
            xyz: ``(N, P, 3)``.
            features: ``(N, P, taken)``.
            centres: M, how many regions.

        Returns:
            ``(N, M, width)``.
        """
        # W (p_j - p_i) = W p_j - W p_i: the difference to the centre costs no layer of its own.
        places = self.places(xyz * self.spread)
        pooled = _neighbours_max(self.features(features) + places, xyz, centres)
        regions = F.relu(self.norm(pooled - places[:, :centres]))
        return F.relu(regions + self.residual(regions))


class PointNet(nn.Module):
    """The network without weights; :func:`build` loads and freezes them."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = _WIDTHS
        self.points = nn.Sequential(
            nn.Linear(_RGB + 8, first, bias=False),
            Normed(first),
            nn.ReLU(),
            nn.Linear(first, first, bias=False),
            Normed(first),
            nn.ReLU(),
        )
        self.near = Neighbourhoods(first, second, _SPREAD[0])
        self.far = Neighbourhoods(second, third, _SPREAD[1])
        self.places = nn.Sequential(nn.Linear(6, third), nn.ReLU(), nn.Linear(third, third))
        self.context = nn.TransformerEncoderLayer(
            third, _HEADS, 2 * third, dropout=0.1, batch_first=True, norm_first=True
        )
        self.values = nn.Sequential(nn.Linear(third, FEATURES, bias=False), Normed(FEATURES))
        self.weights = nn.Linear(third, TOKENS - 1)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Encode clouds, whatever their heading, size and place.

        Args:
            points: ``(N, P, 3)`` x, y, z with z up, or ``(N, P, 6)`` with red, green, blue of
                -0.5 to 0.5 besides; P of at least 128, in the order that
                :func:`~modalloy_pointcloud.sampling.resample` gives.

        Returns:
            ``(N, 4, 256)``.
        """
        xyz = centred(squared(points[..., :_XYZ]))
        colours = points[..., _XYZ:]
        if not colours.shape[-1]:
            colours = torch.zeros_like(xyz)
        return self.encode(xyz, colours)

    def encode(self, xyz: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        """Encode clouds that stand square in their box: two ``(N, P, 3)`` to ``(N, K, F)``."""
        extents = (xyz.amax(1, keepdim=True) - xyz.amin(1, keepdim=True)) / 2
        within = xyz / extents.clamp_min(_THIN)
        off_axis = xyz[..., :2].norm(dim=-1, keepdim=True)
        widest = extents[..., :2].norm(dim=-1, keepdim=True).clamp_min(_THIN)
        box = extents.expand_as(xyz)
        known = [xyz, colours, within, off_axis, off_axis / widest, box]
        near = self.near(xyz, self.points(torch.cat(known, -1)), CENTRES[0])
        far = self.far(xyz[:, : CENTRES[0]], near, CENTRES[1])
        places = torch.cat([xyz, box], -1)[:, : CENTRES[1]]
        regions = self.context(far + self.places(places))
        values = F.relu(self.values(regions))
        means = self.weights(regions).softmax(1).transpose(1, 2) @ values
        return torch.cat([values.amax(1, keepdim=True), means], 1)


class FrozenPointNet(nn.Module):
    """A trained network, averaged over the headings that geometry cannot tell apart.

    It stays in evaluation mode, whatever the mode of the model around it.

    Args:
        network: The network with its weights.
    """

    def __init__(self, network: PointNet) -> None:
        super().__init__()
        self.network = network.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Stay in evaluation mode; ``mode`` is ignored on purpose, see the class."""
        del mode
        return super().train(mode=False)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Encode clouds: ``(N, P, 3 or 6)`` to ``(N, K, F)``, see :class:`PointNet`."""
        xyz = centred(squared(points[..., :_XYZ]))
        colours = points[..., _XYZ:]
        if not colours.shape[-1]:
            colours = torch.zeros_like(xyz)
        ways = [xyz * xyz.new_tensor([x, y, 1.0]) for x in (1.0, -1.0) for y in (1.0, -1.0)]
        tokens: torch.Tensor = self.network.encode(torch.cat(ways), colours.repeat(len(ways), 1, 1))
        return tokens.view(len(ways), -1, *tokens.shape[1:]).mean(0)


def build(config: Mapping[str, Any]) -> FrozenPointNet:
    """Build the encoder with its packaged weights, in float32 and evaluation mode.

    Args:
        config: See :class:`~modalloy_pointcloud.configuration.PointNetConfig`.

    Returns:
        The encoder; it maps ``points`` to ``(N, K, F)``.

    Raises:
        SpecError: The configuration is not valid or does not fit the weights.
        MissingComponentError: No such weights are packaged.
    """
    parsed = _parsed(config)
    file = WEIGHTS / f"pointnet_{parsed.model}.safetensors"
    if not file.is_file():
        packaged = sorted(
            path.stem.removeprefix("pointnet_") for path in WEIGHTS.glob("pointnet_*")
        )
        raise MissingComponentError(
            f"encoder 'pointnet': no weights {parsed.model!r} are packaged (packaged: "
            f"{', '.join(packaged) or 'none'}); set model to one of these",
            component=parsed.model,
        )
    network = PointNet()
    tensors = load_file(file)
    try:
        network.load_state_dict(
            {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        )
    except RuntimeError as error:
        raise SpecError(
            f"encoder 'pointnet': {file.name} does not fit this version's network ({error}); "
            "reinstall modalloy-pointcloud",
            subject="encoder 'pointnet'",
        ) from error
    return FrozenPointNet(network)


def preprocess(cloud: PointCloud, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Turn a cloud into the encoder's input.

    Args:
        cloud: Any cloud, z up. Without colours it is taken as grey.
        config: See :class:`~modalloy_pointcloud.configuration.PointNetConfig`.

    Returns:
        ``points``: float32 ``(P, 6)``, or ``(P, 3)`` where the configuration leaves colours out:
        centroid at 0, radius 1, colours from -0.5 to 0.5, an even cover of the cloud first.
    """
    parsed = _parsed(config)
    chosen = normalise(resample(cloud, parsed.points))
    xyz = torch.from_numpy(chosen.xyz)
    if not parsed.colours:
        return {"points": xyz}
    grey = torch.zeros_like(xyz)
    colours = grey if chosen.rgb is None else torch.from_numpy(chosen.rgb) - 0.5
    return {"points": torch.cat([xyz, colours], 1)}


def squared(xyz: torch.Tensor) -> torch.Tensor:
    """Turn clouds about the upright axis so that they fill the smallest box, long side along x.

    Furniture, vehicles and the like are built at right angles: the box stands as they do. What is
    left open is which way they face along x, and which side of theirs is the front.

    Args:
        xyz: ``(N, P, 3)``.

    Returns:
        ``(N, P, 3)``, turned.
    """
    angle = torch.arange(_HEADINGS, device=xyz.device, dtype=xyz.dtype) * (math.pi / 2 / _HEADINGS)
    turn = torch.stack([angle.cos(), angle.sin()])
    along, across = xyz[..., :2] @ turn, xyz[..., :2] @ torch.stack([-turn[1], turn[0]])
    length, width = along.amax(1) - along.amin(1), across.amax(1) - across.amin(1)
    best = (length * width).argmin(1)
    rows = torch.arange(len(xyz), device=xyz.device)
    # Turned by another right angle where the box is longer across.
    longer = (width[rows, best] > length[rows, best])[:, None]
    cos, sin = (side[best, None] for side in turn)
    cos, sin = torch.where(longer, -sin, cos), torch.where(longer, cos, sin)
    x, y, z = xyz.unbind(-1)
    return torch.stack([x * cos + y * sin, y * cos - x * sin, z], -1)


def centred(xyz: torch.Tensor) -> torch.Tensor:
    """Move the middle of each cloud's box to 0 and scale its farthest point to radius 1.

    Args:
        xyz: ``(N, P, 3)``.

    Returns:
        ``(N, P, 3)``.
    """
    moved = xyz - (xyz.amax(1, keepdim=True) + xyz.amin(1, keepdim=True)) / 2
    return moved / moved.norm(dim=-1).amax(1)[:, None, None].clamp_min(1e-6)


def _neighbours_max(values: torch.Tensor, xyz: torch.Tensor, centres: int) -> torch.Tensor:
    """Maximum of ``values`` (N, P, W) over the points nearest to each centre, ``(N, M, W)``."""
    # Exact distances: the faster product formula rounds otherwise in a batch than alone.
    distances = torch.cdist(xyz[:, :centres], xyz, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(NEIGHBOURS, largest=False, sorted=False).indices
    clouds, count, width = values.shape
    offsets = torch.arange(clouds, device=xyz.device).view(-1, 1, 1) * count
    # One bag a region: never holds the N x M x neighbours x W values that a gather would make.
    bags = (nearest + offsets).view(-1, NEIGHBOURS)
    pooled = F.embedding_bag(bags, values.reshape(-1, width), mode="max")
    return pooled.view(clouds, centres, width)


def _parsed(config: Mapping[str, Any]) -> PointNetConfig:
    parsed = pointnet_config(config)
    if (parsed.tokens, parsed.features) != (TOKENS, FEATURES):
        raise SpecError(
            f"encoder 'pointnet': makes {TOKENS} tokens of {FEATURES} features, the configuration "
            f"says {parsed.tokens} of {parsed.features}; set tokens to {TOKENS} and features to "
            f"{FEATURES}",
            subject="encoder 'pointnet'",
        )
    if parsed.points < CENTRES[0]:
        raise SpecError(
            f"encoder 'pointnet': points is {parsed.points}, fewer than the {CENTRES[0]} points "
            f"that neighbourhoods are pooled around; set points to {CENTRES[0]} or more",
            subject="encoder 'pointnet'",
        )
    return parsed
