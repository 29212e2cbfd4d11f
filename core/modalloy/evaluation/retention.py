"""Retention: the same questions asked of each parent alone and of the composition."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from modalloy.composition.compose import Composition, compose
from modalloy.errors import MissingComponentError
from modalloy.evaluation.questions import Question
from modalloy.evaluation.results import Results
from modalloy.parent import MANIFEST, read_manifest
from modalloy.registry import Registry


@attrs.frozen(kw_only=True)
class Retained:
    """A kind of question, asked of a parent alone and of the composition.

    Attributes:
        kind: Name of the kind.
        scoring: How answers were scored.
        n: Questions.
        alone: Share of right answers of the parent alone.
        composed: Share of right answers of the composition.
    """

    kind: str
    scoring: str
    n: int
    alone: float
    composed: float

    @property
    def ratio(self) -> float | None:
        """``composed`` by ``alone``; ``None`` where the parent was never right."""
        return self.composed / self.alone if self.alone else None


def parents_alone(
    composition: Composition,
    given: Sequence[str | Path],
    registry: Registry,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Return, by content type, the arguments of ``compose`` for the parent of it alone.

    Args:
        composition: Made of the parents.
        given: Parent directories or names, for parents that no installed plugin offers.
        registry: Supplies the installed ones.
        base: Where the base is, as ``compose`` takes it; by the name that the composition knows
            it under if left out.
        revision: Commit, tag or branch of the base, for a Hub id.

    Raises:
        MissingComponentError: A parent is not at hand; the message names it.
    """
    offered: list[str | Path] = [*given, *(parent.name for parent in registry.parents())]
    alone = {}
    for record in composition.model.provenance["parents"]:
        source = next((one for one in offered if _is(record, one, registry)), None)
        if source is None:
            raise MissingComponentError(
                f"the parent {record['name']!r} ({record['modality']}) is not at hand, so it "
                "cannot be asked alone: no installed plugin has it with the same files; give its "
                "directory with --parent",
                component=record["name"],
            )
        kind = composition.processor.modalities[record["modality"]]["content_type"]
        alone[kind] = {
            "base": composition.model.config.base["id"] if base is None else base,
            "revision": revision,
            "modalities": [record["modality"]],
            "parents": [source],
            # Of one parent, DAMC with coefficient 1 is that parent.
            "method": "damc",
            "coefficients": {record["modality"]: 1.0},
            "dtype": composition.model.dtype,
            "registry": registry,
        }
    return dict(sorted(alone.items()))


def open_alone(options: Mapping[str, Any]) -> Composition:
    """Open one of :func:`parents_alone`."""
    return compose(**options)


def retained(alone: Sequence[Results], composed: Results) -> list[Retained]:
    """Return a row per kind and scoring, over what both a parent and the composition answered."""
    whole = {(one.kind, one.scoring, one.id): one.right for one in composed.records}
    pairs: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for results in alone:
        for one in results.records:
            right = whole.get((one.kind, one.scoring, one.id))
            if right is not None:
                pairs.setdefault((one.kind, one.scoring), []).append((one.right, right))
    return [
        Retained(
            kind=kind,
            scoring=scoring,
            n=len(both),
            alone=sum(own for own, _ in both) / len(both),
            composed=sum(right for _, right in both) / len(both),
        )
        for (kind, scoring), both in pairs.items()
    ]


def of_type(questions: Sequence[Question], content_type: str) -> list[Question]:
    """Return the questions whose inputs are all of one content type."""
    return [question for question in questions if question.content_types == (content_type,)]


def _is(record: Mapping[str, Any], source: str | Path, registry: Registry) -> bool:
    """Whether a parent, by directory or name, has the files that a composition was made of."""
    directory = Path(source)
    if not (directory / MANIFEST).is_file():
        parent = registry.parent(str(source))
        if parent.modality != record["modality"]:
            return False  # before it is fetched from anywhere
        directory = parent.directory()
    manifest = read_manifest(directory)
    return manifest.modality == record["modality"] and manifest.files == record["files"]
