"""Composed model against its base, and against applying every adapter to every token.

Run ``python benchmarks/composed_vs_base.py [--base DIR] [--json FILE]``. All three run the same
embeddings in one process, one after the other in every round, so that a busy machine slows them
alike; the table gives the median time and the median of the rounds' ratios to the base.

The simple rule is what one gets from hooking adapters on: for each layer and each adapter,
``mask * scale * B(A(x))`` over all tokens.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import modalloy
from modalloy.base import resolve_base
from modalloy.cli.output import print_line, print_table
from modalloy.composition.caches import CACHE
from modalloy.composition.folding import FOLD_AFTER, FOLD_LIMIT, Folding, unfold_text
from modalloy.composition.layers import StreamLinear

SHAPES = (("1 x 64", 1, 64), ("1 x 512", 1, 512), ("8 x 64", 8, 64))
"""Batches: name, rows, tokens."""

KEPT = "composed, kept folded"
KINDS = ("base", "composed", KEPT, "composed, unfolded", "simple rule")
"""What is timed; decoding runs on folded weights after the first tokens, unless unfolded, and where
weights are kept folded for many prompts of one kind, so do the prompts' text tokens."""


class SimpleRule:
    """The base with every adapter applied to every token under a mask."""

    def __init__(self, composed: Any, base: Any) -> None:
        self.model = base
        self.masks: dict[str, torch.Tensor] = {}
        names = list(composed.config.modalities)
        for name, layer in composed.language_model.named_modules():
            if isinstance(layer, StreamLinear):
                module = base.get_submodule(name)
                module.register_forward_hook(self._hook(adapters_of(layer, names)))

    def _hook(self, adapters: list[tuple[str, Any, Any, float]]) -> Callable[..., torch.Tensor]:
        def add(_: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            for key, a, b, scale in adapters:
                out = out + self.masks[key] * (args[0] @ a.T @ b.T * scale)
            return out

        return add

    def prepare(self, composed: Any, types: torch.Tensor) -> None:
        """Set the masks ``(B, T, 1)`` for the tokens of a pass."""
        dtype = composed.dtype
        present = frozenset(n for n, v in composed.type_ids.items() if (types == v).any())
        row = composed.coefficients.row(present)
        for (name, value), weight in zip(composed.type_ids.items(), row, strict=True):
            self.masks[f"text {name}"] = ((types == 0)[..., None] * weight).to(dtype)
            self.masks[f"own {name}"] = (types == value)[..., None].to(dtype)


def adapters_of(layer: StreamLinear, names: list[str]) -> list[tuple[str, Any, Any, float]]:
    """Return (mask, A, B, scale) of every adapter of a layer."""
    found: list[tuple[str, Any, Any, float]] = []
    start, text_a, text_b = 0, layer.text_A, layer.text_B
    for index, rank, scale in layer.text_layout:
        stop = start + rank
        if text_a is not None and text_b is not None:
            b = text_b[:, start:stop].contiguous()
            found.append((f"text {names[index]}", text_a[start:stop], b, scale))
        start = stop
    for name in layer.modality_A:
        a, b = layer.modality_A[name], layer.modality_B[name]
        found.append((f"own {name}", a, b, layer.modality_scale[name]))
    return found


def prompt(model: Any, rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random embeddings ``(B, T, D)`` and types ``(B, T)`` with one input of each kind."""
    generator = torch.Generator().manual_seed(0)
    hidden = model.config.get_text_config().hidden_size
    embeds = torch.randn(rows, tokens, hidden, generator=generator).to(model.dtype) * 0.1
    types = torch.zeros(rows, tokens, dtype=torch.long)
    start = 4
    for name, entry in model.config.modalities.items():
        types[:, start : start + entry["tokens"]] = model.type_ids[name]
        start += entry["tokens"] + 2
    return embeds, types


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def settle(composed: Any, *, fold: bool) -> None:
    """Forget folded weights, and allow or forbid to fold them again."""
    unfold_text(composed.language_model)
    composed.folding = Folding(composed.language_model)
    composed.folding.limit = FOLD_LIMIT if fold else 0


@torch.no_grad()
def measure(
    composed: Any, base: Any, simple: SimpleRule, rows: int, tokens: int, steps: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return median seconds and ratios to the base, prefill and decode."""
    embeds, types = prompt(composed, rows, tokens)
    zero = torch.zeros(rows, 1, dtype=torch.long)

    def prefill(kind: str) -> Any:
        if kind.startswith("composed"):
            return composed(inputs_embeds=embeds, mm_token_type_ids=types, logits_to_keep=1)
        model = simple.model if kind == "simple rule" else base
        return model(inputs_embeds=embeds, logits_to_keep=1)

    def decode(kind: str, cache: Any) -> None:
        # The first token of the prompt is text, and so are those decoded.
        simple.masks = {key: mask[:, :1].clone() for key, mask in simple.masks.items()}
        history = types
        for _ in range(steps):
            if kind.startswith("composed"):
                history = torch.cat([history, zero], dim=1)
                composed(input_ids=zero, cache=cache, mm_token_type_ids=history)
            else:
                model = simple.model if kind == "simple rule" else base
                model(input_ids=zero, **{CACHE: cache})

    times: dict[str, dict[str, list[float]]] = {"prefill": {}, "decode": {}}
    for turn in range(rounds + 1):
        for kind in KINDS:
            settle(composed, fold=kind in ("composed", KEPT))
            simple.prepare(composed, types)
            kept = composed.folded_for(composed.type_ids) if kind == KEPT else nullcontext()
            with kept:
                seconds = timed(lambda kind=kind: prefill(kind))  # type: ignore[misc]
                cache = prefill(kind)[CACHE]
                if kind == "composed":
                    decode(kind, copy.deepcopy(cache))  # tokens until the weights are folded
                token = timed(lambda k=kind, c=cache: decode(k, c))  # type: ignore[misc]
            if turn:  # the first round warms up
                times["prefill"].setdefault(kind, []).append(seconds)
                times["decode"].setdefault(kind, []).append(token / steps)
    return {phase: summarise(found) for phase, found in times.items()}


def summarise(found: dict[str, list[float]]) -> dict[str, float]:
    """Return medians of seconds, and of each round's ratio to the base."""
    row = {f"{kind} ms": 1000 * statistics.median(values) for kind, values in found.items()}
    for kind, values in found.items():
        ratios = [v / b for v, b in zip(values, found["base"], strict=True)]
        row[f"{kind} / base"] = statistics.median(ratios)
    return row


@torch.no_grad()
def check(composed: Any, simple: SimpleRule) -> float:
    """Return the largest difference of logits between the two ways, relative to their spread."""
    embeds, types = prompt(composed, 2, 48)
    simple.prepare(composed, types)
    ours = composed(inputs_embeds=embeds, mm_token_type_ids=types).logits.float()
    theirs = simple.model(inputs_embeds=embeds).logits.float()
    return float((ours - theirs).abs().max() / theirs.std())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=FOLD_AFTER, help="tokens decoded per round")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    composed, _ = modalloy.compose(args.base, dtype=args.dtype)
    opened = resolve_base(args.base)
    base, hooked = opened.model(composed.dtype), opened.model(composed.dtype)
    simple = SimpleRule(composed, hooked)
    exact, _ = modalloy.compose(args.base, dtype=torch.float32)
    difference = check(exact, SimpleRule(exact, opened.model(torch.float32)))
    if difference > 1e-3:  # noqa: PLR2004  # float32 sums in another order, through 30 layers
        raise SystemExit(f"the simple rule computes something else (off by {difference:.2e})")
    results: dict[str, Any] = {}
    for name, rows, tokens in SHAPES:
        found = measure(composed, base, simple, rows, tokens, args.steps, args.rounds)
        results |= {f"{phase} {name}": row for phase, row in found.items()}
    columns = list(next(iter(results.values())))
    print_table(
        f"{args.base}, {composed.dtype}, {torch.get_num_threads()} threads, modalities: "
        f"{', '.join(composed.config.modalities)}; median of {args.rounds} rounds",
        ("", *columns),
        [(name, *(f"{row[c]:.2f}" for c in columns)) for name, row in results.items()],
    )
    print_line(f"float32 logits of both ways agree to {difference:.1e} of their spread")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
