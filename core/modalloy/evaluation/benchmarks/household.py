"""The household sets that recipes/household writes: one modality, or what several have in common.

Files are ``[test-]KIND.jsonl`` in the directory given; see docs/evaluation.md.
"""

from pathlib import Path

from modalloy.errors import FormatError
from modalloy.evaluation.questions import Question, check_media, first_of_each, read_questions

SPLIT = "test-"
_ALONE = ("mc", "caption", "attribute")


def household(data: Path | None, limit: int | None) -> list[Question]:
    """Read the sets on one modality: 4-way naming, captions, 4-way attributes.

    Raises:
        FormatError: There are none in ``data``, or a medium is missing.
    """
    return _read(data, limit, "household", [f"*-{skill}.jsonl" for skill in _ALONE])


def retention(data: Path | None, limit: int | None) -> list[Question]:
    """Read the same sets, for comparing a composition with each parent alone.

    Raises:
        FormatError: There are none in ``data``, or a medium is missing.
    """
    return _read(data, limit, "retention", [f"*-{skill}.jsonl" for skill in _ALONE])


def household_mcub(data: Path | None, limit: int | None) -> list[Question]:
    """Read the sets that ask what inputs of several kinds have in common.

    Raises:
        FormatError: There are none in ``data``, or a medium is missing.
    """
    return _read(data, limit, "household-mcub", ["mcub-*.jsonl"])


def _read(data: Path | None, limit: int | None, name: str, patterns: list[str]) -> list[Question]:
    if data is None:
        raise FormatError(
            f"benchmark {name!r} needs --data DIR, a directory that recipes/household wrote",
            path="--data",
        )
    files = sorted({file for one in patterns for file in data.glob(f"{SPLIT}{one}")})
    if not files:
        # Other splits lie beside the test set's files, and stay out.
        found = {file for one in patterns for file in data.glob(one)}
        files = sorted(file for file in found if not file.name.startswith("val-"))
    files = [file for file in files if name == "household-mcub" or "mcub" not in file.name]
    if not files:
        raise FormatError(
            f"{data} holds no questions of benchmark {name!r}: expected "
            f"{', '.join(f'[{SPLIT}]{one}' for one in patterns)}",
            path=data,
        )
    questions = [
        question for file in files for question in first_of_each(read_questions(file), limit)
    ]
    check_media(questions, data)
    return questions
