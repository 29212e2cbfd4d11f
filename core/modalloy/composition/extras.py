"""What stands beside transformers' own files in a model directory: record, card and encoders."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils.hub import cached_file

from modalloy.cards import cell, code, front
from modalloy.checkpoints.new_directory import new_file, write_whole
from modalloy.checkpoints.safe_files import check_files
from modalloy.checkpoints.safe_index import check_inside, safe_index
from modalloy.composition.compatibility import check_plugins
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.recorded import PROVENANCE_FILE, read_provenance, structured
from modalloy.errors import FormatError, IntegrityError
from modalloy.modality import is_name
from modalloy.parent import ENCODER_FILE, sha256

CARD_FILE = "README.md"
ENCODERS_FOLDER = "encoders"
EXTRAS = frozenset({PROVENANCE_FILE, CARD_FILE, ENCODERS_FOLDER})
"""Names of these in the directory."""

_HUB_SETTINGS = frozenset(
    {"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"}
)


def write_extras(
    model: ModalloyForConditionalGeneration, directory: Path, tags: Iterable[str] = ()
) -> None:
    """Write ``modalloy.json``, the model card and the encoders that have files of their own.

    Args:
        model: The composition.
        directory: Where it was saved.
        tags: Of the model card, beside its own.

    Raises:
        FormatError: An encoder's file is not there any more, or its modality's name is no name.
    """
    for name in model.encoders.files:
        if not is_name(name):  # it becomes the name of a file
            raise FormatError(
                f"the encoder of {name!r} cannot be saved under that name; names are lower-case "
                "words joined by '-', '_' or '.'",
                path=name,
            )
    kept = {f"{name}.safetensors" for name in model.encoders.files}
    for old in sorted((directory / ENCODERS_FOLDER).glob("*.safetensors")):
        if old.name not in kept:
            old.unlink()  # of a composition that was saved here before
    for name, source in sorted(model.encoders.files.items()):
        target = directory / ENCODERS_FOLDER / f"{name}.safetensors"
        if source.resolve() != target.resolve():
            if not source.is_file():
                raise FormatError(
                    f"the encoder of {name!r} cannot be saved: {source} is not there; fetch the "
                    "composition again or compose anew",
                    path=source,
                )
            target.parent.mkdir(exist_ok=True)
            with new_file(target) as partial:
                shutil.copyfile(source, partial)
    text = json.dumps(model.provenance, indent=2) + "\n"
    write_whole(directory / PROVENANCE_FILE, text)
    write_whole(directory / CARD_FILE, model_card(model, tags))


def read_extras(
    model: ModalloyForConditionalGeneration, source: str, settings: Mapping[str, Any]
) -> None:
    """Read what :func:`write_extras` wrote; encoders are found now and opened when needed.

    Args:
        model: The opened model.
        source: A model directory or Hub id.
        settings: What ``from_pretrained`` was given; says how the Hub is asked.

    Raises:
        FormatError: There is no record, or it is malformed.
        IntegrityError: An encoder is not the one that was composed.
        PluginError: A plugin is installed in an incompatible version.
    """
    record = _find(source, PROVENANCE_FILE, settings)
    if record is None:
        raise FormatError(
            f"{source} has no {PROVENANCE_FILE}, so it is not known which encoders it was composed "
            "with; fetch the composition again or compose anew",
            path=source,
        )
    model.provenance = read_provenance(record.parent)
    registry = model.encoders.registry
    check_plugins(Path(source), model.provenance, model.config.modalities, registry)
    parents = structured(model.provenance, record).parents
    hashes = {parent.modality: parent.files.get(ENCODER_FILE) for parent in parents}
    model.encoders.files = {}
    for modality in model.config.modalities:
        name = f"{ENCODERS_FOLDER}/{modality}.safetensors"
        file = check_inside(record.parent, name, record)
        if hashes.get(modality) or file.is_file():
            file = _find(source, name, settings) or file
            model.encoders.files[modality] = _check_encoder(file, hashes.get(modality))


def _find(source: str, name: str, settings: Mapping[str, Any]) -> Path | None:
    """Return a file of a model directory or Hub repository, or ``None`` where it has none."""
    wanted = {key: value for key, value in settings.items() if key in _HUB_SETTINGS}
    found = cached_file(
        source,
        name,
        **wanted,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _check_encoder(file: Path, digest: str | None) -> Path:
    """Return an encoder's file; one that is not there is missed when the encoder is needed.

    Raises:
        IntegrityError: It is not the one that was composed.
    """
    if file.is_file() and sha256(file) != digest:
        raise IntegrityError(
            f"{file} is not the encoder that {PROVENANCE_FILE} records; fetch the composition "
            "again or compose anew",
            path=file,
        )
    return file


def check_weights(source: str, settings: Mapping[str, Any]) -> None:
    """Check a directory's files and the index of its weights before transformers reads them.

    Args:
        source: A model directory; a Hub id is left to the Hub's own checks.
        settings: What ``from_pretrained`` was given.

    Raises:
        FormatError: There are no safetensors, index and files disagree, or other weights would
            be read than are checked.
        UnsafePathError: The index, a file, or a name in one leads outside the directory.
    """
    directory = Path(source) / (settings.get("subfolder") or "")
    if directory.is_dir():
        check_files(directory)
        safe_index(directory)


def card_tags(directory: Path) -> list[str]:
    """Return the tags of a directory's model card."""
    return list(ModelCard.load(directory / CARD_FILE).data.tags or [])


def model_card(model: ModalloyForConditionalGeneration, tags: Iterable[str] = ()) -> str:
    """Return the model card of a composition.

    Args:
        model: The composition.
        tags: Beside its own.
    """
    own = ["merge", "modalloy"]
    shown = [*own, *(tag for tag in dict.fromkeys(tags) if tag not in own)]
    record = model.provenance
    parents = record.get("parents", [])
    base = record.get("base", {}).get("id", "unknown")
    rows = "\n".join(
        f"| {cell(p['modality'])} | {cell(p['name'])} | {cell(p['strategy'])} "
        f"| {cell(p['licence'])} "
        f"| {cell(p['plugin']['distribution'])} {cell(p['plugin']['version'])} |"
        for p in parents
    )
    return f"""{front("transformers", [base], pipeline="any-to-any", tags=shown)}
# {cell(base)} with {", ".join(cell(p["modality"]) for p in parents)}

Composed by modalloy {cell(record.get("modalloy", ""))} with method {code(model.config.method)} from
{code(base)} and the parents below; none of them was trained together with another.

| modality | parent | strategy | licence | plugin |
|---|---|---|---|---|
{rows}

```python
import modalloy

model, processor = modalloy.load("this directory")
```

`{PROVENANCE_FILE}` holds fingerprints, hashes, coefficients and what became of every tensor.
"""
