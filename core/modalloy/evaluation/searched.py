"""What a coefficient search found."""

from collections.abc import Mapping
from typing import Any

import attrs

from modalloy.composition.coefficients import Coefficients, Value
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.evaluation.candidates import Trial
from modalloy.evaluation.intervals import Interval


@attrs.frozen(kw_only=True)
class SubsetSearch:
    """What was found for one set of modalities.

    Attributes:
        present: Names of the modalities, sorted.
        n: Questions.
        questions: SHA-256 of them; ``None`` where an input has no lasting identity.
        default: Coefficient of each group before.
        chosen: Coefficient of each group now; the default where nothing was better.
        gain: By how much the chosen row's score is above the default's, with the interval of the
            paired differences; ``None`` without labels. Chosen on these questions, it is larger
            than what others will show.
        trials: Every candidate.
    """

    present: tuple[str, ...]
    n: int
    questions: str | None
    default: Mapping[str, Value]
    chosen: Mapping[str, Value]
    gain: Interval | None
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """The set as it is written in tables."""
        return "+".join(self.present) or "text alone"

    @property
    def replaced(self) -> bool:
        """Whether the default gave way."""
        return self.chosen != self.default

    def trial(self, values: Mapping[str, Value]) -> Trial:
        """Return what became of a candidate."""
        return next(trial for trial in self.trials if trial.values == values)


@attrs.frozen(kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        method: Merge method of the composition; its groups mean nothing under another.
        method_options: The options that it ran with.
        coefficients: The table: the model's own, with the rows that were found.
        strategy: Name among :data:`~modalloy.evaluation.search.STRATEGIES`.
        metric: Name among :data:`~modalloy.evaluation.candidates.METRICS`; ``None`` where no
            label was looked at.
        seed: Of the questions' order and of TPE.
        learned_from: Steps, number and SHA-256 of the questions of the gradient, which are not
            those that judge; ``None`` for other strategies.
        subsets: One per set that was searched, smaller sets first.
        skipped: Why a kind of questions was left out.
        seconds: Time it took.
        reused: How many answers were taken from an earlier run.
    """

    method: str
    method_options: Mapping[str, float]
    coefficients: Coefficients
    strategy: str
    metric: str | None
    seed: int
    learned_from: Mapping[str, Any] | None = None
    subsets: tuple[SubsetSearch, ...]
    skipped: Mapping[str, str]
    seconds: float
    reused: int

    def record(self) -> dict[str, Any]:
        """Return plain JSON data for ``modalloy.json``; no times, so that it is reproducible."""
        return {
            "method": self.method,
            "method_options": dict(self.method_options),
            "strategy": self.strategy,
            "metric": self.metric,
            "seed": self.seed,
            **({"learned_from": dict(self.learned_from)} if self.learned_from else {}),
            "coefficients": self.coefficients.to_dict(),
            "subsets": {
                one.name: {
                    **attrs.asdict(one, filter=lambda field, _: field.name != "present"),
                    "replaced": one.replaced,
                }
                for one in self.subsets
            },
        }

    def apply(self, model: ModalloyForConditionalGeneration) -> None:
        """Make a composition run on what was found, and record the search in it."""
        model.coefficients = self.coefficients
        model.provenance = {**model.provenance, "search": self.record()}
