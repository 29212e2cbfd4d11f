"""Reading a base's ``config.json``, which a stranger wrote.

What is read is what transformers itself implements; no key of the file can make code run that is
not installed already.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modalloy.checkpoints.safe_files import check_files, read_object
from modalloy.errors import FormatError
from modalloy.families import base_instead, is_multimodal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG_FILE = "config.json"

_QUANTISED = "quantization_config"

# What a file must not decide: which code runs, which weights are read in place of those that were
# checked, and what a configuration's own keys mean. The caller chooses an attention implementation.
_CODE_KEYS = re.compile(
    r"auto_map|trust_remote_code|_?(attn|experts)_implementation\w*|transformers_weights"
    r"|use_kernels|(kernel|fusion|distributed)_config|attribute_map|sub_configs|extra_files"
)
_DTYPE_KEYS = ("dtype", "torch_dtype")
# transformers takes whatever attribute of torch has the name.
_DTYPE = re.compile(r"(torch\.)?(bfloat16|float(16|32|64|8_e4m3fn|8_e5m2)|half|float|auto)")

# How transformers writes a float that JSON has no word for, such as a mixer's time_step_limit.
_FLOAT, _FLOATS = "__float__", ("Infinity", "-Infinity", "NaN")


def read_config(directory: Path) -> dict[str, Any]:
    """Read ``config.json`` and leave out, at every depth, what would choose the code that runs.

    Raises:
        FormatError: It is missing, is not a JSON object, or names a dtype that is none; or what
            stands beside it is not as it should be.
        UnsafePathError: A file beside it, or a name in one, leads outside ``directory``.
    """
    path = directory / CONFIG_FILE
    check_files(directory)
    try:
        data = read_object(path)
    except FileNotFoundError as error:
        raise FormatError(
            f"{directory} is not a Hugging Face model directory: it has no {CONFIG_FILE}",
            path=path,
        ) from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
    _check_dtypes(data, path)
    sanitised: dict[str, Any] = sanitise(data)
    return sanitised


def configuration_errors() -> tuple[type[Exception], ...]:
    """Return what transformers raises where a configuration is none, or none of a model.

    Hundreds of classes read one, each of which checks in its own way or not at all.
    """
    from huggingface_hub.errors import StrictDataclassError

    return (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        StrictDataclassError,
        TypeError,
        ValueError,
    )


def is_quantised(value: Any) -> bool:
    """Whether a configuration asks for a quantiser, at any depth: that is code of its choice."""
    inner = value.values() if isinstance(value, dict) else value
    return (isinstance(value, dict) and _QUANTISED in value) or any(
        is_quantised(one) for one in inner if isinstance(one, dict | list)
    )


def _check_dtypes(value: Any, path: Path) -> None:
    """Refuse, at every depth, a dtype by a name that is none.

    Raises:
        FormatError: There is one.
    """
    if isinstance(value, dict):
        for key in _DTYPE_KEYS:
            name = value.get(key)
            known = not isinstance(name, str) or _DTYPE.fullmatch(name)
            if not known or isinstance(name, list | float):
                raise FormatError(
                    f"{path}: {key} must be such as bfloat16 or float32, found {name!r}", path=path
                )
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            _check_dtypes(inner, path)


def sanitise(value: Any) -> Any:
    """Return JSON data without the keys, at any depth, that would choose the code that runs."""
    if isinstance(value, dict):
        if value.keys() == {_FLOAT} and value[_FLOAT] in _FLOATS:
            return float(value[_FLOAT])
        # Settings in memory, which are given here, too, may have numbers for keys.
        return {k: sanitise(v) for k, v in value.items() if not _CODE_KEYS.fullmatch(str(k))}
    if isinstance(value, list):
        return [sanitise(item) for item in value]
    return value


def load_config(directory: Path) -> "PretrainedConfig":
    """Return the configuration of the decoder-only model in ``directory``.

    Raises:
        FormatError: It is not one that transformers itself implements, or it is quantised.
    """
    from transformers import CONFIG_MAPPING, __version__
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    path = directory / CONFIG_FILE
    data = read_config(directory)
    architecture, kind = _architecture(data, path), str(data.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise FormatError(
            f"{path}: model type {kind!r} ({architecture}) is not part of transformers "
            f"{__version__}; code that comes with a model is never run. Upgrade transformers if "
            "it has it by now, or take another base",
            path=path,
        )
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, ())
    known = {causal} if isinstance(causal, str) else set(causal)
    try:
        config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(data)
        decoder = config.get_text_config(decoder=True)
    except configuration_errors() as error:
        raise FormatError(
            f"{path} does not configure a {kind} model: {error}", path=path
        ) from error
    if (
        architecture not in known
        or not architecture.endswith(("ForCausalLM", "LMHeadModel"))
        or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        or getattr(config, "is_encoder_decoder", False)
        or is_multimodal(architecture, kind)
        or decoder is not config  # another configuration within it would be used
    ):
        raise FormatError(
            f"{path}: {architecture} is not a decoder-only language model of type {kind!r}; "
            + base_instead(architecture, kind),
            path=path,
        )
    if is_quantised(data):
        raise FormatError(
            f"{path}: the base is quantised; deltas are added to plain weights, take the "
            "unquantised model that it was made from",
            path=path,
        )
    return config


def _architecture(data: dict[str, Any], path: Path) -> str:
    architectures = data.get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        return architectures[0]
    raise FormatError(
        f"{path}: 'architectures' must name the model's class, found {architectures!r}", path=path
    )
