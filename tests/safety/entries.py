"""What a user calls with a directory that came from somewhere."""

from pathlib import Path
from typing import Any

import modalloy
from safety.hostile import Box
from toy import ask, toy_registry


def compose(base: Path, parent: Path) -> Any:
    """Compose one toy modality over a base."""
    return modalloy.compose(base, parents=[parent], registry=toy_registry("sight"))


def load(composition: Path) -> Any:
    """Open a composition."""
    return modalloy.load(composition, registry=toy_registry("sight"))


def merge(box: Box, base: Path | str, *models: Path | str, method: str = "linear") -> Any:
    """Merge models into the box's place for output."""
    recipe: dict[str, Any] = {
        "merge_method": method,
        "base_model": str(base),
        "models": [{"model": str(model), "parameters": {"weight": 1.0}} for model in models],
    }
    return modalloy.merge(recipe, box.out, workers=1, registry=toy_registry("sight"))


def use_and_save(box: Box, composition: Any) -> None:
    """Ask a composition something and save it, as a user would."""
    model, processor = composition
    batch = processor.apply_chat_template(ask(("image", [0.3]), "what"), add_generation_prompt=True)
    model.generate(**batch, max_new_tokens=2, do_sample=False)
    model.save_pretrained(box.out)
    processor.save_pretrained(box.out)
