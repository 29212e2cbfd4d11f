"""Which architectures a composition can stand on, and why a delta finds no place in a base.

A composition asks three things of a base: that it runs on embeddings alone, that its layers see
each token of a pass once, and that what a delta reaches is a linear layer which the base itself
calls. Most decoder-only models of transformers keep to that; what is said here of those that do
not was found by composing tiny ones and comparing them with weights that hold the delta.
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

_RECURRENT = (
    "all its layers keep a state in place of the tokens that they have read, so that in cached "
    "decoding nothing tells which streams a prompt was made of; take a base with attention layers"
)
_LOOKS_UP = (
    "its layers look token ids up, and what takes the place of a placeholder has none: a base must "
    "run on embeddings alone"
)
_PROBLEMS: Mapping[str, str] = MappingProxyType(
    {
        "falcon_mamba": _RECURRENT,
        "mamba": _RECURRENT,
        "mamba2": _RECURRENT,
        "rwkv": _RECURRENT,
        "cpmant": _LOOKS_UP,
        "deepseek_v4": _LOOKS_UP,
        "gemma3n_text": _LOOKS_UP,
        "minimax": "it decodes with a cache of its own, which no other model can hand it",
    }
)

_PARTS = ("q_proj", "k_proj", "v_proj")
_WHOLES = ("qkv_proj", "query_key_value", "Wqkv", "c_attn")
"""What implementations call those layers in one; the order of its rows differs between them."""

# Linear layers that the base does not run on the tokens of a pass, by their last name.
_UNREACHABLE: Mapping[str, str] = MappingProxyType(
    {
        # Jamba's and Mamba's mixers multiply by its weight themselves; Doge gives it cached values.
        "dt_proj": "the base reads its weight past the layer, or runs it on cached tokens too",
        # Multi-head latent attention (arXiv 2405.04434, section 2.1) caches what it expands.
        "kv_b_proj": "the base runs it on cached tokens too, whose streams a pass does not hold",
    }
)


def base_problem(config: "PretrainedConfig") -> str | None:
    """Say why a composition over a base would go wrong, or ``None`` where nothing is known.

    Args:
        config: Of a decoder-only model.
    """
    kind = str(config.model_type)
    if kind.startswith("gemma4") and getattr(config, "hidden_size_per_layer_input", None):
        return _LOOKS_UP
    return _PROBLEMS.get(kind)


def is_multimodal(architecture: str, kind: str) -> bool:
    """Tell whether transformers' class of that name takes images, sound or the like beside text.

    Args:
        architecture: Name of the class.
        kind: Its model type.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    names = MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.get(kind, ())
    return architecture in ((names,) if isinstance(names, str) else names)


def base_instead(architecture: str, kind: str) -> str:
    """Say what to take as the base in place of a model that is no decoder-only one.

    Args:
        architecture: Name of its class.
        kind: Its model type.
    """
    if is_multimodal(architecture, kind):
        return (
            "it is a multimodal model around one. Take as the base the language model that it was "
            "tuned from, and make what was added a parent of it with `modalloy convert`"
        )
    return "modalloy composes over those, such as LlamaForCausalLM or Qwen3ForCausalLM"


def explain_absence(module: str, model: "nn.Module") -> str | None:
    """Say why a low-rank delta of a module has no place in a base; ``None`` where it has one.

    Args:
        module: Its name in the adapter, such as ``"model.layers.0.self_attn.q_proj"``.
        model: The base as transformers opened it, its layers not yet replaced.
    """
    from torch import nn

    found, rest = _descend(model, module)
    experts = _expert_tensor(found, module)
    if experts:
        return (
            f"experts are one tensor ({experts}), not linear layers; leave them out of the parent "
            "(target_modules of its attention), or merge whole models with `modalloy merge`"
        )
    if rest:
        return _explain_missing(module, model, found, rest)
    if type(found) is nn.Linear:
        reason = _UNREACHABLE.get(module.rpartition(".")[2])
        return f"{reason}; leave it out of the parent's target_modules" if reason else None
    kind = type(found).__name__
    if kind == "Conv1D":
        return (
            "it is a Conv1D, which holds its weight transposed, as models of GPT-2's kind do; "
            "deltas by stream are of linear layers: take a base that has those"
        )
    return f"it is a {kind}, not a linear layer; leave it out of the parent's target_modules"


def _descend(model: "nn.Module", name: str) -> tuple["nn.Module", list[str]]:
    """Return the deepest module on the way to ``name``, and what is left of the name there."""
    found, rest = model, name.split(".")
    while rest:
        child = dict(found.named_children()).get(rest[0])
        if child is None:
            break
        found, rest = child, rest[1:]
    return found, rest


def _expert_tensor(found: "nn.Module", module: str) -> str | None:
    """Return name and shape of the tensor that holds all experts, if ``module`` is of those."""
    stacked = [
        (name, tuple(tensor.shape))
        for name, tensor in found.named_parameters()
        if tensor.ndim == 3  # noqa: PLR2004
        and ("expert" in name or "expert" in type(found).__name__.lower())
    ]
    if not stacked or "expert" not in f"{module} {type(found).__name__}".lower():
        return None
    last = module.rpartition(".")[2]
    name, shape = next((one for one in stacked if last in one[0]), stacked[0])
    return f"{name} {shape}"


def _explain_missing(module: str, model: "nn.Module", found: "nn.Module", rest: list[str]) -> str:
    here = {name for name, _ in found.named_children()} if len(rest) == 1 else set()
    whole = next((name for name in _WHOLES if name in here), None)
    if rest[0] in _PARTS and whole:
        return (
            f"the base fuses q_proj, k_proj and v_proj into {whole}, and the adapter was made for "
            "an implementation that keeps them apart. Tune the parent on this base, or join their "
            f"pairs into one of {whole}: A one above the other, B block-diagonal, its rows in the "
            "order of the fused layer's"
        )
    if rest[0] in _WHOLES and here.issuperset(_PARTS):
        return (
            "the base keeps q_proj, k_proj and v_proj apart, and the adapter was made for an "
            f"implementation that fuses them into {rest[0]}. Tune the parent on this base, or "
            "split the pair: each of them takes all of A, and its own rows of B"
        )
    from torch import nn

    linears = [name for name, one in model.named_modules() if type(one) is nn.Linear]
    close = difflib.get_close_matches(module, linears, n=1)
    hint = f"; the closest is {close[0]!r}" if close else ""
    return (
        f"the base has no linear layer of that name{hint}. An adapter names the modules of the "
        f"model that it was tuned in: tune the parent on this base, {type(model).__name__}"
    )
