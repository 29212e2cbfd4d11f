"""Trains one model on the data of all modalities together: what composition has to do without.

Run ``python -m recipes.household.joint --data DIR --work WORK --out OUT``. One low-rank delta acts
on every token; the connectors start as the installed naive parents' own, and there are as many
steps as in the parents' second stages in sum. So it sees no less than they did. The result is a
model directory, to compare compositions of the same parents with.
"""

import argparse
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file

import modalloy
from modalloy.base import Base, resolve_base
from modalloy.cli.compose import save
from modalloy.cli.progress import progress_bar
from modalloy.composition.coefficients import make_coefficients
from modalloy.composition.compose import build_model, describe_modalities
from modalloy.composition.configuration import ModalloyConfig
from modalloy.composition.features import FeatureCache
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.composition.selection import Chosen
from modalloy.modality import MERGED
from modalloy.parent import CONNECTOR_FILE
from modalloy.registry import Registry
from modalloy.training.config import StageConfig, TrainConfig, read_config
from modalloy.training.data import ChatDataset, Collator
from modalloy.training.opening import lora_targets, start_manifest
from modalloy.training.parameters import choose_trained, init_deltas
from modalloy.training.records import whole_checkpoints
from modalloy.training.stages import run_stage

MODALITIES = ("audio", "pointcloud", "video", "vision")
CONFIGS = Path(__file__).with_name("train")
METHOD = "joint"


def open_joint(
    configs: dict[str, TrainConfig], base: Base, registry: Registry
) -> tuple[ModalloyForConditionalGeneration, ModalloyProcessor]:
    """Open the base with every modality's connector and one untrained delta for all tokens.

    Args:
        configs: The naive parents' configurations by modality, sorted.
        base: The base.
        registry: Supplies plugins.
    """
    first = next(iter(configs.values()))
    torch.manual_seed(first.seed)
    tokenizer, language_model = base.tokenizer(), base.model(getattr(torch, first.dtype))
    if first.attention is not None:
        language_model.set_attn_implementation(first.attention)
    chosen = [Chosen(Path(), start_manifest(c, base), c.name) for c in configs.values()]
    entries = describe_modalities(registry, chosen, tokenizer)
    model = build_model(
        ModalloyConfig(
            text_config=language_model.config,
            modalities=entries,
            method=METHOD,
            decoupled=False,
            merged_delta=lora_targets(first, language_model),
            coefficients=make_coefficients({MERGED: 1.0}, [MERGED], ()).to_dict(),
            base={"id": base.id, "fingerprint": attrs.asdict(base.fingerprint)},
            dtype=language_model.dtype,
        ),
        language_model,
        registry,
    )
    model.connectors.float()
    init_deltas(model, first.seed)
    processor = ModalloyProcessor(
        tokenizer, modalities=entries, chat_template=tokenizer.chat_template
    )
    return model, processor.bind(registry)


def find_connectors(registry: Registry) -> dict[str, Path]:
    """Finds the connectors of the installed naive parents, by modality."""
    return {
        name: registry.parent(f"{name}-smollm2-naive").directory() / CONNECTOR_FILE
        for name in MODALITIES
    }


def join_stages(configs: dict[str, TrainConfig]) -> StageConfig:
    """Return one stage over all data with all steps."""
    stages = [config.tuning_stage for config in configs.values()]
    return attrs.evolve(
        stages[0],
        data=[file for stage in stages for file in stage.data],
        steps=sum(stage.steps for stage in stages),
    )


def train_joint(data: Path, work: Path, out: Path) -> None:
    """Trains the joint model and writes its directory; takes up where it stopped."""
    configs = {name: read_config(CONFIGS / f"{name}-naive.yml") for name in MODALITIES}
    registry = Registry.discover()
    base = resolve_base(next(iter(configs.values())).base)
    model, processor = open_joint(configs, base, registry)
    for name, file in find_connectors(registry).items():
        model.connectors[name].load_state_dict(load_file(file))
    stage = join_stages(configs)
    chats = ChatDataset([data / name for name in stage.data], processor)
    choose_trained(model, deltas=True)
    place = work / METHOD
    place.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        features = FeatureCache.build(model, processor, chats.sources(), progress)
        result = run_stage(
            model.train(),
            stage,
            chats,
            Collator(processor, features),
            name="joint stage",
            directory=place,
            seed=next(iter(configs.values())).seed,
            checkpoint=next(iter(whole_checkpoints(place)[::-1]), None),
            progress=progress,
        )
    torch.nn.Module.to(model, dtype=torch.bfloat16)
    model.provenance = _record(model, configs, base, stage, result)
    save(model.eval(), processor, out)


def _record(
    model: ModalloyForConditionalGeneration,
    configs: dict[str, TrainConfig],
    base: Base,
    stage: StageConfig,
    result: Any,
) -> dict[str, Any]:
    """Return what ``modalloy.json`` holds; there are no parents, so none are listed."""
    return {
        "format_version": 1,
        "modalloy": modalloy.__version__,
        "base": {"id": base.id, "fingerprint": attrs.asdict(base.fingerprint)},
        "method": METHOD,
        "coefficients": model.config.coefficients,
        "parents": [],
        "accounting": [],
        "training": {
            "stage": attrs.asdict(stage),
            "result": attrs.asdict(result),
            "modalities": sorted(configs),
        },
    }


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that build.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    train_joint(arguments.data, arguments.work, arguments.out)


if __name__ == "__main__":
    main()
