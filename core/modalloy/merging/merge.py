"""Merging whole models by a recipe, streamed: :func:`modalloy.merge`."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

import modalloy
from modalloy.checkpoints.mapped import MappedTensor
from modalloy.checkpoints.new_directory import check_free
from modalloy.checkpoints.writer import Shard, ShardWriter, plan_shards, write_index
from modalloy.errors import DeltaError, FormatError, SpecError
from modalloy.merging.journal import NAME as JOURNAL
from modalloy.merging.journal import Journal
from modalloy.merging.output import check_copied, make_record, write_files
from modalloy.merging.plan import Piece, Plan, TensorPlan, make_plan
from modalloy.merging.recipe import (
    Recipe,
    check_base_is_listed,
    check_method,
    parse_recipe,
    read_recipe,
)
from modalloy.merging.rulebook import Rulebook
from modalloy.merging.rules import Rule, Whole
from modalloy.merging.schedule import Job, run_jobs
from modalloy.merging.settings import check_settings
from modalloy.merging.sources import Sources, open_sources
from modalloy.merging.streaming import Target, copy, stream
from modalloy.parent import sha256
from modalloy.registry import Registry

SHARD_SIZE = 5 * 10**9
"""Bytes of a shard, unless asked for otherwise."""

CPU = "cpu"

Progress = Callable[[str, int, int], None]


@attrs.frozen(kw_only=True)
class MergeResult:
    """What a merge did.

    Attributes:
        directory: Where the merged model is.
        record: Content of its ``modalloy.json``.
        seconds: How long it took.
        resumed: Tensors that an earlier run had written.
    """

    directory: Path
    record: Mapping[str, Any]
    seconds: float
    resumed: int


def merge(  # noqa: PLR0913 - keyword-only options
    recipe: Recipe | Mapping[str, Any] | Path | str,
    out: Path | str,
    *,
    device: str = CPU,
    workers: int | None = None,
    resume: bool = False,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    registry: Registry | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> MergeResult:
    """Merge whole models, adapters and parents into one model directory.

    Args:
        recipe: A :class:`~modalloy.merging.recipe.Recipe`, plain data, or a YAML file of one.
        out: Directory to write; must not exist, or be empty. It appears when it is whole.
        device: ``"cpu"``, or a torch device that takes tensors whole, such as ``"cuda"``.
        workers: Threads; as many as there are cores by default.
        resume: Go on with a merge into ``out`` that was stopped.
        seed: Of random methods.
        shard_size: Bytes of tensors in a file of the output at most.
        registry: Offers methods and installed parents; what is installed by default.
        progress: Called with ``("merging", bytes done, bytes in all)``.
        say: Called with a line of text before something slow.

    Raises:
        ModalloyError: The recipe, a model or the output's place is not as it should be; see the
            message. ``out`` does not exist then, and inputs are never touched.
    """
    begin = time.perf_counter()
    out = Path(out)
    check_free(out)
    if shard_size <= 0 or (workers is not None and workers <= 0):
        raise SpecError("shard_size and workers must be positive")
    if device != CPU:
        check_device(device)
    if isinstance(recipe, str | Path):
        recipe = read_recipe(Path(recipe))
    elif not isinstance(recipe, Recipe):
        recipe = parse_recipe(recipe)
    registry = registry or Registry.discover()
    method = registry.tensor_method(recipe.merge_method)
    check_settings(method, recipe.parameters, "recipe")
    for model in recipe.models:
        check_settings(method, model.parameters, f"model {model.model!r}")
    with_base = method.over == "models"
    counted = [m for m in recipe.models if with_base or not recipe.is_base(m)]
    if with_base:
        check_base_is_listed(recipe, method)
    check_method(recipe, method.over, method.most, len(counted))
    sources = open_sources(recipe, with_base=with_base, registry=registry, progress=say)
    check_copied(sources.donor)
    plan = make_plan(sources, recipe.written, whole=with_base)
    rules = Rulebook(recipe, method, sources, plan, seed)
    rules.check()
    record = make_record(recipe, sources, list(plan.accounting), seed if method.random else None)
    layouts = [tensor.layout for tensor in plan.tensors]
    shards = plan_shards(layouts, shard_size)
    resumed = 0
    place = out.parent / f".{out.name}.partial"
    try:
        _check_room(place, shards)
        with Journal(place, _identity(record, sources, shards), resume=resume) as journal:
            journal.forget(_lost(place, shards))
            resumed = len(journal.done)
            work = _Work(rules, plan, journal, progress, device)
            with ShardWriter(place, shards) as writer:
                run_jobs(work.jobs(writer), workers or os.cpu_count() or 1)
            write_index(place, shards, layouts)
            write_files(place, sources, recipe, record)
            # Renamed with its journal: without one, what is there could be taken for nothing.
            if out.is_dir():
                out.rmdir()
            place.rename(out)
            (out / JOURNAL).unlink()
    except OSError as error:
        raise FormatError(f"{out} cannot be written: {error}", path=out) from error
    return MergeResult(
        directory=out, record=record, seconds=time.perf_counter() - begin, resumed=resumed
    )


def check_device(device: str) -> None:
    """Check that there is such a device.

    Raises:
        SpecError: There is not.
    """
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(
            f"device {device!r} cannot be used: {reason}; {CPU!r} can always be", subject=device
        ) from error


class _Work:
    """The jobs of a merge, one per tensor."""

    def __init__(
        self,
        rules: Rulebook,
        plan: Plan,
        journal: Journal,
        progress: Progress | None,
        device: str,
    ) -> None:
        self._rules = rules
        self._plan = plan
        self._journal = journal
        self._progress = progress or (lambda *_: None)
        self._device = device
        self._total = sum(tensor.layout.size for tensor in plan.tensors)
        self._done = 0

    def jobs(self, writer: ShardWriter) -> Iterator[Job]:
        """Yield the jobs of the tensors that are not written yet."""
        for tensor in self._plan.tensors:
            if tensor.layout.name in self._journal.done:
                self._done += tensor.layout.size
            else:
                yield self._job(tensor, writer)

    def _job(self, tensor: TensorPlan, writer: ShardWriter) -> Job:
        target = Target(tensor.layout.name, tensor.layout.dtype, writer)
        if not tensor.pieces:
            yield copy(tensor.donor, tensor.layout.size, target)
        for piece in tensor.pieces:
            rule = self._rules.rule(target.name, piece)
            keys = self._rules.keys(target.name, piece)
            if not piece.models:
                piece = attrs.evolve(piece, operands=(tensor.donor,))  # noqa: PLW2901
            if isinstance(rule, Whole) or self._device != CPU:
                call = partial(_whole, rule, tensor.donor, piece, keys, target, self._device)
                yield [call]
            else:
                yield from stream(rule, tensor.donor, piece, keys, target)
        self._journal.add(target.name)
        self._done += tensor.layout.size
        self._progress("merging", self._done, self._total)


def _whole(
    rule: Rule,
    donor: MappedTensor,
    piece: Piece,
    keys: Sequence[int],
    target: Target,
    device: str,
) -> None:
    # Brings in torch, which streaming does without.
    import torch

    from modalloy.checkpoints.writer import ITEM_SIZES
    from modalloy.merging.whole import merge_piece

    try:
        data = merge_piece(rule, donor, piece, keys, target.dtype, torch.device(device))
    except torch.OutOfMemoryError as error:
        raise DeltaError(
            f"{target.name} does not fit {device} whole ({error}); merge with device {CPU!r}, "
            "which takes tensors in chunks, and --resume",
            tensor=target.name,
        ) from error
    target.writer.write(target.name, piece.first * ITEM_SIZES[target.dtype], data.data)


def _identity(record: Mapping[str, Any], sources: Sources, shards: Sequence[Shard]) -> str:
    """Return a digest of all that the output's bytes depend on."""
    inputs = []
    for source in (sources.donor, *sources.models):
        inputs += [
            [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
            for file in source.files()
        ]
        inputs += [[source.label, sha256(file)] for file in source.adapter_files()]
    layout = [[shard.name, hashlib.sha256(shard.header).hexdigest()] for shard in shards]
    text = json.dumps([modalloy.__version__, record, inputs, layout], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _lost(place: Path, shards: Sequence[Shard]) -> list[str]:
    """Return the tensors of files that are not as long as they were made."""
    lost = []
    for shard in shards:
        file = place / shard.name
        if not file.is_file() or file.stat().st_size != shard.size:
            lost += list(shard.offsets)
    return lost


def _check_room(place: Path, shards: Sequence[Shard]) -> None:
    """Check, before anything is written, that the output fits its disk.

    Raises:
        FormatError: It does not.
    """
    there = place
    while not there.exists():
        there = there.parent
    files = [place / shard.name for shard in shards]
    written = sum(file.stat().st_blocks * 512 for file in files if file.is_file())
    needed = sum(shard.size for shard in shards) - written
    free = shutil.disk_usage(there).free
    if needed > free:
        raise FormatError(
            f"{place.parent} has {free / 1e9:.1f} GB free, the merged model needs "
            f"{needed / 1e9:.1f} GB more; make room first",
            path=place,
        )
