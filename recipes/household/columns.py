"""The columns of the experiment: what every row is asked, how much of it, and in which order."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import attrs
from recipes.household.mcub import subsets
from recipes.household.rows import ALL, Row
from recipes.household.wordings import VIDEO, WORDINGS, Kind

from modalloy.evaluation.questions import Question, read_questions

HERE = Path(__file__).parent
KINDS: Mapping[str, Kind] = {"object": "naming", "attribute": "attribute"}
"""Kinds of questions about several inputs."""
SKILLS = ("mc", "caption", "attribute")
"""Kinds of questions about one input."""
STAGES = {
    1: "four noisy inputs",
    2: "three noisy inputs",
    3: "one modality's own questions, free answers, text",
    4: "one and two noisy inputs",
    5: "clean inputs",
}
MANY, FEW, SIDE = 500, 100, 50
"""Questions of a cell: where it decides, of rows and columns beside that, and of clean inputs.

Several clean inputs are answered rightly by nearly every row, so few of them say as much.
"""


@attrs.frozen(kw_only=True)
class Column:
    """One set of questions, and what is looked at.

    Attributes:
        name: Name on the command line and of files.
        group: ``own``, ``fused``, ``single``, ``format``, ``questions`` or ``perplexity``.
        modalities: What a row must read, sorted.
        file: Stem of the file of questions.
        scoring: How answers are scored.
        noisy: Whether inputs are degraded.
        kind: ``object`` or ``attribute`` where several inputs are asked about.
    """

    name: str
    group: str
    modalities: tuple[str, ...] = ()
    file: str = ""
    scoring: tuple[str, ...] = ("options",)
    noisy: bool = False
    kind: str = ""


def _own(modality: str, skill: str) -> Column:
    name = f"{modality}-{skill}"
    scoring = ("options", "exact") if skill == "mc" else ("options",)
    return Column(name=name, group="own", modalities=(modality,), file=name, scoring=scoring)


def fused(kind: str, subset: Sequence[str], *, noisy: bool) -> str:
    """Return the name of the column about inputs of several modalities."""
    return f"mcub-{kind}-{'+'.join(subset)}{'-noisy' if noisy else ''}"


def _fused(kind: str, subset: tuple[str, ...], *, noisy: bool) -> Column:
    name = fused(kind, subset, noisy=noisy)
    return Column(name=name, group="fused", modalities=subset, file=name, noisy=noisy, kind=kind)


def _single(modality: str) -> Column:
    name = f"single-object-{modality}-noisy"
    return Column(
        name=name, group="single", modalities=(modality,), file=name, noisy=True, kind="object"
    )


def _format(kind: str) -> Column:
    return Column(
        name=f"format-{kind}",
        group="format",
        modalities=ALL,
        file=fused(kind, ALL, noisy=True),
        scoring=("exact",),
        noisy=True,
        kind=kind,
    )


COLUMNS: Mapping[str, Column] = {
    column.name: column
    for column in (
        # Questions about more inputs come first, so that a run that is stopped has them.
        *(_fused(k, s, noisy=True) for s in subsets()[::-1] for k in KINDS),
        *(_own(modality, skill) for modality in ALL for skill in SKILLS),
        *(_format(kind) for kind in KINDS),
        Column(name="text-questions", group="questions", file="text_questions"),
        Column(name="text-perplexity", group="perplexity", scoring=()),
        *(_single(modality) for modality in ALL),
        *(_fused(k, s, noisy=False) for s in subsets()[::-1] for k in KINDS),
    )
}
"""Column by name, in the order of measuring."""


def place(row: Row, column: Column) -> tuple[int, int] | None:
    """Return the stage of a cell and how many questions it has; ``None`` where it has none."""
    if not asks(row, column):
        return None
    if column.group not in ("fused", "single"):
        return 3, MANY if column.group in ("questions", "perplexity") else FEW
    if not column.noisy:
        return 5, SIDE
    stage = {4: 1, 3: 2}.get(len(column.modalities), 4)
    decides = stage == 1 or (row.first and column.group == "fused")
    return stage, MANY if decides else FEW


def asks(row: Row, column: Column) -> bool:
    """Whether a row is asked a column: one parent alone only its own questions, and text.

    Joint training that was adjusted for several modalities is not asked about one, or text.
    """
    if row.method is None and row.searched and column.group not in ("fused", "format"):
        return False
    reads = set(column.modalities) <= set(row.modalities)
    if row.alone:
        return reads and column.group in ("own", "questions", "perplexity")
    return reads and (row.free or column.group != "format")


def question_file(column: Column, data: Path) -> Path:
    """Return the file of a column's questions: of the test split, or of a bundle."""
    if column.group == "perplexity":
        return HERE / "text.txt"
    if column.group == "questions":
        return HERE / f"{column.file}.jsonl"
    file = data / f"test-{column.file}.jsonl"
    return file if file.is_file() else data / f"{column.file}.jsonl"


def read_column(column: Column, data: Path, count: int) -> list[Question]:
    """Read a column's first questions.

    Those whose free answers are looked at get the longest form that was trained as their
    reference, which says how long an answer may get.
    """
    questions = read_questions(question_file(column, data))[:count]
    if column.group != "format":
        return questions
    form = VIDEO.form(KINDS[column.kind])
    return [
        attrs.evolve(one, reference=form.answered(max(one.options, key=len))) for one in questions
    ]


def well_formed(column: Column, question: Question, answer: str, known: Collection[str]) -> bool:
    """Whether a free answer has a form that was asked for or trained.

    About one modality the form is the parent's own, to the letter, whichever class it names. About
    several inputs, which no parent was trained on, it is a bare option or any parent's form of it;
    case and final punctuation do not count.

    Args:
        column: Of the question.
        question: What was asked.
        answer: The free answer.
        known: The options of all the column's questions: every answer in the parent's form.
    """
    if column.group != "format":
        return answer in known
    kind = KINDS[column.kind]
    kinds: tuple[Kind, ...] = (kind, "caption") if kind == "naming" else (kind,)
    forms = {_bare(option) for option in question.options} | {
        _bare(wording.form(one).answered(option))
        for wording in WORDINGS.values()
        for one in kinds
        for option in question.options
    }
    return _bare(answer) in forms


def _bare(text: str) -> str:
    return text.strip().casefold().rstrip(".!?\"' ")
