"""The models of a recipe, opened: directories of weights, adapters, and parents."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from modalloy.base_config import CONFIG_FILE as MODEL_CONFIG
from modalloy.base_config import read_config
from modalloy.checkpoints.mapped import MappedFiles, MappedTensor
from modalloy.checkpoints.safe_files import read_object
from modalloy.checkpoints.safe_index import TensorEntry, scan
from modalloy.errors import (
    DeltaError,
    FormatError,
    MissingComponentError,
    SpecError,
    UnknownNameError,
)
from modalloy.merging.recipe import Recipe
from modalloy.parent import (
    MANIFEST,
    TEXT_ADAPTER,
    TEXT_WEIGHTS,
    check_once,
    read_manifest,
    verify_files,
)

if TYPE_CHECKING:
    from modalloy.registry import Registry

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@attrs.frozen(eq=False)
class Pair:
    """A low-rank delta of one tensor.

    Attributes:
        B: ``(O, R)`` float32.
        A: ``(R, I)`` float32.
        scale: Factor of their product.
    """

    B: Any
    A: Any
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the delta."""
        return self.B.shape[0], self.A.shape[1]


Operand = MappedTensor | Pair
"""What a model has for a tensor: its value, or its delta."""


@attrs.frozen(eq=False)
class Source:
    """A model of a recipe.

    Attributes:
        label: Its name in messages and records, unique among a recipe's models; random numbers
            depend on it, and sums go in its order.
        reference: How the recipe names it.
        kind: ``"model"``, ``"adapter"`` or ``"parent"``.
        directory: Where it lies.
        config: Of a model, without what would choose the code that runs.
        entries: Where each tensor lies, by name: of a model all, of a parent those that were tuned
            whole.
        pairs: Of an adapter or parent: its deltas, by the name of the tensor that they change.
        parameters: Its settings.
        notes: What a reader of the record should know.
    """

    label: str
    reference: str
    kind: str
    directory: Path
    config: Mapping[str, Any]
    entries: Mapping[str, TensorEntry]
    pairs: Mapping[str, Pair]
    parameters: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        """Return the files of a model's weights, sorted."""
        return sorted({entry.file for entry in self.entries.values()})

    def adapter_files(self) -> list[Path]:
        """Return the files of an adapter's or parent's delta."""
        folder = self.directory / TEXT_ADAPTER if self.kind == "parent" else self.directory
        return [folder / name for name in (CONFIG_FILE, WEIGHTS_FILE)] if self.pairs else []


@attrs.frozen(eq=False)
class Sources:
    """All models of a recipe.

    Attributes:
        donor: Whose tensors, configuration and tokenizer the output has: the base, or where there
            is none the model listed first.
        base: The base; ``None`` where the recipe names none.
        models: What is merged, by label; the base is among them where the method takes models
            as they are and the recipe lists it.
        maps: The opened files.
    """

    donor: Source
    base: Source | None
    models: tuple[Source, ...]
    maps: MappedFiles


def open_sources(
    recipe: Recipe,
    *,
    with_base: bool,
    registry: "Registry",
    progress: Callable[[str], None] | None = None,
) -> Sources:
    """Open the models of a recipe.

    Args:
        recipe: The recipe.
        with_base: Whether a base that is listed among the models is one of them.
        registry: Offers installed parents by name.
        progress: Called with a line of text before something slow.

    Raises:
        ModalloyError: A model cannot be found or is not as it should be.
    """
    say = progress or (lambda _: None)
    labels = make_labels([model.model for model in recipe.models])
    found = {}
    for label, model in zip(labels, recipe.models, strict=True):
        if recipe.is_base(model) and not with_base:
            continue
        found[label] = open_source(model.model, label, registry, say, model.parameters)
    base = None
    if recipe.base_model is not None:
        base = open_source(recipe.base_model, "base", registry, say, {})
    donor = base or found[labels[0]]
    if donor.kind != "model":
        raise DeltaError(
            f"{donor.reference} is an {donor.kind}: a difference from a base. Name the base as "
            "'base_model'"
        )
    for source in found.values():
        if source.kind == "parent":
            _check_base(source, donor)
    maps = MappedFiles()
    models = tuple(found[label] for label in sorted(found))
    for source in (donor, *models):
        maps.open(source.files())
    return Sources(donor, base, models, maps)


def make_labels(references: Sequence[str]) -> list[str]:
    """Return a short name for each model: the last part of its path where that is unique."""
    for reference in references:
        if not reference.isprintable():
            raise SpecError(f"a model is named {reference!r}; give it a name that can be printed")
    last = [Path(reference).name or reference for reference in references]
    labels: list[str] = []
    for reference, name in zip(references, last, strict=True):
        label = own = name if last.count(name) == 1 else reference
        number = 1
        while label in labels:
            number += 1
            label = f"{own}#{number}"
        labels.append(label)
    return labels


def open_source(
    reference: str,
    label: str,
    registry: "Registry",
    progress: Callable[[str], None],
    parameters: Mapping[str, Any],
) -> Source:
    """Open one model.

    Args:
        reference: A directory, the name of an installed parent, ``"smollm2"``, or a Hub id.
        label: Its label.
        registry: Offers installed parents by name.
        progress: Called with a line of text before something slow.
        parameters: Its settings.

    Raises:
        ModalloyError: It cannot be found or is not as it should be.
    """
    directory = _find(reference, registry, progress)
    empty: Mapping[str, Any] = {}
    if (directory / MANIFEST).is_file():
        pairs, tuned, notes = _read_parent(directory)
        return Source(label, reference, "parent", directory, empty, tuned, pairs, parameters, notes)
    if (directory / CONFIG_FILE).is_file():
        pairs = _read_pairs(directory)
        return Source(label, reference, "adapter", directory, empty, empty, pairs, parameters)
    config = read_config(directory)
    if "quantization_config" in config:
        raise FormatError(
            f"{directory / MODEL_CONFIG}: the model is quantised; take the plain weights that it "
            "was made from",
            path=directory / MODEL_CONFIG,
        )
    entries = scan(directory)
    if not entries:
        raise FormatError(f"{directory} holds a model without any tensor", path=directory)
    return Source(label, reference, "model", directory, config, entries, empty, parameters)


def _find(reference: str, registry: "Registry", progress: Callable[[str], None]) -> Path:
    try:
        directory = Path(reference).expanduser()
        if directory.is_dir():
            return directory
    except (OSError, RuntimeError) as error:
        raise MissingComponentError(
            f"{reference!r} cannot be looked for: {error}", component=reference
        ) from error
    names = {parent.name: parent for parent in registry.parents()}
    if reference in names:
        return names[reference].directory()
    if "+" in reference:
        raise MissingComponentError(
            f"{reference!r} is no directory. For an adapter over the base, list the adapter's own "
            "directory as a model, and the base as 'base_model'",
            component=reference,
        )
    from modalloy.base import resolve_base

    try:
        return resolve_base(reference, progress=progress).path
    except UnknownNameError as error:
        raise MissingComponentError(
            f"{reference!r} is neither a directory, nor a Hub id 'org/name', nor the name of an "
            f"installed parent ({', '.join(sorted(names)) or 'none is installed'})",
            component=reference,
        ) from error


def _read_parent(
    directory: Path,
) -> tuple[Mapping[str, Pair], Mapping[str, TensorEntry], tuple[str, ...]]:
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    notes = ["its encoder and connector are left out; `modalloy compose` keeps them"]
    if manifest.strategy == "decoupled":
        notes.insert(0, "of a decoupled parent, the delta of the text stream is merged")
    adapter, weights = directory / TEXT_ADAPTER, directory / TEXT_WEIGHTS
    pairs = _read_pairs(adapter) if adapter.is_dir() else {}
    tuned = scan(weights) if weights.is_dir() else {}
    if not pairs and not tuned:
        raise DeltaError(
            f"{directory} has neither {TEXT_ADAPTER} nor {TEXT_WEIGHTS}: its text stream is the "
            "base's, and there is nothing to merge"
        )
    check_once(weights, pairs, tuned)
    return pairs, tuned, tuple(notes)


def _read_pairs(directory: Path) -> Mapping[str, Pair]:
    # Brings in torch, which merges of plain models do without.
    from modalloy.deltas.lowrank import read_adapter

    delta = read_adapter(directory)
    return {
        f"{module}.weight": Pair(
            np.ascontiguousarray(pair.B.float().numpy()),
            np.ascontiguousarray(pair.A.float().numpy()),
            pair.scale,
        )
        for module, pair in delta.pairs.items()
    }


def _check_base(source: Source, donor: Source) -> None:
    """Check that a parent was tuned from the base that it is merged into."""
    from modalloy.base import check_fingerprint, fingerprint

    manifest = read_manifest(source.directory)
    check_fingerprint(manifest.name, manifest.base.fingerprint, fingerprint(donor.directory))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, or an empty one where there is no such file.

    Raises:
        FormatError: It is no JSON object.
    """
    try:
        return read_object(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
