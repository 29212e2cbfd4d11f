"""Where the parents pull the base apart: interference by layer and kind of projection."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from recipes.household.rows import ALL, Sources

from modalloy.parent import MANIFEST, MODALITY_ADAPTER, TEXT_ADAPTER
from modalloy.registry import Registry

if TYPE_CHECKING:
    from modalloy.evaluation.interference import Interference

FILE = "interference.json"
STREAMS: Mapping[str, tuple[str, str]] = {
    "decoupled parents, text deltas": ("decoupled", TEXT_ADAPTER),
    "decoupled parents, modality deltas": ("decoupled", MODALITY_ADAPTER),
    "naive parents, their only deltas": ("naive", TEXT_ADAPTER),
}
"""What is compared: strategy of the parents and folder of the delta."""
_MODULE = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?:\w+\.)*(?P<projection>\w+)")


def write_conflicts(work: Path, sources: Sources) -> None:
    """Measure the interference between all parents at hand, unless it is there already.

    Args:
        work: Folder of the file :data:`FILE`.
        sources: Where parents are.
    """
    from modalloy.deltas.lowrank import read_adapter
    from modalloy.evaluation.interference import measure_interference

    registry = Registry.discover()
    parents = {
        (strategy, modality): directory
        for strategy in ("decoupled", "naive")
        for modality in ALL
        if (directory := sources.parent(modality, strategy, registry)) is not None
    }
    marks = {
        f"{modality}-{strategy}": json.loads((directory / MANIFEST).read_text("utf-8"))["files"]
        for (strategy, modality), directory in parents.items()
    }
    file = work / FILE
    if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["parents"] == marks:
        return
    streams = {}
    for name, (strategy, folder) in STREAMS.items():
        own = {m: d for (s, m), d in parents.items() if s == strategy}
        deltas = {m: read_adapter(d / folder) for m, d in own.items()}
        streams[name] = [flat(one) for one in measure_interference(deltas)]
    text = json.dumps({"parents": marks, "streams": streams})
    file.write_text(text + "\n", encoding="utf-8")


def flat(one: "Interference") -> dict[str, Any]:
    """Return a measurement with the layer and the projection that it is of.

    Raises:
        ValueError: The module is not one of a layer.
    """
    match = _MODULE.fullmatch(one.module)
    if match is None:
        raise ValueError(
            f"{one.module}: expected the name of a linear layer such as "
            "model.layers.0.mlp.up_proj; the parents were not trained over the base of the recipe"
        )
    return {
        "layer": int(match["layer"]),
        "projection": match["projection"],
        "parents": list(one.parents),
        "cosine": one.cosine,
        "conflict": one.conflict,
    }


def by_layer(records: list[dict[str, Any]], value: str) -> dict[str, dict[int, float]]:
    """Return the mean over pairs of parents, by projection and layer.

    Args:
        records: Of one stream.
        value: ``cosine`` or ``conflict``.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for one in records:
        here = found.setdefault(one["projection"], {}).setdefault(one["layer"], [])
        here.append(one[value])
    return {
        projection: {layer: fmean(values) for layer, values in sorted(layers.items())}
        for projection, layers in sorted(found.items())
    }


def by_pair(records: list[dict[str, Any]], value: str) -> dict[str, float]:
    """Return the mean over all layers, by pair of parents."""
    found: dict[str, list[float]] = {}
    for one in records:
        found.setdefault(" and ".join(one["parents"]), []).append(one[value])
    return {pair: fmean(values) for pair, values in sorted(found.items())}
