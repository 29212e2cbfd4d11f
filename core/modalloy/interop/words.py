"""Whether two tokenizers give the same ids to the same words."""

import json
from pathlib import Path
from typing import Any

import attrs

from modalloy.checkpoints.safe_index import check_inside
from modalloy.errors import FormatError

TOKENIZER_FILE = "tokenizer.json"
MAX_BYTES = 200 * 2**20


@attrs.frozen
class Words:
    """The tokenizers of a model and of its base.

    Attributes:
        source: Directory of the model.
        base: Directory of the base.
    """

    source: Path
    base: Path

    def agree(self) -> bool | None:
        """Return whether they agree on all ids that both have.

        Returns:
            ``None`` where one of them has no ``tokenizer.json``.

        Raises:
            FormatError: A file is damaged, or too large to be a tokenizer's.
            UnsafePathError: A file is a link that leads elsewhere.
        """
        tables = [_read(directory) for directory in (self.source, self.base)]
        if any(table is None for table in tables):
            return None
        one, other = (table or {} for table in tables)
        shared = one.keys() & other.keys()
        return bool(shared) and all(one[number] == other[number] for number in shared)

    def lacking(self) -> list[Path]:
        """Return the directories that have no ``tokenizer.json``."""
        return [d for d in (self.source, self.base) if not (d / TOKENIZER_FILE).exists()]


def _read(directory: Path) -> dict[int, str] | None:
    """Return the words of a tokenizer by id."""
    path = directory / TOKENIZER_FILE
    if not path.exists():
        return None
    check_inside(directory, TOKENIZER_FILE, directory, suffix=".json")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise FormatError(f"{path} has {size} bytes, at most {MAX_BYTES} are read", path=path)
    try:
        data = json.loads(path.read_bytes())
        words: dict[int, str] = _words(data["model"]["vocab"])
        words |= {int(one["id"]): str(one["content"]) for one in data.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{path} is no tokenizer of the tokenizers library: {error!r}", path=path
        ) from error
    return words


def _words(vocabulary: Any) -> dict[int, str]:
    if isinstance(vocabulary, dict):  # BPE, WordPiece
        return {int(number): str(word) for word, number in vocabulary.items()}
    return {number: str(word) for number, (word, _) in enumerate(vocabulary)}  # Unigram
