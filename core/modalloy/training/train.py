"""Training one parent from its configuration to its directory."""

import json
import os
import shutil
import time
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file, save_file

from modalloy.base import Base, resolve_base
from modalloy.composition.coefficients import make_coefficients
from modalloy.composition.compose import build_model, describe_modalities
from modalloy.composition.configuration import ModalloyConfig
from modalloy.composition.layers import StreamLinear, linear_layers
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.composition.selection import Chosen
from modalloy.deltas.lowrank import LowRankDelta, LowRankPair, write_adapter
from modalloy.errors import FormatError, MissingComponentError, SpecError
from modalloy.parent import (
    CONNECTOR_FILE,
    FORMAT_VERSION,
    MODALITY_ADAPTER,
    TEXT_ADAPTER,
    BaseReference,
    ParentManifest,
    write_manifest,
)
from modalloy.registry import Registry
from modalloy.training.config import StageConfig, TrainConfig
from modalloy.training.data import ChatDataset, Collator
from modalloy.training.features import FeatureCache, Progress
from modalloy.training.stages import (
    StageResult,
    choose_trained,
    init_deltas,
    run_stage,
    validation_loss,
)


@attrs.frozen
class _Run:
    """What both stages share."""

    config: TrainConfig
    model: ModalloyForConditionalGeneration
    processor: ModalloyProcessor
    data: Path
    work: Path
    resume: bool
    progress: Progress


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
        output: The parent directory to write; must not exist.
        data: Directory that the configuration's JSONL files are relative to.
        work: Where checkpoints go; ``<output>.work`` if left out. A connector stage that was
            finished there with the same settings is taken as it is.
        resume: Whether to go on from checkpoints in ``work``.
        progress: Told what is being done, how far it is, and how far it goes.
        registry: Supplies plugins; what is installed if left out.

    Returns:
        The manifest that was written.

    Raises:
        SpecError: The configuration does not fit the base.
        FormatError: A data file is missing or malformed, or ``output`` exists.
        TrainingError: A stage's loss stayed too high.
    """
    _check_accelerate()
    if output.exists():
        raise FormatError(f"{output} exists; choose another place or remove it", path=output)
    registry = registry or Registry.discover()
    base = resolve_base(config.base)
    model, processor, manifest = _open(config, base, registry)
    work = work or output.with_name(f"{output.name}.work")
    run = _Run(config, model, processor, data, work, resume, progress)
    started = time.monotonic()
    results = {"connector_stage": _connector_stage(run), "tuning_stage": _tuning_stage(run)}
    record = {
        "config": json.loads(json.dumps(attrs.asdict(config), default=str)),
        "results": {name: attrs.asdict(result) for name, result in results.items()},
        "seconds": round(time.monotonic() - started, 1),
        "data": {name: _digest(data / name) for name in _data_files(config)},
        "versions": {name: version(name) for name in ("modalloy", "torch", "transformers")},
    }
    manifest = attrs.evolve(manifest, training=record)
    if int(os.environ.get("RANK", "0")) == 0:
        manifest = _write(model, manifest, output)
    return manifest


def _open(
    config: TrainConfig, base: Base, registry: Registry
) -> tuple[ModalloyForConditionalGeneration, ModalloyProcessor, ParentManifest]:
    """Open the base as a composition of one parent, its deltas at their start."""
    manifest = ParentManifest(
        format_version=FORMAT_VERSION,
        name=config.name,
        modality=config.modality,
        base=BaseReference(id=base.id, fingerprint=base.fingerprint),
        strategy=config.strategy,
        encoder=config.encoder,
        connector=config.connector,
        prefix_tokens=config.prefix_tokens,
        suffix_tokens=config.suffix_tokens,
        licence=config.licence,
        requires=config.requires,
    )
    torch.manual_seed(config.seed)
    tokenizer = base.tokenizer()
    tokenizer.padding_side = "left"
    language_model = base.model(getattr(torch, config.dtype))
    if config.attention is not None:
        language_model.set_attn_implementation(config.attention)
    entries = describe_modalities(registry, [Chosen(Path(), manifest, config.name)], tokenizer)
    decoupled = config.strategy == "decoupled"
    entry = entries[config.modality]
    entry["text_delta"] = _targets(config, language_model)
    entry["modality_delta"] = entry["text_delta"] if decoupled else None
    model = build_model(
        ModalloyConfig(
            text_config=language_model.config,
            modalities=entries,
            method="damc" if decoupled else "naive",
            decoupled=decoupled,
            coefficients=make_coefficients({config.modality: 1.0}, entries, ()).to_dict(),
            dtype=language_model.dtype,
        ),
        language_model,
        registry,
    )
    model.connectors.float()
    init_deltas(model, config.seed)
    processor = ModalloyProcessor(
        tokenizer, modalities=entries, chat_template=tokenizer.chat_template
    )
    return model, processor.bind(registry), manifest


def _targets(config: TrainConfig, language_model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return the linear layers that get a pair, as the configuration's patterns."""
    linears = linear_layers(language_model)
    lasts = {name.rpartition(".")[2] for name in linears}
    unknown = sorted(set(config.lora.targets) - lasts)
    if unknown:
        raise SpecError(
            f"lora.targets: the base has no linear layer named {', '.join(unknown)}; it has "
            f"{', '.join(sorted(lasts))}",
            subject="lora.targets",
        )
    lora = config.lora
    return [
        {"module": name, "rank": lora.rank, "scale": lora.alpha / lora.rank}
        for name in linears
        if name.rpartition(".")[2] in lora.targets
    ]


def _connector_stage(run: _Run) -> StageResult:
    """Stage 1: the connector alone. Every token runs on the untouched base."""
    stage, config = run.config.connector_stage, run.config
    relevant = attrs.evolve(config, name="x", strategy="naive", tuning_stage=stage, validation=[])
    key = sha256(json.dumps(attrs.asdict(relevant), sort_keys=True).encode())
    for name in stage.data:
        key.update(_digest(run.data / name).encode())
    directory = run.work / f"connector-{key.hexdigest()[:16]}"
    finished, result_file = directory / "connector.safetensors", directory / "result.json"
    choose_trained(run.model, deltas=False)
    if finished.is_file() and result_file.is_file():
        run.model.connectors[config.modality].load_state_dict(load_file(finished))
        return StageResult(**json.loads(result_file.read_text(encoding="utf-8")))
    coefficients, decoupled = run.model.coefficients, run.model.config.decoupled
    run.model.coefficients = attrs.evolve(coefficients, default=(0.0,))
    run.model.config.decoupled = False
    try:
        result = _stage(run, stage, "connector stage", directory / "checkpoints")
    finally:
        run.model.coefficients, run.model.config.decoupled = coefficients, decoupled
    state = run.model.connectors[config.modality].state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, finished)
    result_file.write_text(json.dumps(attrs.asdict(result)), encoding="utf-8")
    return result


def _tuning_stage(run: _Run) -> StageResult:
    """Stage 2: connector and deltas, each token on its stream."""
    choose_trained(run.model, deltas=True)
    return _stage(run, run.config.tuning_stage, "tuning stage", run.work / run.config.name)


def _stage(run: _Run, stage: StageConfig, name: str, directory: Path) -> StageResult:
    data = ChatDataset([run.data / file for file in stage.data], run.processor)
    validation = None
    if run.config.validation:
        files = [run.data / file for file in run.config.validation]
        validation = ChatDataset(files, run.processor)
    features = None
    if run.config.cache_features:
        sources = sorted({*data.sources(), *(validation.sources() if validation else [])})
        features = FeatureCache.build(run.model, run.processor, sources, run.progress)
    collator = Collator(run.processor, features)
    result = StageResult(float("nan"), 0.0)
    if stage.steps:
        result = run_stage(
            run.model.train(),
            stage,
            data,
            collator,
            name=name,
            directory=directory,
            seed=run.config.seed,
            resume=run.resume,
            progress=run.progress,
        )
    if validation is not None:
        loss = validation_loss(run.model, validation, collator, run.progress)
        result = attrs.evolve(result, validation_loss=loss)
    return result


def _write(
    model: ModalloyForConditionalGeneration, manifest: ParentManifest, output: Path
) -> ParentManifest:
    """Write the parent directory beside its place and rename it when it is whole."""
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for folder, delta in _deltas(model, manifest.modality).items():
        write_adapter(partial / folder, delta, base_id=manifest.base.id)
    connector = model.connectors[manifest.modality].state_dict()
    save_file(
        {name: value.to(torch.bfloat16).contiguous().cpu() for name, value in connector.items()},
        partial / CONNECTOR_FILE,
    )
    manifest = write_manifest(partial, manifest)
    partial.rename(output)
    return manifest


def _deltas(model: ModalloyForConditionalGeneration, modality: str) -> dict[str, LowRankDelta]:
    """Return the trained deltas in bfloat16, by adapter directory."""
    tables: dict[str, dict[str, LowRankPair]] = {TEXT_ADAPTER: {}, MODALITY_ADAPTER: {}}
    for name, layer in model.language_model.named_modules():
        if not isinstance(layer, StreamLinear):
            continue
        if layer.text_A is not None and layer.text_B is not None:
            scale = layer.text_layout[0][2]
            tables[TEXT_ADAPTER][name] = _pair(layer.text_A, layer.text_B, scale)
        if modality in layer.modality_A:
            tables[MODALITY_ADAPTER][name] = _pair(
                layer.modality_A[modality],
                layer.modality_B[modality],
                layer.modality_scale[modality],
            )
    return {folder: LowRankDelta(pairs) for folder, pairs in tables.items() if pairs}


def _pair(a: torch.Tensor, b: torch.Tensor, scale: float) -> LowRankPair:
    def stored(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(torch.bfloat16).cpu()

    return LowRankPair(stored(a), stored(b), scale)


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
