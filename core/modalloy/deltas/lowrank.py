"""Low-rank deltas, read from and written to PEFT's LoRA format.

A pair changes one linear layer by ``scale * B @ A`` with ``A (R, I)`` and ``B (O, R)``
(Hu et al., arXiv 2106.09685). Rank and alpha patterns and rank-stabilised scaling
(arXiv 2312.03732) are honoured; what cannot be expressed as such pairs is refused.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modalloy.checkpoints.safe_files import read_object
from modalloy.checkpoints.safe_index import check_inside
from modalloy.errors import DeltaError, FormatError

CONFIG_FILE = "adapter_config.json"
_GREATEST = 1e30
"""What a rank or alpha may be at most; scales are far less."""
WEIGHTS_FILE = "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight")

# Settings of PEFT's LoraConfig under which a layer is not W + scale * B A, or more than that.
_REFUSED = MappingProxyType(
    {
        "use_dora": "DoRA rescales the whole weight by a learned magnitude",
        "use_qalora": "QA-LoRA pools the input in groups",
        "lora_bias": "lora_B has a bias",
        "modules_to_save": "whole modules were trained beside the pairs",
        "trainable_token_indices": "rows of the embedding were trained beside the pairs",
        "layer_replication": "layers of the base were replicated",
        "target_parameters": "parameters outside linear layers were tuned",
        "megatron_config": "layers were split for Megatron",
        "alora_invocation_tokens": "the adapter is switched on by tokens",
        "fan_in_fan_out": "weights are stored transposed",
        "use_bdlora": "the pairs are block-diagonal",
        "arrow_config": "several adapters are routed between",
        "kasa_config": "the base's singular values were changed",
        "velora_config": "the pairs act on a projection of their input",
        "monteclora_config": "the pairs are drawn at random",
    }
)

# Initialisations that subtract the pairs' first value from the base: it is another base then.
_REBASING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@attrs.frozen(eq=False)
class LowRankPair:
    """The delta of one linear layer.

    Attributes:
        A: ``(R, I)``.
        B: ``(O, R)``.
        scale: Factor of the product, alpha / R in LoRA.
    """

    A: torch.Tensor
    B: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """R."""
        return self.A.shape[0]

    def dense(self) -> torch.Tensor:
        """Return ``scale * B @ A`` ``(O, I)`` in float32."""
        return self.scale * (self.B.float() @ self.A.float())

    def norm(self) -> float:
        """Return the Frobenius norm of the product, without forming it.

        ``|B A|_F^2 = tr((B^T B)(A A^T))``: R by R instead of O by I.
        """
        a, b = self.A.double(), self.B.double()
        square = torch.sum((b.T @ b) * (a @ a.T)).item()
        return abs(self.scale) * math.sqrt(max(square, 0.0))


def _by_name(pairs: Mapping[str, LowRankPair]) -> Mapping[str, LowRankPair]:
    return MappingProxyType(dict(sorted(pairs.items())))


def _tensors_by_name(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return MappingProxyType(dict(sorted(tensors.items())))


@attrs.frozen(eq=False)
class LowRankDelta:
    """Pairs by module name of the base's causal language model, sorted by name.

    Attributes:
        pairs: Such as ``{"model.layers.0.self_attn.q_proj": LowRankPair(...)}``.
        tensors: Whole deltas, float32, of what no pair can change (norms, biases, embeddings), by
            the tensor's name, such as ``"model.norm.weight"``.
    """

    pairs: Mapping[str, LowRankPair] = attrs.field(converter=_by_name)
    tensors: Mapping[str, torch.Tensor] = attrs.field(factory=dict, converter=_tensors_by_name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pairs)

    @property
    def count(self) -> int:
        """Number of stored tensors."""
        return 2 * len(self.pairs) + len(self.tensors)

    @property
    def parameters(self) -> int:
        """Number of stored values."""
        pairs = sum(pair.A.numel() + pair.B.numel() for pair in self.pairs.values())
        return pairs + sum(tensor.numel() for tensor in self.tensors.values())

    def norm(self) -> float:
        """Return the Frobenius norm over all of it."""
        sizes = [pair.norm() for pair in self.pairs.values()]
        sizes += [float(tensor.norm()) for tensor in self.tensors.values()]
        return math.sqrt(sum(size**2 for size in sizes))


def read_adapter(directory: Path) -> LowRankDelta:
    """Read a PEFT LoRA adapter directory.

    Raises:
        FormatError: A file is missing or malformed, or A and B do not belong together.
        DeltaError: The adapter is not a plain LoRA.
    """
    path = directory / WEIGHTS_FILE
    for name, suffix in ((WEIGHTS_FILE, ".safetensors"), (CONFIG_FILE, ".json")):
        check_inside(directory, name, directory, suffix=suffix)
    config = _read_config(directory)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FormatError(
            f"{path} cannot be read as safetensors: {error}. An adapter in adapter_model.bin "
            "must be saved as safetensors first",
            path=path,
        ) from error
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(tensors):
        match = _KEY.fullmatch(key)
        if match is None:
            raise DeltaError(
                f"{path}: tensor {key!r} is not a LoRA factor of a linear layer "
                "(base_model.model.<module>.lora_A.weight); it would be lost",
                tensor=key,
            )
        factors.setdefault(match["module"], {})[match["factor"]] = tensors[key]
    if not factors:
        raise FormatError(f"{path} holds no tensors; the adapter is empty", path=path)
    return LowRankDelta({name: _pair(path, config, name, ab) for name, ab in factors.items()})


def write_adapter(directory: Path, delta: LowRankDelta, *, base_id: str) -> None:
    """Write ``delta`` as a PEFT LoRA adapter that ``peft`` itself opens.

    Args:
        directory: Created where missing.
        delta: What to write; tensors keep their dtype.
        base_id: ``base_model_name_or_path`` of the adapter's configuration.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ranks = {name: pair.rank for name, pair in delta.pairs.items()}
    alphas = {name: pair.scale * pair.rank for name, pair in delta.pairs.items()}
    rank, alpha = (_most_common(values) for values in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_id,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        # Full names: PEFT would also put pairs on layers that merely end in a shorter one.
        "target_modules": list(delta.pairs),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    tensors = {
        f"base_model.model.{name}.lora_{factor}.weight": getattr(pair, factor).contiguous()
        for name, pair in delta.pairs.items()
        for factor in "AB"
    }
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    try:
        config = read_object(path)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
    kind = config.get("peft_type")
    if kind != "LORA":
        raise DeltaError(f"{path}: peft_type is {kind!r}; only 'LORA' adapters are low-rank deltas")
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise DeltaError(
                f"{path}: {key} is set ({reason}), which a low-rank delta cannot hold; merge "
                "the adapter into its base first"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_REBASING):
        raise DeltaError(
            f"{path}: init_lora_weights is {start!r}, which changed the base's own weights when "
            "training began; convert the adapter to plain LoRA first (PEFT's save_pretrained "
            "with path_initial_model_for_weight_conversion)"
        )
    if config.get("bias", "none") != "none":
        raise DeltaError(
            f"{path}: bias is {config['bias']!r}; biases of the base were tuned, which a "
            "low-rank delta cannot hold; merge the adapter into its base first"
        )
    _check_numbers(path, config)
    return config


def _check_numbers(path: Path, config: Mapping[str, Any]) -> None:
    """Check the ranks and alphas, by default and by pattern."""
    for key, patterns, kinds in (
        ("r", "rank_pattern", int),
        ("lora_alpha", "alpha_pattern", int | float),
    ):
        table = config.get(patterns) or {}
        if not isinstance(table, dict):
            raise FormatError(f"{path}: {patterns} must be a mapping, found {table!r}", path=path)
        for name, value in {key: config.get(key), **table}.items():
            number = isinstance(value, kinds) and not isinstance(value, bool)
            if not number or not abs(value) < _GREATEST or (kinds is int and value < 1):
                what = "a positive integer" if kinds is int else "a finite number"
                raise FormatError(f"{path}: {name} must be {what}, found {value!r}", path=path)
        for pattern in table:
            try:
                re.compile(pattern)
            except re.error as error:
                raise FormatError(
                    f"{path}: {patterns} has {pattern!r}, which is no regular expression: {error}",
                    path=path,
                ) from error


def _pair(
    path: Path, config: Mapping[str, Any], name: str, factors: Mapping[str, torch.Tensor]
) -> LowRankPair:
    """Put A and B together and work out their scale as PEFT does."""
    missing = {"A", "B"} - factors.keys()
    if missing:
        raise FormatError(f"{path}: {name} has no lora_{missing.pop()}", path=path)
    a, b = factors["A"], factors["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:  # noqa: PLR2004
        raise FormatError(
            f"{path}: {name}: lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} do not "
            "multiply; expected (R, I) and (O, R)",
            path=path,
        )
    rank = _by_pattern(config.get("rank_pattern"), name, config["r"])
    if rank != a.shape[0]:
        raise FormatError(
            f"{path}: {name} has rank {a.shape[0]}, {CONFIG_FILE} says {rank}", path=path
        )
    alpha = _by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
    return LowRankPair(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of ``name``, as PEFT does."""
    for pattern, value in (patterns or {}).items():
        if re.search(r"\)\s*[*+{]", pattern):
            raise DeltaError(
                f"{CONFIG_FILE}: the pattern {pattern!r} repeats a group, which may take forever "
                "to match; write module names out"
            )
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]
