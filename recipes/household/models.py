"""Point clouds and turntable clips of the objects that have a model, in several processes."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import attrs
from recipes.household import render, shapes
from recipes.household.catalogue import Outline, Pick, Thing, outline
from recipes.household.draws import generator
from recipes.household.fetch import Sources
from recipes.household.furniture import Entry
from recipes.household.meshes import Mesh, read_mesh, surface

T = TypeVar("T")
R = TypeVar("R")
CLOUDS = 4
"""Point clouds of a training object: the stored one and three varied takes."""
CLIPS = 3
"""Clips of a training object: the plain one and two varied takes."""


@attrs.frozen
class Model:
    """Where one object's mesh lies.

    Attributes:
        id: Object id.
        archive: The catalogue that holds it.
        entry: What the catalogue lists.
    """

    id: str
    archive: Path
    entry: Entry

    def load(self) -> Mesh:
        """Reads the mesh."""
        return read_mesh(_archive(self.archive), self.entry)


def find_models(
    picks: Sequence[Pick], entries: Mapping[str, Entry], sources: Sources
) -> dict[str, Model]:
    """The models of picks that have one, by pick id."""
    return {
        pick.id: Model(pick.id, sources.catalogue(pick.source), entries[pick.id])
        for pick in picks
        if pick.solid
    }


@lru_cache(maxsize=1)
def _archive(path: Path) -> zipfile.ZipFile:
    """The open archive: its directory is read once, as tasks come source by source."""
    return zipfile.ZipFile(path)


def spread(work: Callable[[T], R], tasks: Sequence[T], jobs: int) -> list[R]:
    """Results of ``work`` in the order of ``tasks``, from ``jobs`` processes (1: this one)."""
    if jobs == 1:
        return [work(task) for task in tasks]
    # Spawned, not forked: this process holds threads of other libraries.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, tasks, chunksize=4))


def outlines(models: Mapping[str, Model], jobs: int) -> dict[str, Outline]:
    """Every model's outline, by object id."""
    ids = sorted(models)
    found = spread(_outline, [models[id_] for id_ in ids], jobs)
    return dict(zip(ids, found, strict=True))


def _outline(model: Model) -> Outline:
    return outline(model.load())


def take_path(path: str, number: int) -> str:
    """Path of a take: 0 is the stored file itself, others stand below ``views``."""
    stem, dot, suffix = path.rpartition(".")
    return f"views/{stem}-{number}{dot}{suffix}" if number else path


def takes(thing: Thing, most: int) -> range:
    """Numbers of the takes that ``thing`` has: varied ones only for training."""
    return range(most if thing.split == "train" else 1)


def build_clouds(
    work: Path, things: Sequence[Thing], models: Mapping[str, Model], seed: int, jobs: int
) -> None:
    """Writes the point clouds of things that have a model, all takes."""
    _build(_write_clouds, work, things, models, seed, jobs)


def build_clips(
    work: Path, things: Sequence[Thing], models: Mapping[str, Model], seed: int, jobs: int
) -> None:
    """Writes the clips of things that have a model, all takes."""
    _build(_write_clips, work, things, models, seed, jobs)


def _build(
    write: Callable[..., None],
    work: Path,
    things: Sequence[Thing],
    models: Mapping[str, Model],
    seed: int,
    jobs: int,
) -> None:
    tasks = [(thing, models[thing.id]) for thing in things if thing.id in models]
    spread(partial(write, work, seed), sorted(tasks, key=lambda task: task[0].id), jobs)


def _write_clouds(work: Path, seed: int, task: tuple[Thing, Model]) -> None:
    thing, model = task
    if thing.points is None:
        raise _without("points", thing)
    missing = _missing(work, thing.points, takes(thing, CLOUDS))
    if not missing:
        return
    mesh = model.load()
    for number, path in missing.items():
        rng = generator(seed, "cloud", thing.id, number)
        cloud = shapes.Cloud(*surface(mesh, shapes.COUNT, rng)[:2])
        shapes.write_cloud(path, shapes.vary(cloud, rng) if number else cloud)


def _write_clips(work: Path, seed: int, task: tuple[Thing, Model]) -> None:
    thing, model = task
    if thing.clip is None:
        raise _without("clip", thing)
    missing = _missing(work, thing.clip, takes(thing, CLIPS))
    if not missing:
        return
    mesh = model.load()
    for number, path in missing.items():
        rng = generator(seed, "clip", thing.id, number)
        shot = render.draw_shot(rng, varied=number > 0)
        render.write_clip(path, render.render(mesh, shot, rng))


def _without(field: str, thing: Thing) -> ValueError:
    return ValueError(
        f"Object {thing.id}: it has a model, yet objects.jsonl names no {field} for it. That file "
        "is another release's: start with an empty folder."
    )


def _missing(work: Path, stored: str, numbers: range) -> dict[int, Path]:
    """Takes that are not there yet; makes their folders."""
    paths = {number: work / take_path(stored, number) for number in numbers}
    missing = {number: path for number, path in paths.items() if not path.exists()}
    for path in missing.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    return missing
