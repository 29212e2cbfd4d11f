"""The model directory: what a composition saves beside transformers' own files, and opening it."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from modalloy.base_config import read_config
from modalloy.checkpoints.safe_index import safe_index
from modalloy.composition.configuration import ModalloyConfig
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.composition.record import FORMAT_VERSION
from modalloy.errors import FormatError, IntegrityError, MissingComponentError
from modalloy.parent import ENCODER_FILE, sha256
from modalloy.registry import Registry

# So that transformers' Auto classes, and its pipelines, open a model directory.
AutoConfig.register(ModalloyConfig.model_type, ModalloyConfig)
AutoModelForMultimodalLM.register(ModalloyConfig, ModalloyForConditionalGeneration)
AutoProcessor.register(ModalloyConfig, ModalloyProcessor)

PROVENANCE_FILE = "modalloy.json"
ENCODERS_FOLDER = "encoders"
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
"""What may name a Hub repository; anything else is a path, and is not sent anywhere."""
_PROVENANCE_KEYS = {"modalloy", "base", "method", "coefficients", "parents", "accounting"}


def write_extras(model: ModalloyForConditionalGeneration, directory: Path) -> None:
    """Write ``modalloy.json``, the model card and the encoders that have files of their own."""
    kept = {f"{name}.safetensors" for name in model.encoders.files}
    for old in sorted((directory / ENCODERS_FOLDER).glob("*.safetensors")):
        if old.name not in kept:
            old.unlink()  # of a composition that was saved here before
    for name, source in sorted(model.encoders.files.items()):
        target = directory / ENCODERS_FOLDER / f"{name}.safetensors"
        if source.resolve() != target.resolve():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    text = json.dumps(model.provenance, indent=2) + "\n"
    (directory / PROVENANCE_FILE).write_text(text, encoding="utf-8")
    (directory / "README.md").write_text(_model_card(model), encoding="utf-8")


def read_directory(
    directory: str, dtype: str | torch.dtype, registry: Registry
) -> tuple[ModalloyForConditionalGeneration, ModalloyProcessor]:
    """Open a model directory or Hub repository; see :func:`modalloy.load`."""
    path = _fetch(directory)
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
            # Left to itself, transformers would make the registry a generation setting.
            generation_config=_read_generation_config(path, config),
        )
    except SafetensorError as error:
        raise FormatError(
            f"{path}: a safetensors file of it is damaged or was cut short ({error}); fetch or "
            "save the composition again",
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
    model.provenance = read_provenance(path)
    model.encoders.files = _check_encoders(path, config, model.provenance)
    return model.eval(), _read_processor(path).bind(registry)


def _read_processor(path: Path) -> ModalloyProcessor:
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
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise FormatError(
            f"{path}: its processor or tokenizer cannot be opened without running code that comes "
            f"with it: {error}",
            path=path,
        ) from error
    return processor


def _check_encoders(
    path: Path, config: ModalloyConfig, record: Mapping[str, Any]
) -> dict[str, Path]:
    """Return the encoder files of a composition, checked against the hashes on record.

    Raises:
        IntegrityError: A file is not the one that was composed.
    """
    hashes = {
        parent.get("modality"): parent.get("files", {}).get(ENCODER_FILE)
        for parent in record["parents"]
    }
    found = {}
    for name in config.modalities:
        file = path / ENCODERS_FOLDER / f"{name}.safetensors"
        if file.is_file():
            if sha256(file) != hashes.get(name):
                raise IntegrityError(
                    f"{file} is not the encoder that {PROVENANCE_FILE} records; fetch the "
                    "composition again or compose anew",
                    path=file,
                )
            found[name] = file
    return found


def _read_generation_config(path: Path, config: ModalloyConfig) -> GenerationConfig:
    if not (path / GENERATION_CONFIG_NAME).is_file():
        return GenerationConfig.from_model_config(config)
    try:
        return GenerationConfig.from_pretrained(path)
    except (OSError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path / GENERATION_CONFIG_NAME} cannot be read: {error}", path=path
        ) from error


def read_provenance(directory: Path) -> dict[str, Any]:
    """Return the content of ``modalloy.json``.

    Raises:
        FormatError: It is missing, no JSON, or of another format version.
    """
    path = directory / PROVENANCE_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read as JSON: {error}", path=path) from error
    if not isinstance(data, dict):
        raise FormatError(f"{path} does not describe a composition: it is no mapping", path=path)
    if data.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"{path}: format_version must be {FORMAT_VERSION}, found "
            f"{data.get('format_version')!r}; upgrade modalloy or compose anew",
            path=path,
        )
    lacking = sorted(_PROVENANCE_KEYS - data.keys())
    if lacking:
        raise FormatError(
            f"{path} does not describe a composition: it lacks {', '.join(lacking)}", path=path
        )
    return data


def _fetch(directory: str) -> Path:
    path = Path(directory)
    if not path.is_dir():
        if not _HUB_ID.fullmatch(directory):
            raise MissingComponentError(
                f"{directory!r} is no directory; make a composition with `modalloy compose`",
                component=directory,
            )
        try:
            path = Path(
                snapshot_download(directory, allow_patterns=["*.json", "*.safetensors", "*.jinja"])
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise MissingComponentError(
                f"{directory!r} is neither a directory nor a Hub repository that can be fetched "
                f"({error})",
                component=directory,
            ) from error
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
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
            raise MissingComponentError(
                f"modality {name!r} needs the connector {kind!r}, which no installed plugin "
                f'supplies; pip install "{entry.get("requires") or name}"',
                component=kind,
            )


def _model_card(model: ModalloyForConditionalGeneration) -> str:
    record = model.provenance
    parents = record.get("parents", [])
    base = record.get("base", {}).get("id", "unknown")
    rows = "\n".join(
        f"| {p['modality']} | {p['name']} | {p['strategy']} | {p['licence']} "
        f"| {p['plugin']['distribution']} {p['plugin']['version']} |"
        for p in parents
    )
    return f"""---
library_name: transformers
pipeline_tag: any-to-any
base_model_relation: merge
tags: [merge, modalloy]
---
# {base} with {", ".join(p["modality"] for p in parents)}

Composed by modalloy {record.get("modalloy", "")} with method `{model.config.method}` from
`{base}` and the parents below; none of them was trained together with another.

| modality | parent | strategy | licence | plugin |
|---|---|---|---|---|
{rows}

```python
import modalloy

model, processor = modalloy.load("this directory")
```

`{PROVENANCE_FILE}` holds fingerprints, hashes, coefficients and what became of every tensor.
"""
