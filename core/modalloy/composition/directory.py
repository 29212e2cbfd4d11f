"""The model directory: what a composition saves beside transformers' own files, and opening it."""

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
)
from transformers.utils import GENERATION_CONFIG_NAME

from modalloy.base import check_revision
from modalloy.base_config import CONFIG_FILE, configuration_errors, read_config, sanitise
from modalloy.checkpoints.safe_files import check_file, read_object
from modalloy.checkpoints.safe_index import safe_index
from modalloy.composition.configuration import ModalloyConfig
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.composition.recorded import read_provenance
from modalloy.errors import FormatError, MissingComponentError, ModalloyError
from modalloy.registry import Registry

__all__ = ["read_directory", "read_provenance"]

# Where transformers was imported before modalloy, see modalloy.auto.
AutoConfig.register(ModalloyConfig.model_type, ModalloyConfig, exist_ok=True)
for _opens in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    _opens.register(ModalloyConfig, ModalloyForConditionalGeneration, exist_ok=True)
AutoProcessor.register(ModalloyConfig, ModalloyProcessor, exist_ok=True)

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
"""What may name a Hub repository; anything else is a path, and is not sent anywhere."""


def read_directory(
    directory: str, dtype: str | torch.dtype, registry: Registry, revision: str | None = None
) -> tuple[ModalloyForConditionalGeneration, ModalloyProcessor]:
    """Open a model directory or Hub repository; see :func:`modalloy.load`."""
    path = _fetch(directory, revision)
    safe_index(path)
    config = ModalloyConfig.from_dict(read_config(path))
    _check_installed(config, registry)
    kind: Any = ModalloyForConditionalGeneration
    try:
        model, report = kind.from_pretrained(
            path,
            config=config,
            registry=registry,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            # Read here, so that a damaged file is told as one.
            generation_config=_read_generation_config(path, config),
        )
    except SafetensorError as error:
        raise FormatError(
            f"{path}: a safetensors file of it is damaged or was cut short ({error}); fetch or "
            "save the composition again",
            path=path,
        ) from error
    except ModalloyError:
        raise
    except configuration_errors() as error:
        raise FormatError(
            f"{path}: no model can be made as its config.json says: {error!r}; fetch or save the "
            "composition again",
            path=path,
        ) from error
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        listing = "; ".join(f"{kind}: {', '.join(names[:5])}" for kind, names in wrong.items())
        raise FormatError(
            f"{path}: its tensors are not those that its config.json describes ({listing}); "
            "save the composition again",
            path=path,
        )
    return model.eval(), _read_processor(path, config).bind(registry)


def _read_processor(path: Path, config: ModalloyConfig) -> ModalloyProcessor:
    """Open the processor, running no code that comes with the directory."""
    for name in ("processor_config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise FormatError(
                f"{path} has no {name}; fetch the composition again or compose anew",
                path=path / name,
            )
    kind: Any = ModalloyProcessor
    try:
        processor: ModalloyProcessor = kind.from_pretrained(path, trust_remote_code=False)
    except ModalloyError:
        raise
    except Exception as error:  # that is what tokenizers raises, and no narrower kind
        raise FormatError(
            f"{path}: its processor or tokenizer cannot be opened without running code that comes "
            f"with it: {error}",
            path=path,
        ) from error
    if sanitise(processor.modalities) != config.modalities:
        raise FormatError(
            f"{path / 'processor_config.json'}: its modalities are not those of {CONFIG_FILE}, so "
            "prompts would be laid out for another model; fetch or save the composition again",
            path=path / "processor_config.json",
        )
    return processor


def _read_generation_config(path: Path, config: ModalloyConfig) -> GenerationConfig:
    if not (path / GENERATION_CONFIG_NAME).is_file():
        return GenerationConfig.from_model_config(config)
    try:
        return GenerationConfig.from_pretrained(path)
    except (OSError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path / GENERATION_CONFIG_NAME} cannot be read: {error}", path=path
        ) from error


def _fetch(directory: str, revision: str | None) -> Path:
    path = Path(directory)
    check_revision(revision, directory, fetched=not path.is_dir())
    if not path.is_dir():
        if not _HUB_ID.fullmatch(directory):
            raise MissingComponentError(
                f"{directory!r} is no directory; make a composition with `modalloy compose`",
                component=directory,
            )
        try:
            patterns = ["*.json", "*.safetensors", "*.jinja"]
            path = Path(snapshot_download(directory, revision=revision, allow_patterns=patterns))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            at = "" if revision is None else f" at revision {revision!r}"
            raise MissingComponentError(
                f"{directory!r} is neither a directory nor a Hub repository that can be fetched"
                f"{at} ({error})",
                component=directory,
            ) from error
    check_file(path, CONFIG_FILE)
    try:
        kind = read_object(path / CONFIG_FILE).get("model_type")
    except (OSError, FormatError) as error:
        raise FormatError(
            f"{path} is not a model directory: its config.json cannot be read ({error})", path=path
        ) from error
    if kind != ModalloyConfig.model_type:
        raise FormatError(
            f"{path} holds a {kind!r} model, not a composition; make one with `modalloy compose`",
            path=path,
        )
    return path


def _check_installed(config: ModalloyConfig, registry: Registry) -> None:
    """Check that the modalities' connectors are at hand; encoders may be missing until used."""
    for name, entry in (config.modalities or {}).items():
        kind = entry["connector"]["type"]
        if kind not in registry.connectors:
            requires = entry["requires"]
            advice = f'pip install "{requires}"' if requires else "install the plugin that has it"
            raise MissingComponentError(
                f"modality {name!r} needs the connector {kind!r}, which no installed plugin "
                f"supplies; {advice}",
                component=kind,
            )
