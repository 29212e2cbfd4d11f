"""The rows of the experiment: every composition that is measured, and how it is opened."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from recipes.household.wordings import MODALITIES

import modalloy
from modalloy.cli.search import read_table
from modalloy.composition.coefficients import Coefficients
from modalloy.errors import MissingComponentError
from modalloy.evaluation.answers import model_fingerprint
from modalloy.parent import MANIFEST
from modalloy.registry import Registry

BASE = "smollm2"
ALL = tuple(sorted(MODALITIES))


@attrs.frozen(kw_only=True)
class Row:
    """One composition.

    Attributes:
        name: Name on the command line and of files.
        title: Name in tables.
        strategy: Of the parents that it is made of and compared with.
        modalities: What it can read, sorted.
        method: Merge method; ``None`` opens a model directory in place of composing.
        coefficients: Rule of the merge method, or value by group.
        searched: Strategy of the search that found the coefficients, if one did.
        first: Whether it is asked more questions than others.
        free: Whether its free answers about several inputs are looked at.
    """

    name: str
    title: str
    strategy: str
    modalities: tuple[str, ...] = ALL
    method: str | None = "damc"
    coefficients: str | Mapping[str, float] | None = None
    searched: str = ""
    first: bool = False
    free: bool = False

    @property
    def alone(self) -> bool:
        """Whether this is one parent, or the base, on its own."""
        return len(self.modalities) < len(ALL)


def _alone(modality: str, strategy: str) -> Row:
    return Row(
        name=f"{modality}-{strategy}",
        title=f"{modality} parent alone, {strategy}",
        strategy=strategy,
        modalities=(modality,),
        method="damc" if strategy == "decoupled" else "naive",
        # Of one parent, either method with coefficient 1 is that parent.
        coefficients={modality: 1.0},
    )


def _naive(name: str, title: str, method: str = "naive", **options: Any) -> Row:
    return Row(name=name, title=title, strategy="naive", method=method, **options)


def _damc(name: str, title: str, method: str = "damc", **options: Any) -> Row:
    return Row(name=name, title=title, strategy="decoupled", method=method, **options)


ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="base",
            title="base LLM alone",
            strategy="naive",
            modalities=(),
            method="naive",
            coefficients="zero",
        ),
        *(_alone(modality, "decoupled") for modality in ALL),
        *(_alone(modality, "naive") for modality in ALL),
        Row(
            name="joint",
            title="joint training",
            strategy="naive",
            method=None,
            first=True,
            free=True,
        ),
        Row(
            name="joint-layers",
            title="joint training, adjusted by layer",
            strategy="naive",
            method=None,
            searched="joint",
            first=True,
            free=True,
        ),
        _naive("connectors", "connectors only", coefficients="zero"),
        _naive("naive-sum", "NaiveMC sum", coefficients="sum", first=True),
        _naive("naive-mean", "NaiveMC mean", coefficients="mean", first=True, free=True),
        _naive("ties", "NaiveMC TIES", method="ties", first=True),
        _naive("factor-mean", "NaiveMC factor-wise mean", method="factor-mean", first=True),
        _damc("damc-uniform", "DAMC 1/N", coefficients="uniform", first=True, free=True),
        _damc("damc-presence", "DAMC presence", coefficients="presence", first=True, free=True),
        _damc("damc-grid", "DAMC searched by grid", searched="grid", free=True),
        _damc("damc-layers", "DAMC learned by layer", searched="gradient", first=True, free=True),
        _damc("damc-ties", "DAMC + TIES text", method="damc-ties", free=True),
        _naive("post-hoc", "post-hoc decoupled, 1/N", method="damc", coefficients="uniform"),
        _damc("swudi", "DAMC + SWUDI text", method="swudi"),
        _naive("mmer", "MMER", method="mmer"),
    )
}
"""Row by name, in the order of tables."""
NAIVE = ("naive-sum", "naive-mean", "ties", "factor-mean")
"""The variants of NaiveMC, of which the best is compared with."""
JOINT = ("joint", "joint-layers")
"""Joint training as it is and adjusted on validation questions; the better one is compared with."""


@attrs.frozen(kw_only=True)
class Sources:
    """Where what rows are made of lies.

    Attributes:
        joint: Model directory of joint.py.
        coefficients: Folder with what searches found, ``<strategy>.json`` each.
        parents: Folder of parent directories ``<modality>-<strategy>`` that take the place of the
            installed parents; ``None`` takes those.
    """

    joint: Path
    coefficients: Path
    parents: Path | None = None

    def found(self, row: Row) -> Path:
        """Return the file of the search that a row's coefficients come from."""
        return self.coefficients / f"{row.searched}.json"

    def parent(self, modality: str, strategy: str, registry: Registry) -> Path | None:
        """Return a parent's directory, or ``None`` where there is none."""
        if self.parents is not None:
            directory = self.parents / f"{modality}-{strategy}"
            return directory if (directory / MANIFEST).is_file() else None
        offered = [
            one
            for one in registry.parents(base=BASE, modality=modality)
            if one.strategy == strategy
        ]
        try:
            return offered[0].directory() if offered else None
        except MissingComponentError:
            # Declared, but its weights are not there: rows that need it are left out and say so.
            return None

    def parents_of(self, row: Row, registry: Registry) -> dict[str, Path]:
        """Return the parent directories of a row by modality; what is missing is left out."""
        # A composition has a modality at least; with coefficient 0 the base is what is left of it.
        names = row.modalities or ALL[:1]
        found = {name: self.parent(name, row.strategy, registry) for name in names}
        return {name: directory for name, directory in found.items() if directory is not None}


def lacking(row: Row, sources: Sources, registry: Registry) -> str | None:
    """Return why a row cannot be opened, or ``None``."""
    if row.method is None:
        if not (sources.joint / "config.json").is_file():
            return "no model directory of recipes.household.joint was given"
        if row.searched and not sources.found(row).is_file():
            return f"there is no {sources.found(row)} of recipes.household.adjusting"
        return None
    found = sources.parents_of(row, registry)
    missing = [name for name in row.modalities or ALL[:1] if name not in found]
    if missing:
        return f"no {row.strategy} parent of {', '.join(missing)} over {BASE} is at hand"
    if row.searched and not sources.found(row).is_file():
        return f"there is no {sources.found(row)} of `modalloy search --strategy {row.searched}`"
    return None


def open_row(row: Row, sources: Sources, registry: Registry) -> Any:
    """Open a row's composition: the model and its processor."""
    if row.method is None:
        opened = modalloy.load(sources.joint, registry=registry)
        if row.searched:
            found = json.loads(sources.found(row).read_text(encoding="utf-8"))
            if found.get("model") != model_fingerprint(*opened):
                raise ValueError(
                    f"{sources.found(row)} was learned for another joint model than "
                    f"{sources.joint}; remove it, and run recipes.household.adjusting again"
                )
            opened.model.coefficients = Coefficients.from_dict(found["coefficients"])
        return opened
    method, spec = row.method, row.coefficients
    options: dict[str, float] = {}
    if row.searched:
        method, options, spec = searched(sources.found(row))
    parents = sources.parents_of(row, registry)
    return modalloy.compose(
        BASE,
        modalities=sorted(parents),
        parents=[parents[name] for name in sorted(parents)],
        method=method,
        method_options=options,
        coefficients=spec,
        registry=registry,
    )


def searched(file: Path) -> tuple[str, dict[str, float], Any]:
    """Return merge method, its options and the table of a file that ``modalloy search`` wrote."""
    data = json.loads(file.read_text(encoding="utf-8"))
    method, options = data.get("method", ""), data.get("method_options", {})
    return method, options, read_table(file, method, options)


def identity(row: Row, sources: Sources, registry: Registry) -> str:
    """Return the SHA-256 of all that decides a row's answers to given questions."""
    found = hashlib.sha256(
        json.dumps([modalloy.__version__, attrs.asdict(row)], default=str).encode()
    )
    if row.method is None:
        files = sorted(file for file in sources.joint.rglob("*") if file.is_file())
    else:
        # A manifest holds the hashes of the parent's other files, and the base's fingerprint.
        parents = sources.parents_of(row, registry)
        files = [parents[name] / MANIFEST for name in sorted(parents)]
    for file in [*files, *([sources.found(row)] if row.searched else [])]:
        with file.open("rb") as handle:
            found.update(hashlib.file_digest(handle, "sha256").digest())
    return found.hexdigest()
