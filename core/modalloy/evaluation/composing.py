"""Composing with coefficients that are searched: what ``modalloy.compose`` is.

Composition knows nothing of questions; so the two meet here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from modalloy.composition.coefficients import Spec
from modalloy.composition.compose import Composition
from modalloy.composition.compose import compose as compose_fixed
from modalloy.errors import FormatError, SpecError
from modalloy.evaluation.questions import Question, check_media, read_questions
from modalloy.evaluation.search import check_searchable, search_coefficients
from modalloy.registry import Registry

SEARCH = "search"
"""What ``coefficients`` is called where they are to be searched."""

VALIDATION = "val-*.jsonl"
"""Files of a directory that hold its validation split."""


def compose(  # noqa: PLR0913 - all but the first are options by name
    base: str | Path = "smollm2",
    *,
    revision: str | None = None,
    modalities: Iterable[str] | None = None,
    parents: Iterable[str | Path] = (),
    method: str = "damc",
    method_options: Mapping[str, float] | None = None,
    coefficients: Spec | None = None,
    validation: str | Path | Sequence[Question] | None = None,
    search: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype = "auto",
    registry: Registry | None = None,
    progress: Callable[[str], None] | None = None,
) -> Composition:
    """Compose the installed modalities, or those named, over one base.

    Args:
        base: ``"smollm2"``, a Hugging Face directory, or a Hub id.
        revision: Commit, tag or branch of the base, for a Hub id.
        modalities: Names of modalities; all that have a parent for this base if left out.
        parents: Parent directories, or names of registered parents, that stand beside the
            installed ones or take the place of those of the same modality.
        method: ``"damc"``, ``"naive"``, or another registered merge method.
        method_options: Options of the merge method, such as ``{"density": 0.3}`` with TIES.
        coefficients: A rule's name (``"presence"`` or ``"uniform"`` with DAMC, ``"mean"``,
            ``"sum"`` or ``"zero"`` with NaiveMC; a method's first is its default), one value per
            group of text deltas (modality, and ``"merged"`` where the method makes one), such
            values by frozenset of the modalities present, or ``"search"``.
        validation: With ``"search"``: questions, a JSONL file of them, or a directory whose
            ``val-*.jsonl`` files hold them.
        search: With ``"search"``: options of
            :func:`~modalloy.evaluation.search.search_coefficients` by name, such as
            ``{"strategy": "tpe", "seed": 1}``.
        dtype: Of weights and arithmetic; ``"auto"`` takes the base's.
        registry: Supplies plugins; what is installed if left out.
        progress: Called with a line of text before something slow.

    Returns:
        The model, in evaluation mode, and its processor. Of a search the model's ``provenance``
        has the record.

    Raises:
        BaseMismatchError: A parent was tuned from another base.
        UnknownNameError: A modality, parent or method is not registered.
        MissingComponentError: A parent, an encoder type, a base or optuna is not at hand.
        SpecError: The parts do not fit together, or an option is none of those above.
        FormatError: The questions cannot be read, or media are missing.
        InputError: The questions do not serve a search.
    """
    searched = coefficients == SEARCH
    if not searched and (validation is not None or search):
        raise SpecError(
            f"validation and search are for coefficients={SEARCH!r}; got {coefficients!r}, which "
            "looks at no questions",
            subject="coefficients",
        )
    if searched and validation is None:
        raise SpecError(
            f"coefficients={SEARCH!r} needs validation: questions, a JSONL file of them, or a "
            f"directory with {VALIDATION}",
            subject="validation",
        )
    registry = registry or Registry.discover()
    questions: Sequence[Question] = ()
    if searched and validation is not None:
        # Before anything slow.
        check_searchable(method, registry.merge_method(method).rules)
        if isinstance(validation, str | Path):
            questions = read_validation(Path(validation))
        else:
            questions = validation
    composed = compose_fixed(
        base,
        revision=revision,
        modalities=modalities,
        parents=parents,
        method=method,
        method_options=method_options,
        coefficients="presence" if searched else coefficients,
        dtype=dtype,
        registry=registry,
        progress=progress,
    )
    if searched:
        if progress is not None:
            progress("searching coefficients on the validation questions")
        result = search_coefficients(*composed, questions, **(search or {}))
        result.apply(composed.model)
    return composed


def read_validation(path: Path) -> list[Question]:
    """Read the questions of a file, or of a directory's ``val-*.jsonl`` files.

    Raises:
        FormatError: There are none, a file is malformed, or media are missing.
    """
    files = sorted(path.glob(VALIDATION)) if path.is_dir() else [path]
    if not files:
        raise FormatError(
            f"{path} holds no validation questions: expected {VALIDATION} in it; name a JSONL "
            "file of questions if yours are called otherwise",
            path=path,
        )
    questions = [question for file in files for question in read_questions(file)]
    check_media(questions, path)
    return questions
