"""What tests of compositions share: composing toys, asking them, and a dense oracle.

The oracle shares no code with the stream-aware layers: the plain transformers model, with every
linear layer's output corrected by dense ``scale * B @ A`` under a mask per token.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import modalloy
from modalloy.deltas.lowrank import LowRankDelta, read_adapter
from toy import ask, toy_registry

# float32 sums of about 50 terms in another order: differences of a few units in the last place.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

SEE = ask(("image", [0.3]), "what is it")
HEAR = ask("listen: ", ("audio", [1.7]), " and say")
BOTH = ask(("audio", [0.2]), "and", ("image", [0.9]), "the same?")
TEXT = ask("what is the time")


def oracle(
    base: Path,
    embeds: torch.Tensor,
    attention: torch.Tensor,
    masked: list[tuple[LowRankDelta, Any]],
) -> torch.Tensor:
    """Logits of the base with dense deltas, each under a mask ``(B, T, 1)`` of coefficients."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        pairs = [(d.pairs[name].dense(), mask) for d, mask in masked if name in d.pairs]

        def correct(_: Any, args: Any, out: torch.Tensor, pairs: Any = pairs) -> torch.Tensor:
            return out + sum(mask * (args[0] @ dense.T) for dense, mask in pairs)

        if pairs:
            module.register_forward_hook(correct)
    with torch.no_grad():
        return model(inputs_embeds=embeds, attention_mask=attention).logits


def compose(base: Path, parents: list[Path], **kwargs: Any) -> Any:
    registry = kwargs.pop("registry", None) or toy_registry("sight", "sound")
    return modalloy.compose(
        base,
        modalities=kwargs.pop("modalities", None),
        parents=parents,
        registry=registry,
        **kwargs,
    )


def logits(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def embeds(model: Any, batch: Any) -> torch.Tensor:
    media = {k: v for k, v in batch.items() if k.startswith(("sight_", "sound_"))}
    with torch.no_grad():
        return model.embed(batch["input_ids"], batch["mm_token_type_ids"], media)


def expected(
    base: Path, model: Any, batch: Any, parents: dict[str, Path], rows: list[dict[str, float]]
) -> torch.Tensor:
    """The oracle's logits for text coefficients by row of the batch."""
    types = batch["mm_token_type_ids"]
    masked = []
    for name, path in parents.items():
        values = torch.tensor([row[name] for row in rows])[:, None] * (types == 0)
        masked.append((read_adapter(path / "text_adapter"), values[..., None]))
        own = (types == model.type_ids[name])[..., None].float()
        masked.append((read_adapter(path / "modality_adapter"), own))
    return oracle(base, embeds(model, batch), batch["attention_mask"], masked)
