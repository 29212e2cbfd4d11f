"""Reading a base's ``config.json``, which a stranger wrote.

What is read is what transformers itself implements; no key of the file can make code run that is
not installed already.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modalloy.errors import FormatError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG_FILE = "config.json"

# What a file must not decide: which code runs. The caller chooses an attention implementation.
_CODE_KEYS = re.compile(r"auto_map|trust_remote_code|_?(attn|experts)_implementation\w*")


def read_config(directory: Path) -> dict[str, Any]:
    """Read ``config.json`` and leave out, at every depth, what would choose the code that runs.

    Raises:
        FormatError: It is missing, or is not a JSON object.
    """
    path = directory / CONFIG_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(
            f"{directory} is not a Hugging Face model directory: it has no {CONFIG_FILE}",
            path=path,
        ) from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}", path=path) from error
    if not isinstance(data, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(data).__name__}", path=path)
    sanitised: dict[str, Any] = _sanitise(data)
    return sanitised


def _sanitise(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _sanitise(v) for k, v in value.items() if not _CODE_KEYS.fullmatch(k)}
    if isinstance(value, list):
        return [_sanitise(item) for item in value]
    return value


def load_config(directory: Path) -> "PretrainedConfig":
    """Return the configuration of the decoder-only model in ``directory``.

    Raises:
        FormatError: It is not one that transformers itself implements, or it is quantised.
    """
    from huggingface_hub.errors import StrictDataclassError
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
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise FormatError(
            f"{path} does not configure a {kind} model: {error}", path=path
        ) from error
    if (
        architecture not in known
        or not architecture.endswith(("ForCausalLM", "LMHeadModel"))
        or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        or getattr(config, "is_encoder_decoder", False)
    ):
        raise FormatError(
            f"{path}: {architecture} is not a decoder-only language model of type {kind!r}; "
            "modalloy composes over those, such as LlamaForCausalLM or Qwen3ForCausalLM",
            path=path,
        )
    if "quantization_config" in data:
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
