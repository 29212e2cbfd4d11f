"""Training one parent from its configuration to its directory."""

import os
import shutil
import time
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import attrs
from safetensors.torch import load_file, save_file

from modalloy.base import resolve_base
from modalloy.checkpoints.new_directory import check_free, new_file
from modalloy.composition.features import FeatureCache, Progress
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.errors import FormatError, MissingComponentError
from modalloy.parent import ParentManifest
from modalloy.registry import Registry
from modalloy.structured import structure
from modalloy.training.config import StageConfig, TrainConfig
from modalloy.training.data import ChatDataset, Collator
from modalloy.training.opening import open_parent
from modalloy.training.parameters import choose_trained
from modalloy.training.records import (
    Recipe,
    begin,
    connector_recipe,
    digest_chats,
    is_main_process,
    read_json,
    recipe_key,
    tuning_recipe,
    write_json,
)
from modalloy.training.stages import StageResult, check_gate, run_stage, validation_loss
from modalloy.training.writing import write_parent

CONNECTOR_STAGE, TUNING_STAGE = "connector stage", "tuning stage"
_FINISHED = "connector.safetensors"
_RESULT = "result.json"


@attrs.frozen
class _Chats:
    """Chats laid out, and digests of their files and media."""

    data: ChatDataset
    digests: dict[str, str]


@attrs.frozen
class _Run:
    """What both stages share; a stage that is left out has no chats."""

    config: TrainConfig
    model: ModalloyForConditionalGeneration
    processor: ModalloyProcessor
    progress: Progress
    connector: _Chats | None
    tuning: _Chats | None
    validation: _Chats | None


@attrs.frozen
class _Place:
    """Where a stage keeps its files, and the checkpoint that it goes on from."""

    directory: Path
    checkpoint: Path | None


def train(
    config: TrainConfig,
    output: Path,
    *,
    data: Path,
    work: Path | None = None,
    resume: bool = False,
    progress: Progress = lambda *_: None,
    registry: Registry | None = None,
) -> ParentManifest:
    """Train a parent and write its directory.

    Args:
        config: What to train.
        output: The parent directory to write; must not exist, or be empty.
        data: Directory that the configuration's JSONL files are relative to.
        work: Where checkpoints go; ``<output>.work`` if left out. A connector stage that was
            finished there from the same settings, data and base is taken as it is.
        resume: Whether to go on from checkpoints in ``work``, where there are any.
        progress: Told what is being done, how far it is, and how far it goes.
        registry: Supplies plugins; what is installed if left out.

    Returns:
        The manifest that was written.

    Raises:
        SpecError: The configuration does not fit the base or the installed plugins.
        FormatError: A data file is missing or malformed, or ``output`` exists or
            cannot be written.
        ModalloyError: ``work`` holds checkpoints, and ``resume`` is false or they were made from
            something else.
        TrainingError: A stage diverged, learnt nothing, or its loss stayed too high.
    """
    _check_accelerate()
    work = work or output.with_name(f"{output.name}.work")
    _prepare(output, work)
    registry = registry or Registry.discover()
    base = resolve_base(config.base)
    model, processor, manifest = open_parent(config, base, registry)

    def read(files: Sequence[str]) -> _Chats | None:
        return _read_chats([data / name for name in files], processor)

    def chats_of(stage: StageConfig) -> _Chats | None:
        return read(stage.data) if stage.steps else None

    run = _Run(
        config,
        model,
        processor,
        progress,
        connector=chats_of(config.connector_stage),
        tuning=chats_of(config.tuning_stage),
        validation=read(config.validation),
    )
    _check_chats(run)
    recipe = connector_recipe(config, base.fingerprint, _digests(run.connector))
    connector = _place(
        work / f"connector-{recipe_key(recipe)}", recipe, config.connector_stage, resume=resume
    )
    recipe = tuning_recipe(config, recipe, _digests(run.tuning))
    tuning = _place(work / config.name, recipe, config.tuning_stage, resume=resume)
    started = time.monotonic()
    results = {
        "connector_stage": _connector_stage(run, connector),
        "tuning_stage": _tuning_stage(run, tuning),
    }
    record = {
        "config": attrs.asdict(config),
        "results": {name: attrs.asdict(result) for name, result in results.items()},
        "seconds": round(time.monotonic() - started, 1),
        "data": {name: _digest(data / name) for name in _data_files(config)},
        "versions": {name: version(name) for name in ("modalloy", "torch", "transformers")},
    }
    manifest = attrs.evolve(manifest, training=record)
    if is_main_process():
        manifest = write_parent(model, manifest, output)
        if tuning.directory.is_dir():
            shutil.rmtree(tuning.directory)
    return manifest


def _prepare(output: Path, work: Path) -> None:
    """Find out before training whether its result can be written; nothing is made yet."""
    check_free(output)
    for folder in (output.parent, work):
        try:
            there = next(p for p in (folder, *folder.parents) if p.is_symlink() or p.exists())
        except OSError as error:
            raise FormatError(f"{folder} cannot be made: {error}", path=folder) from error
        if not there.is_dir():
            raise FormatError(f"{folder} cannot be made: {there} is no directory", path=folder)
        if not os.access(there, os.W_OK):
            raise FormatError(f"{there} cannot be written to; choose another place", path=folder)


def _read_chats(files: Sequence[Path], processor: ModalloyProcessor) -> _Chats | None:
    if not files:
        return None
    data = ChatDataset(files, processor)
    return _Chats(data, digest_chats(files, data))


def _check_chats(run: _Run) -> None:
    """Check what the model needs of the chats, before hours are spent on them."""
    longest = run.model.config.get_text_config().max_position_embeddings
    for chats in (run.connector, run.tuning, run.validation):
        for example in chats.data.examples if chats else ():
            if len(example.input_ids) > longest:
                raise FormatError(
                    f"{example.where}: the chat has {len(example.input_ids)} tokens, the base "
                    f"takes {longest}; shorten it",
                    path=example.file,
                )
    for example in run.connector.data.examples if run.connector else ():
        if not example.inputs:
            raise FormatError(
                f"{example.where}: the chat holds no {run.config.modality} input, so the connector "
                "stage, which trains the connector alone, learns nothing from it; leave it to the "
                "tuning stage",
                path=example.file,
            )


def _digests(chats: _Chats | None) -> dict[str, str]:
    return chats.digests if chats else {}


def _place(directory: Path, recipe: Recipe, stage: StageConfig, *, resume: bool) -> _Place:
    """Find where a stage goes on: its result, its last checkpoint, or its start."""
    if not stage.steps or (directory / _RESULT).is_file():
        return _Place(directory, None)
    return _Place(directory, begin(directory, recipe, resume=resume))


def _connector_stage(run: _Run, place: _Place) -> StageResult:
    """Stage 1: the connector alone. Every token runs on the untouched base."""
    model, stage = run.model, run.config.connector_stage
    choose_trained(model, deltas=False)
    coefficients, decoupled = model.coefficients, model.config.decoupled
    model.coefficients = attrs.evolve(coefficients, default=(0.0,))
    model.config.decoupled = False
    try:
        if (place.directory / _RESULT).is_file():
            return _take_finished(run, place.directory)
        result = _stage(run, stage, run.connector, CONNECTOR_STAGE, place)
    finally:
        model.coefficients, model.config.decoupled = coefficients, decoupled
    if stage.steps and is_main_process():
        _keep_finished(run, place.directory, result)
    return result


def _keep_finished(run: _Run, directory: Path, result: StageResult) -> None:
    """Keep the connector for further runs; the result's file is written last."""
    state = run.model.connectors[run.config.modality].state_dict()
    with new_file(directory / _FINISHED) as partial:
        save_file({name: value.contiguous() for name, value in state.items()}, partial)
    kept = {"result": attrs.asdict(result), "validation": _digests(run.validation)}
    write_json(directory / _RESULT, kept)
    for checkpoint in directory.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _take_finished(run: _Run, directory: Path) -> StageResult:
    run.model.connectors[run.config.modality].load_state_dict(load_file(directory / _FINISHED))
    kept = read_json(directory / _RESULT)
    result = structure(kept["result"], StageResult, directory / _RESULT)
    check_gate(CONNECTOR_STAGE, result.loss, run.config.connector_stage)
    if kept["validation"] == _digests(run.validation):
        return result
    return attrs.evolve(result, validation_loss=_validate(run, None))


def _tuning_stage(run: _Run, place: _Place) -> StageResult:
    """Stage 2: connector and deltas, each token on its stream."""
    choose_trained(run.model, deltas=True)
    return _stage(run, run.config.tuning_stage, run.tuning, TUNING_STAGE, place)


def _stage(
    run: _Run, stage: StageConfig, chats: _Chats | None, name: str, place: _Place
) -> StageResult:
    features = _encode(run, chats)
    result = StageResult(None, 0.0)
    if chats is not None:
        result = run_stage(
            run.model.train(),
            stage,
            chats.data,
            Collator(run.processor, features),
            name=name,
            directory=place.directory,
            seed=run.config.seed,
            checkpoint=place.checkpoint,
            progress=run.progress,
        )
    return attrs.evolve(result, validation_loss=_validate(run, features))


def _encode(run: _Run, chats: _Chats | None) -> FeatureCache | None:
    """Encode the inputs of a stage and of the validation, where features are kept."""
    if not run.config.cache_features:
        return None
    used = [one.data.sources() for one in (chats, run.validation) if one is not None]
    sources = sorted({source for some in used for source in some})
    return FeatureCache.build(run.model, run.processor, sources, run.progress)


def _validate(run: _Run, features: FeatureCache | None) -> float | None:
    if run.validation is None:
        return None
    if features is None:
        features = _encode(run, None)
    collator = Collator(run.processor, features)
    return validation_loss(run.model, run.validation.data, collator, run.progress)


def _data_files(config: TrainConfig) -> list[str]:
    return sorted({*config.connector_stage.data, *config.tuning_stage.data, *config.validation})


def _digest(file: Path) -> str:
    try:
        return sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise FormatError(f"{file} cannot be read: {error}", path=file) from error


def _check_accelerate() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingComponentError(
            "training needs accelerate; pip install 'modalloy[train]'", component="accelerate"
        ) from error
