"""The language model of a whole fine-tuned checkpoint, against its base, tensor by tensor."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from modalloy.base import Base
from modalloy.checkpoints.reader import CheckpointReader
from modalloy.checkpoints.writer import ShardWriter, TensorLayout, plan_shards, write_index
from modalloy.errors import BaseMismatchError, DeltaError, FormatError
from modalloy.interop.words import Words

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHARD_BYTES = 5 * 10**9
_CHUNK = 1 << 22
_ALIKE = 0.5
"""Cosine under which two models' weights have nothing to do with each other: tuning leaves it above
0.9, and that of unrelated weights is about 0."""
_SAMPLES = 4096
_BUFFERS = re.compile(r".*\.(rotary_emb\.inv_freq|attention\.masked_bias|attn\.bias)")
_SHOWN = 3

Say = Callable[[str], None]
Account = Callable[[str, str, str], None]
"""Records a tensor of the checkpoint: its name, its fate, and why."""


@attrs.frozen
class Tuned:
    """A tensor of the base that the checkpoint changed.

    Attributes:
        name: In the base.
        source: In the checkpoint.
    """

    name: str
    source: str


@attrs.frozen(eq=False)
class Language:
    """The language model of a checkpoint beside its base.

    Attributes:
        tuned: The checkpoint.
        plain: The base's files.
        changed: What differs, sorted by name.
    """

    tuned: CheckpointReader
    plain: CheckpointReader
    changed: Sequence[Tuned]

    def value(self, one: Tuned) -> torch.Tensor:
        """Return a tuned tensor, cut or filled up to as many rows as the base has."""
        found, base = self.tuned.tensor(one.source), self.plain.tensor(one.name)
        if found.shape == base.shape:
            return found
        rows = min(len(found), len(base))
        return torch.cat([found[:rows], base[rows:].to(found.dtype)])

    def delta(self, one: Tuned) -> tuple[torch.Tensor, torch.dtype]:
        """Return the float32 difference of a tensor from the base's, and the tuned one's dtype."""
        value = self.value(one)
        return value.float() - self.plain.tensor(one.name).float(), value.dtype


def compare_language(
    tuned: CheckpointReader,
    plain: CheckpointReader,
    names: Mapping[str, str],
    base: Base,
    account: Account,
    *,
    words: Words,
    progress: Say,
) -> Language:
    """Find what a checkpoint changed in its base.

    Args:
        tuned: The checkpoint.
        plain: The base's files.
        names: Name in the checkpoint of each tensor of its language model, by its plain name.
        base: The base.
        account: Called for each of these tensors.
        words: Both tokenizers.
        progress: Called with a line of text before something slow.

    Raises:
        FormatError: Tensors of the language model are missing.
        BaseMismatchError: It is not this base that was tuned, or its vocabulary was resized.
        DeltaError: A tensor has no counterpart, or nothing differs.
    """
    tied = bool(getattr(base.config(), "tie_word_embeddings", False))
    names = _without_buffers(names, account)
    names = _without_tied_head(names, tuned, tied=tied, account=account)
    _check_names(names, plain, tuned, base, tied=tied)
    _check_shapes(names, plain, tuned, base, words=words)
    _check_kinship(names, plain, tuned, base)
    progress(f"comparing {len(names)} tensors with the base {base.id}")
    changed: list[Tuned] = []
    language = Language(tuned, plain, changed)
    for name, source in sorted(names.items()):
        one = Tuned(name, source)
        rows, expected = tuned.shape(source), plain.shape(name)
        cut = ""
        if rows != expected:
            more = rows[0] > expected[0]
            what = "rows of further words left out" if more else "rows taken from the base"
            cut = f"; {abs(rows[0] - expected[0])} {what}"
        if _equal(language.value(one), plain.tensor(name)):
            account(source, "skipped", f"as in the base{cut}")
        else:
            _check_finite(tuned, source)
            changed.append(one)
            account(source, "text delta", f"differs from the base{cut}")
    if not changed:
        raise DeltaError(
            f"{tuned.directory}: its language model is the base's to the bit, so there is no "
            "delta; it is a frozen base with a tower and a projector"
        )
    return language


def _without_buffers(names: Mapping[str, str], account: Account) -> dict[str, str]:
    kept = {}
    for name, source in names.items():
        if _BUFFERS.fullmatch(name):
            account(source, "skipped", "computed from the configuration, not learned")
        else:
            kept[name] = source
    return kept


def _without_tied_head(
    names: dict[str, str], tuned: CheckpointReader, *, tied: bool, account: Account
) -> dict[str, str]:
    """Drop a head that repeats the embedding of a base that ties the two."""
    if not tied or HEAD not in names:
        return names
    head, embedding = names[HEAD], names.get(EMBEDDING)
    if embedding is None or not _equal(tuned.tensor(head), tuned.tensor(embedding)):
        raise DeltaError(
            f"{tuned.file(head)}: {head!r} differs from the embedding, and the base ties its head "
            "to its embedding: the head was tuned apart, which this base has no place for",
            tensor=head,
        )
    account(head, "skipped", "tied to the embedding")
    return {name: source for name, source in names.items() if name != HEAD}


def _check_names(
    names: Mapping[str, str],
    plain: CheckpointReader,
    tuned: CheckpointReader,
    base: Base,
    *,
    tied: bool,
) -> None:
    there = {n for n in plain.names() if not _BUFFERS.fullmatch(n) and not (tied and n == HEAD)}
    if HEAD in there - names.keys() and EMBEDDING in names:
        raise DeltaError(
            f"{tuned.directory} has no {HEAD!r}: it ties its head to its embedding, and the base "
            f"{base.id!r} has a head of its own; take the base that it was tuned from",
            tensor=HEAD,
        )
    missing, strange = sorted(there - names.keys()), sorted(names.keys() - there)
    if missing:
        raise FormatError(
            f"{tuned.directory}: {len(missing)} of the {len(there)} tensors of its language model "
            f"are missing, such as {_some(missing)}; fetch all of its shards, or give the base "
            f"that it was tuned from (now {base.id!r})",
            path=tuned.directory,
        )
    if strange:
        raise DeltaError(
            f"{tuned.directory}: {len(strange)} tensors of its language model have no counterpart "
            f"in the base {base.id!r}, such as {_some([names[n] for n in strange])}; give the base "
            "that it was tuned from",
            tensor=names[strange[0]],
        )


def _check_shapes(
    names: Mapping[str, str],
    plain: CheckpointReader,
    tuned: CheckpointReader,
    base: Base,
    *,
    words: Words,
) -> None:
    for name, source in sorted(names.items()):
        found, expected = tuned.shape(source), plain.shape(name)
        if found == expected:
            continue
        if name in (EMBEDDING, HEAD) and found[1:] == expected[1:]:
            same_words = words.agree()
            if same_words:
                continue
            why, advice = "the tokenizers give other ids to the same words", ""
            if same_words is None:
                where = " and ".join(map(str, words.lacking()))
                why = f"{where} has no tokenizer.json to see whether rows are of the same words"
                advice = " Save a tokenizer.json there (save_pretrained of its tokenizer), or give"
            raise BaseMismatchError(
                f"{tuned.file(source)}: the vocabulary was resized: {source!r} has {found[0]} "
                f"rows, the base {base.id!r} {expected[0]}, and {why}.{advice or ' Give'} the base "
                "that it was tuned from, or resize it to the base's vocabulary first",
                parent=str(tuned.directory),
                expected=str(expected),
                found=str(found),
            )
        raise BaseMismatchError(
            f"{tuned.file(source)}: {source!r} is {found}, the base {base.id!r} has {expected}: it "
            "was tuned from a model of another size or kind; give that one as the base",
            parent=str(tuned.directory),
            expected=str(expected),
            found=str(found),
        )


def _check_kinship(
    names: Mapping[str, str], plain: CheckpointReader, tuned: CheckpointReader, base: Base
) -> None:
    """Refuse a base whose weights have nothing to do with the checkpoint's."""
    products = torch.zeros(3, dtype=torch.float64)
    for name, source in sorted(names.items()):
        if len(plain.shape(name)) == 1 or plain.shape(name) != tuned.shape(source):
            continue  # norms are all much alike
        a = plain.sample(name, _SAMPLES).double()
        # What is no number is told apart, tensor by tensor.
        b = tuned.sample(source, _SAMPLES).double().nan_to_num(0.0, 0.0, 0.0)
        products += torch.stack([a @ b, a @ a, b @ b])
    cosine = float(products[0] / (products[1] * products[2]).sqrt().clamp(min=1e-30))
    if cosine < _ALIKE:
        raise BaseMismatchError(
            f"{tuned.directory}: its language model was not tuned from the base {base.id!r}: the "
            f"cosine of their weights is {cosine:.2f}, that of a tuned model with its base is near "
            "1. Give the base that it was tuned from",
            parent=str(tuned.directory),
            expected=f"cosine above {_ALIKE}",
            found=f"{cosine:.2f}",
        )


def write_weights(directory: Path, language: Language, which: Sequence[Tuned]) -> None:
    """Write tuned tensors under the base's names, as safetensors shards.

    Args:
        directory: Made here.
        language: What they are of.
        which: Which of them.

    Raises:
        FormatError: They cannot be written.
    """
    directory.mkdir()
    layouts = [
        TensorLayout(one.name, language.tuned.stored(one.source), language.plain.shape(one.name))
        for one in which
    ]
    shards = plan_shards(layouts, SHARD_BYTES)
    with ShardWriter(directory, shards) as writer:
        for one in which:
            for start, part in _parts(language.value(one)):
                writer.write(one.name, start, part)
    write_index(directory, shards, layouts)


def _parts(tensor: torch.Tensor) -> Iterator[tuple[int, memoryview]]:
    flat = tensor.contiguous().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        raw: Any = flat[start : start + _CHUNK].view(torch.uint8).numpy()
        yield start * flat.element_size(), memoryview(raw)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same values, whatever their dtypes."""
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype:
        return torch.equal(one, other)
    a, b = one.reshape(-1), other.reshape(-1)
    pieces = range(0, a.numel(), _CHUNK)
    return all(torch.equal(a[i : i + _CHUNK].float(), b[i : i + _CHUNK].float()) for i in pieces)


def _check_finite(tuned: CheckpointReader, source: str) -> None:
    flat = tuned.tensor(source).reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        if not bool(flat[start : start + _CHUNK].isfinite().all()):
            raise DeltaError(
                f"{tuned.file(source)}: {source!r} holds values that are no numbers (NaN or "
                "infinity); the checkpoint is damaged, or its training diverged",
                tensor=source,
            )


def _some(names: Sequence[Any]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
