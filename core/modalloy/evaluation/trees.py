"""Options as a tree of tokens behind their prompt, so that one pass scores all of them.

Options begin alike ("It is a ..."), so their tokens form a tree. The tree stands behind the prompt
in the same row: each of its tokens attends to the prompt and to those before it in its own option,
and has the position that it would have there alone. Nothing is copied, and what options share is
computed once. Likewise the text that all prompts of a batch begin with (the system message) is
computed once and serves every row from the cache. The likelihoods are those of separate passes.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import attrs
import torch

from modalloy.composition.caches import CACHE
from modalloy.composition.features import FeatureStore
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.evaluation.prompts import Prompt, pad_left
from modalloy.modality import TEXT_TYPE_ID


@attrs.frozen(eq=False)
class Tree:
    """The tokens of a question's options, what they share held once.

    Attributes:
        tokens: Id of each node.
        above: Node before it; -1 for the prompt's last token.
        depth: Nodes above it.
        steps: ``(option, node, id)``: after ``node``, the option goes on with ``id``.
    """

    tokens: list[int]
    above: list[int]
    depth: list[int]
    steps: list[tuple[int, int, int]]


def grow(options: Sequence[Sequence[int]]) -> Tree:
    """Return the tree of options; the last token of an option is foretold, never read."""
    tree = Tree([], [], [], [])
    known: dict[tuple[int, int], int] = {}
    for number, option in enumerate(options):
        node = -1
        for index, token in enumerate(option):
            tree.steps.append((number, node, token))
            if index == len(option) - 1:
                break
            if (node, token) not in known:
                known[node, token] = len(tree.tokens)
                tree.tokens.append(token)
                tree.above.append(node)
                tree.depth.append(0 if node < 0 else tree.depth[node] + 1)
            node = known[node, token]
    return tree


def takes_trees(model: ModalloyForConditionalGeneration) -> bool:
    """Whether the base lets every token attend where a mask says, at the position it is given.

    That holds for full attention with rotary positions, on implementations that take a mask of
    all pairs. Windows, recurrent layers, ALiBi and flash attention need the other way.
    """
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "sliding_window", None)
    windowed = bool(window) and getattr(config, "use_sliding_window", True)
    rotary = any(getattr(config, name, None) for name in ("rope_parameters", "rope_theta"))
    forward = inspect.signature(type(model.language_model).forward).parameters
    return (
        set(layers) == {"full_attention"}
        and not windowed
        and rotary
        and "position_ids" in forward
        and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
    )


@attrs.frozen(eq=False)
class Opening:
    """The text that the prompts of a group begin with, in a cache of one row.

    Attributes:
        length: Its tokens; 0 where nothing is shared.
        cache: Their keys and values.
    """

    length: int
    cache: Any = None


def open_group(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    group: Sequence[Prompt],
    store: FeatureStore,
) -> Opening:
    """Read once what all prompts of a group begin with.

    The pass is over the whole of the first prompt, whose tail is then cut off the cache: so the
    opening has the coefficients of the modalities that follow it.
    """
    shared = group[0].leading_text
    for prompt in group:
        here = prompt.leading_text
        count = 0
        while count < min(len(shared), len(here)) and shared[count] == here[count]:
            count += 1
        shared = shared[:count]
    if not shared or len(group) == 1:
        return Opening(0)
    first = group[0]
    out = model(
        input_ids=pad_left([first.ids], 0, model.device),
        mm_token_type_ids=pad_left([first.types], TEXT_TYPE_ID, model.device),
        **store.batch(model, processor, first.inputs),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = out[CACHE]
    cache.crop(len(shared) - len(first.ids))
    return Opening(len(shared), cache)


def tree_scores(
    model: ModalloyForConditionalGeneration,
    batch: Sequence[Prompt],
    opening: Opening,
    features: dict[str, torch.Tensor],
) -> list[list[float]]:
    """Return :func:`option_scores` as numbers; it says what the arguments are."""
    return [row.tolist() for row in option_scores(model, batch, opening, features)]


def option_scores(
    model: ModalloyForConditionalGeneration,
    batch: Sequence[Prompt],
    opening: Opening,
    features: dict[str, torch.Tensor],
) -> list[torch.Tensor]:
    """Return the log-likelihood of every option after its prompt, end of turn included.

    Args:
        model: The composition.
        batch: Prompts of one set of modalities.
        opening: What they all begin with.
        features: ``<modality>_features`` of their inputs.

    Returns:
        ``(options,)`` float32 for each prompt, through which gradients flow where they are on.
    """
    trees = [grow(prompt.options) for prompt in batch]
    own = [prompt.ids[opening.length :] for prompt in batch]
    length, nodes = max(map(len, own)), max(len(tree.tokens) for tree in trees)
    device = model.device
    ids = [
        [0] * (length - len(row)) + row + tree.tokens + [0] * (nodes - len(tree.tokens))
        for row, tree in zip(own, trees, strict=True)
    ]
    types = pad_left([prompt.types[opening.length :] for prompt in batch], TEXT_TYPE_ID, device)
    cache = None
    if opening.length:
        cache = copy.deepcopy(opening.cache)
        cache.batch_repeat_interleave(len(batch))
    out = model(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=_mask(own, trees, opening.length, length, nodes, model.dtype).to(device),
        position_ids=_positions(own, trees, opening.length, length, nodes).to(device),
        mm_token_type_ids=torch.nn.functional.pad(types, (opening.length, nodes)),
        cache=cache,
        logits_to_keep=torch.arange(length - 1, length + nodes, device=device),
        **features,
    )
    return [_option_scores(row, tree) for row, tree in zip(out.logits, trees, strict=True)]


def _option_scores(logits: torch.Tensor, tree: Tree) -> torch.Tensor:
    """Return the score of each option, ``(options,)``, from logits ``(1 + nodes, V)``."""
    used = logits[: len(tree.tokens) + 1].float()
    option, node, token = torch.tensor(tree.steps, device=logits.device).T
    gained = used[node + 1, token] - used.logsumexp(dim=-1)[node + 1]
    count = int(option.max()) + 1
    return torch.zeros(count, device=logits.device).index_add(0, option, gained)


def _positions(
    own: Sequence[Sequence[int]], trees: Sequence[Tree], before: int, length: int, nodes: int
) -> torch.Tensor:
    """Return ``(B, length + nodes)``: each token's place in its prompt, or in its own option."""
    rows = []
    for row, tree in zip(own, trees, strict=True):
        prompt = [0] * (length - len(row)) + list(range(before, before + len(row)))
        start = before + len(row)
        tail = [start + depth for depth in tree.depth] + [0] * (nodes - len(tree.depth))
        rows.append(prompt + tail)
    return torch.tensor(rows)


def _mask(
    own: Sequence[Sequence[int]],
    trees: Sequence[Tree],
    before: int,
    length: int,
    nodes: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return ``(B, 1, length + nodes, before + length + nodes)``: 0 where a token attends."""
    total = length + nodes
    seen = torch.zeros(len(own), total, before + total, dtype=torch.bool)
    seen[:, :, :before] = True
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for row, (ids, tree) in enumerate(zip(own, trees, strict=True)):
        first = length - len(ids)
        seen[row, first:length, before + first : before + length] = causal[first:, first:]
        seen[row, length : length + len(tree.tokens), before + first : before + length] = True
        own_part = seen[row, length:, before + length :]
        for node, above in enumerate(tree.above):
            if above >= 0:
                own_part[node] = own_part[above]
            own_part[node, node] = True
    # Padding sees itself: a row of nothing at all would be no number.
    seen[:, torch.arange(total), before + torch.arange(total)] = True
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[:, None]
