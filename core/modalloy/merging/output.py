"""What lies beside a merge's weights: configuration, tokenizer, model card and record."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import modalloy
from modalloy.cards import block, code, front
from modalloy.checkpoints.safe_files import read_object
from modalloy.checkpoints.safe_index import check_inside
from modalloy.errors import FormatError
from modalloy.merging.recipe import DTYPES, Recipe
from modalloy.merging.sources import Source, Sources, read_json

RECORD = "modalloy.json"
FORMAT_VERSION = 1
KIND = "merge"
_COPIED = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""The donor's files that make a model usable, where it has them."""
_DTYPE_KEYS = ("dtype", "torch_dtype")


def write_files(
    directory: Path, sources: Sources, recipe: Recipe, record: Mapping[str, Any]
) -> None:
    """Write everything but the weights.

    Args:
        directory: Where they are.
        sources: The models; the donor gives configuration and tokenizer.
        recipe: The recipe.
        record: Content of ``modalloy.json``.
    """
    donor = sources.donor
    config = dict(donor.config)
    if recipe.written is not None:
        name = next(name for name, short in DTYPES.items() if short == recipe.written)
        # Under whichever key the donor's version of transformers has it.
        config |= dict.fromkeys([key for key in _DTYPE_KEYS if key in config] or ["dtype"], name)
    _write_json(directory / "config.json", config)
    for name in _COPIED:
        source = donor.directory / name
        if source.is_file():
            shutil.copyfile(source, directory / name)
    _write_json(directory / RECORD, record)
    (directory / "README.md").write_text(_card(recipe, sources), encoding="utf-8")


def check_copied(donor: Source) -> None:
    """Check that the donor's files that will be copied are its own.

    Raises:
        UnsafePathError: One is a link to a file elsewhere.
        FormatError: One cannot be read.
    """
    for name in ("config.json", *_COPIED):
        path = donor.directory / name
        if not os.path.lexists(path):
            continue
        check_inside(donor.directory, name, donor.directory, suffix="")
        if not path.is_file() or not os.access(path, os.R_OK):
            raise FormatError(
                f"{path} is no file that can be read; fetch the model again", path=path
            )


def is_merge(directory: Path) -> bool:
    """Whether a directory holds a merged model, with its record."""
    try:
        return read_object(directory / RECORD).get("kind") == KIND
    except (OSError, FormatError):
        return False  # whoever reads it says what is wrong


def read_record(directory: Path) -> dict[str, Any]:
    """Return the content of a merged model's ``modalloy.json``.

    Raises:
        FormatError: It is damaged, or of another format version.
    """
    path = directory / RECORD
    data = read_json(path)
    if data.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"{path}: format_version must be {FORMAT_VERSION}, found "
            f"{data.get('format_version')!r}; upgrade modalloy or merge anew",
            path=path,
        )
    lacking = sorted({"accounting", "models", "recipe"} - data.keys())
    if lacking:
        raise FormatError(
            f"{path} does not describe a merge: it lacks {', '.join(lacking)}", path=path
        )
    return data


def make_record(
    recipe: Recipe, sources: Sources, accounting: object, seed: int | None
) -> dict[str, Any]:
    """Return the content of ``modalloy.json``, as plain data.

    Args:
        recipe: The recipe.
        sources: The models.
        accounting: What became of every tensor.
        seed: Of the random numbers; ``None`` where none are drawn.
    """
    return {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "modalloy": modalloy.__version__,
        "recipe": recipe.to_dict(),
        "seed": seed,
        "donor": sources.donor.reference,
        "models": [_describe(source) for source in sources.models],
        "accounting": accounting,
    }


def _describe(source: Source) -> dict[str, Any]:
    return {
        "label": source.label,
        "model": source.reference,
        "kind": source.kind,
        "tensors": len(source.pairs) + len(source.entries),
        "bytes": sum(file.stat().st_size for file in source.files()),
    }


def _card(recipe: Recipe, sources: Sources) -> str:
    references = [sources.donor.reference, *(source.reference for source in sources.models)]
    elsewhere = [one for one in references if not Path(one).exists()]
    models = "\n".join(f"- {code(source.label)} ({source.kind})" for source in sources.models)
    over = f" over {code(sources.base.reference)}" if sources.base else ""
    text = yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)
    return f"""{front("transformers", elsewhere)}
# Merged language model

Merged by modalloy {modalloy.__version__} with {code(recipe.merge_method)}{over}:

{models}

{block(text, "yaml")}

`{RECORD}` says what became of every tensor. The licences of all models above apply.
"""


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
