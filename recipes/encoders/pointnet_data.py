"""What the point-cloud encoder learns from: clouds of all catalogue objects, and their icons.

Objects of the household set bring their class; the rest of the catalogues has no labels and only
its icons to learn from. Nothing that is, or looks like, a validation or test object is among them.
"""

import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import attrs
import numpy as np
import torch
from PIL import Image
from recipes.household import catalogue, media, models
from recipes.household.catalogue import Pick, Thing
from recipes.household.draws import generator
from recipes.household.fetch import Sources, fetch
from recipes.household.furniture import CATALOGUES, LISTING, Entry, parse_catalogue
from recipes.household.meshes import surface
from recipes.household.models import Model
from recipes.household.pictures import near_duplicates, normalise
from recipes.household.shapes import COUNT, read_cloud
from safetensors.torch import load_file, save_file
from torch import Tensor

from modalloy_pointcloud.cloud import PointCloud
from modalloy_pointcloud.pointnet import preprocess
from modalloy_vision import timm_encoder

TAKES = 4
"""Samplings of the surface of an object that is learnt from."""
POINTS = 1024
"""Points kept of each, an even cover first; training takes what it needs from the front."""
_PREPARED = {"points": POINTS, "colours": True}
_TEACHER = {"model": "tf_efficientnet_lite0", "features": 1280}


@attrs.frozen(eq=False)
class Lesson:
    """Objects to learn from.

    Attributes:
        clouds: float32 ``(O, TAKES, POINTS, 6)`` as the encoder's ``preprocess`` returns them.
        icons: float32 ``(O, 1280)``, each object's icon as the vision encoder sees it.
        labels: int64 ``(O,)``, -1 for an object without a class.
    """

    clouds: Tensor
    icons: Tensor
    labels: Tensor


@attrs.frozen(eq=False)
class Exam:
    """Objects to test with.

    Attributes:
        ids: Their ids, O of them.
        clouds: float32 ``(O, POINTS, 6)``.
        labels: int64 ``(O,)``.
    """

    ids: tuple[str, ...]
    clouds: Tensor
    labels: Tensor


def gather(work: Path, jobs: int) -> tuple[Lesson, dict[str, Exam], list[str]]:
    """Reads what is to be learnt, the exams ``val`` and ``test``, and the names of the classes.

    The first call draws points and encodes icons, and stores both below ``work/pointnet``.

    Args:
        work: Folder in which ``recipes.household.build`` has written ``objects.jsonl`` and clouds.
        jobs: Processes that read meshes.
    """
    things = media.read_objects(work / "objects.jsonl")
    names = sorted({thing.label for thing in things})
    stored = work / "pointnet" / "lesson.safetensors"
    if not stored.is_file():
        stored.parent.mkdir(parents=True, exist_ok=True)
        save_file(_draw(things, names, fetch(work), jobs), stored)
    tensors = load_file(stored)
    lesson = Lesson(tensors["clouds"].float(), tensors["icons"], tensors["labels"])
    exams = {split: _exam(work, things, names, split) for split in ("val", "test")}
    return lesson, exams, names


def _exam(work: Path, things: Sequence[Thing], names: list[str], split: str) -> Exam:
    ids, clouds, labels = [], [], []
    for thing in things:
        if thing.split == split and thing.points is not None:
            ids.append(thing.id)
            cloud = read_cloud(work / thing.points)
            clouds.append(_prepare(cloud.points, cloud.colours))
            labels.append(names.index(thing.label))
    return Exam(tuple(ids), torch.stack(clouds), torch.tensor(labels))


def _prepare(points: np.ndarray, colours: np.ndarray) -> Tensor:
    cloud = PointCloud(points, (colours / 255).astype(np.float32))
    return preprocess(cloud, _PREPARED)["points"]


def _draw(
    things: Sequence[Thing], names: list[str], sources: Sources, jobs: int
) -> dict[str, Tensor]:
    """Tensors of a :class:`Lesson`; clouds in float16, finer than the jitter of training."""
    picks, entries = _everything(sources)
    icons = _icons(picks, entries, sources)
    found = models.find_models(picks, entries, sources)
    outlines = models.outlines(found, jobs)
    near = [pair[:2] for pair in near_duplicates(icons)] + catalogue.same_models(outlines)
    groups = catalogue.group(sorted(found), near)
    kept_back = {groups[t.id] for t in things if t.split != "train" and t.id in groups}
    known = {t.id: names.index(t.label) for t in things if t.split == "train"}
    ids = [id_ for id_ in sorted(found) if id_ in known or groups[id_] not in kept_back]
    clouds = models.spread(_sample, [found[id_] for id_ in ids], jobs)
    return {
        "clouds": torch.from_numpy(np.stack(clouds)),
        "icons": _encode([icons[id_] for id_ in ids]),
        "labels": torch.tensor([known.get(id_, -1) for id_ in ids]),
    }


def _everything(sources: Sources) -> tuple[list[Pick], dict[str, Entry]]:
    """All entries of all catalogues."""
    picks, entries = [], {}
    for source in sorted(CATALOGUES):
        with zipfile.ZipFile(sources.catalogue(source)) as archive:
            listing = parse_catalogue(archive.read(LISTING).decode("latin-1"))
        for name, entry in sorted(listing.items()):
            picks.append(Pick(id=f"{source}/{name}", label="", source=source, path=name))
            entries[picks[-1].id] = entry
    return picks, entries


def _icons(
    picks: Sequence[Pick], entries: Mapping[str, Entry], sources: Sources
) -> dict[str, Image.Image]:
    icons = {}
    for source in sorted(CATALOGUES):
        with zipfile.ZipFile(sources.catalogue(source)) as archive:
            for pick in picks:
                if pick.source == source:
                    with Image.open(BytesIO(archive.read(entries[pick.id].icon))) as image:
                        icons[pick.id] = normalise(image)
    return icons


def _sample(model: Model) -> np.ndarray:
    """``TAKES`` clouds of one model, float16 ``(TAKES, POINTS, 6)``."""
    mesh = model.load()
    takes = []
    for number in range(TAKES):
        xyz, rgb, _ = surface(mesh, COUNT, generator("pointnet", model.id, number))
        takes.append(_prepare(xyz, rgb).numpy().astype(np.float16))
    return np.stack(takes)


@torch.inference_mode()
def _encode(icons: Sequence[Image.Image]) -> Tensor:
    module = timm_encoder.build(_TEACHER)
    rows = []
    for icon in icons:
        pixels = timm_encoder.preprocess(icon, _TEACHER)["pixel_values"]
        rows.append(module(pixels[None])[0].mean(0))
    return torch.stack(rows)
