"""The base LLM that parents are tuned from: where it is, what it is, and whether it fits."""

import hashlib
import json
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from modalloy.base_config import configuration_errors, load_config, read_config
from modalloy.checkpoints.safe_index import safe_index
from modalloy.errors import (
    BaseMismatchError,
    FormatError,
    SpecError,
    UnknownNameError,
)
from modalloy.families import base_problem
from modalloy.opened import HUB_ID, fetch
from modalloy.parent import Fingerprint
from modalloy.smollm2 import NAME as SMOLLM2
from modalloy.smollm2 import smollm2

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SAMPLES = 1024
"""Elements of each tensor that a fingerprint looks at."""

_REVISION = re.compile(r"[\w.+@-]+(?:/[\w.+@-]+)*", re.ASCII)
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_HUB_EXTRAS = ("*/*", "consolidated*")


@attrs.frozen(slots=False)
class Base:
    """A decoder-only language model in a Hugging Face directory.

    Attributes:
        id: The name it was asked for by: ``"smollm2"``, a Hub id, or the directory's name.
        path: Its directory, checked.
    """

    id: str
    path: Path

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Its fingerprint, computed when first asked for."""
        return fingerprint(self.path)

    def config(self) -> "PretrainedConfig":
        """Return its configuration, without what would run foreign code.

        Raises:
            FormatError: Parents cannot be composed over a model of its architecture.
        """
        config = load_config(self.path)
        problem = base_problem(config)
        if problem:
            raise FormatError(
                f"{self.path}: modalloy cannot compose over a model of type "
                f"{config.model_type!r}: {problem}",
                path=self.path,
            )
        return config

    def model(self, dtype: "torch.dtype | str" = "auto") -> "PreTrainedModel":
        """Return the model in eval mode on the CPU.

        Args:
            dtype: Of the weights; ``"auto"`` is the one that they are stored in.

        Raises:
            FormatError: Tensors that the architecture has are not in the files, its configuration
                is that of no model, or parents cannot be composed over it.
        """
        from transformers import AutoModelForCausalLM

        safe_index(self.path)
        config = self.config()
        kind: Any = AutoModelForCausalLM
        try:
            model, report = kind.from_pretrained(
                self.path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except configuration_errors() as error:
            raise FormatError(
                f"{self.path} cannot be opened as a {config.model_type!r} model: {error!r}; its "
                "config.json or generation_config.json is damaged, fetch the base again",
                path=self.path,
            ) from error
        lacking = sorted(report["missing_keys"])
        if lacking:
            raise FormatError(
                f"{self.path} lacks {len(lacking)} tensors of {type(model).__name__}, such as "
                f"{lacking[0]!r}; fetch the base again",
                path=self.path,
            )
        loaded: PreTrainedModel = model.eval()
        return loaded

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return its tokenizer.

        Raises:
            FormatError: It is missing, damaged, or needs code of its own.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                self.path, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # that is what tokenizers raises, and no narrower kind
            raise FormatError(
                f"{self.path}: its tokenizer cannot be opened; files are missing or damaged, or it "
                f"needs code of its own, which is never run ({error})",
                path=self.path,
            ) from error
        return tokenizer


def resolve_base(
    base: str | Path,
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Base:
    """Find a base by directory, Hub id or name, and check that it can be one.

    Args:
        base: A Hugging Face directory; a Hub id, ``"org/name"``, which is fetched unless such a
            directory exists; or ``"smollm2"``, the embedded default.
        revision: Commit, tag or branch, for a Hub id.
        progress: Called with a line of text before something slow.

    Returns:
        The base. Its weights have not been read.

    Raises:
        UnknownNameError: ``base`` is none of these.
        MissingComponentError: It cannot be fetched, or its package is not installed.
        FormatError: It is not a decoder-only model in safetensors.
        SpecError: A revision is given, and the base is no Hub id.
        UnsafePathError: Its index leads outside its directory.
    """
    directory = Path(base).expanduser()
    check_revision(revision, base, fetched=base != SMOLLM2 and not directory.is_dir())
    if base == SMOLLM2:
        found = Base(SMOLLM2, smollm2(progress))
    elif directory.is_dir():
        found = Base(directory.resolve().name, directory)
    elif isinstance(base, str) and HUB_ID.fullmatch(base):
        found = Base(base, _fetch(base, revision))
    else:
        raise UnknownNameError(
            "base",
            str(base),
            [SMOLLM2],
            hint="Give an existing Hugging Face directory, a Hub id 'org/name', or a known name.",
        )
    load_config(found.path)
    safe_index(found.path)
    return found


def check_revision(revision: str | None, of: str | Path, *, fetched: bool) -> None:
    """Check that a revision, if any, can be one and is of something that the Hub has.

    Args:
        revision: Commit, tag or branch.
        of: What it is of, for the message.
        fetched: Whether that is fetched from the Hub.

    Raises:
        SpecError: It would change nothing, or cannot name a revision.
    """
    if revision is None:
        return
    if not fetched:
        raise SpecError(
            f"revision {revision!r} is given, and {str(of)!r} is not fetched from the Hub; leave "
            "it out",
            subject="revision",
        )
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise SpecError(
            f"revision {revision!r} is no commit, tag or branch; give one as the Hub shows it, "
            "such as 'main' or 'v1.0'",
            subject="revision",
        )


def _fetch(hub_id: str, revision: str | None) -> Path:
    """Fetch a Hub repository's configuration, tokenizer and safetensors; return its snapshot."""
    at = "" if revision is None else f" at revision {revision!r}"
    problem = f"the base {hub_id!r}{at} cannot be opened (the base 'smollm2' needs no Hub)"
    return fetch(problem, hub_id, revision, _HUB_FILES, _HUB_EXTRAS)


def fingerprint(directory: Path) -> Fingerprint:
    """Return what identifies the model in ``directory``.

    Neither the sharding nor the stored precision matters: copies in float32 and bfloat16 of
    weights that bfloat16 can hold agree. Nor does a tied head, stored or left out. Any training
    of a tensor shows, unless it spares all of up to 1,024 elements spread evenly over it.

    Raises:
        FormatError: The directory does not hold a decoder-only model in safetensors.
    """
    import torch

    from modalloy.checkpoints.reader import CheckpointReader

    config = load_config(directory)
    structure, content = hashlib.sha256(), hashlib.sha256()
    with CheckpointReader(directory) as reader:
        names = [n for n in reader.names() if n != "lm_head.weight" or not _is_tied(config)]
        shapes = [[name, list(reader.shape(name))] for name in names]
        structure.update(json.dumps(shapes, separators=(",", ":")).encode())
        for name in names:
            sample = reader.sample(name, SAMPLES).to(torch.bfloat16)
            content.update(name.encode() + b"\0")
            content.update(sample.view(torch.int16).numpy().astype("<i2").tobytes())
    return Fingerprint(
        architecture=read_config(directory)["architectures"][0],
        structure=structure.hexdigest(),
        content=content.hexdigest(),
    )


def _is_tied(config: "PretrainedConfig") -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def check_fingerprint(parent_name: str, expected: Fingerprint, found: Fingerprint) -> None:
    """Check that a parent is put on the base that it was tuned from.

    Args:
        parent_name: For the message.
        expected: From the parent's manifest.
        found: Of the base at hand.

    Raises:
        BaseMismatchError: They differ.
    """
    if expected == found:
        return
    if expected.architecture != found.architecture:
        difference = "the architecture differs: this is another kind of model"
    elif expected.structure != found.structure:
        difference = (
            "the names and shapes of the tensors differ: this is a model of another size, or its "
            "vocabulary was resized"
        )
    else:
        difference = (
            "the weights differ: this is a fine-tuned, merged, quantised or newer version of the "
            "same model"
        )
    raise BaseMismatchError(
        f"parent {parent_name!r} was tuned from another base: expected {expected}, found {found} "
        f"(architecture/structure/weights); {difference}. Take the base that its parent.json "
        "names, or a parent that was tuned from this one",
        parent=parent_name,
        expected=str(expected),
        found=str(found),
    )
