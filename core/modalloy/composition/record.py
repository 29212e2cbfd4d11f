"""The record of a composition: where everything in it came from, and what became of it."""

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

import modalloy
from modalloy.base import Base
from modalloy.checkpoints.safe_index import safe_index
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.selection import Chosen
from modalloy.deltas.lowrank import LowRankDelta
from modalloy.installed import installed_digest
from modalloy.merging.merged import Merged
from modalloy.parent import ENCODER_FILE
from modalloy.registry import Registry

FORMAT_VERSION = 1
"""Of ``modalloy.json``."""


def provenance(
    model: ModalloyForConditionalGeneration,
    base: Base,
    chosen: Iterable[Chosen],
    text: Mapping[str, LowRankDelta],
    own: Mapping[str, LowRankDelta],
    merged: Merged,
    registry: Registry,
) -> dict[str, Any]:
    """Return where everything in a composition came from, as ``modalloy.json`` holds it.

    Args:
        model: The composition.
        base: Its base.
        chosen: Its parents.
        text: Their text-stream deltas by modality.
        own: Their modality-stream deltas by modality; empty unless decoupled.
        merged: What the merge method made of them.
        registry: Knows which plugin each modality came from.
    """
    parents = []
    for one in chosen:
        manifest = one.manifest
        owner = registry.owner("modality", one.modality)
        parents.append(
            {
                "name": manifest.name,
                "source": one.source,
                "modality": one.modality,
                "strategy": manifest.strategy,
                "licence": manifest.licence,
                "plugin": {
                    "distribution": owner.distribution,
                    "version": owner.version,
                    "sha256": installed_digest(owner.distribution),
                },
                "requires": manifest.requires,
                "base": attrs.asdict(manifest.base),
                "files": manifest.files,
                "training": manifest.training,
                "scores": manifest.scores,
            }
        )
    return {
        "format_version": FORMAT_VERSION,
        "modalloy": modalloy.__version__,
        "base": {"id": base.id, "fingerprint": attrs.asdict(base.fingerprint)},
        "method": model.config.method,
        "method_options": model.config.method_options,
        "merge": dict(merged.record),
        "coefficients": model.config.coefficients,
        "parents": parents,
        "accounting": _accounting(model, base, chosen, text, own, merged),
    }


def _accounting(
    model: ModalloyForConditionalGeneration,
    base: Base,
    chosen: Iterable[Chosen],
    text: Mapping[str, LowRankDelta],
    own: Mapping[str, LowRankDelta],
    merged: Merged,
) -> list[dict[str, Any]]:
    """Return one row per source and kind: how many tensors, and what became of them."""
    rows: list[dict[str, Any]] = [
        {"source": base.id, "part": "base", "tensors": len(safe_index(base.path)), "fate": "copied"}
    ]
    for one in chosen:
        name = one.modality
        deltas = [("text delta", text, _text_fate(model, merged))]
        if model.config.decoupled:
            shared = one.manifest.strategy == "naive"
            fate = "kept as its own stream" if merged.own is None else "replaced by the merge"
            fate += " (post-hoc: the text delta)" if shared else ""
            deltas.append(("modality delta", own, fate))
        for part, table, fate in deltas:
            count = table[name].count
            rows.append({"source": one.source, "part": part, "tensors": count, "fate": fate})
        connector = len(model.connectors[name].state_dict())
        rows.append(
            {"source": one.source, "part": "connector", "tensors": connector, "fate": "kept"}
        )
        shipped = (one.directory / ENCODER_FILE).is_file()
        fate = "copied" if shipped else f"opened by encoder type {one.manifest.encoder.type!r}"
        rows.append({"source": one.source, "part": "encoder", "tensors": None, "fate": fate})
    made = [("merged text delta", merged.text)]
    made += [(f"{name} delta", delta) for name, delta in sorted((merged.own or {}).items())]
    for part, delta in made:
        if delta is not None:
            count, source = delta.count, f"method {model.config.method}"
            rows.append({"source": source, "part": part, "tensors": count, "fate": "made here"})
    return rows


def _text_fate(model: ModalloyForConditionalGeneration, merged: Merged) -> str:
    if merged.text is None:
        return "merged into the text stream"
    method = model.config.method
    return f"merged by {method}" + (", and kept beside it" if model.config.decoupled else "")
