"""Features of training inputs: encoders are frozen, so each input is encoded once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch

from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.errors import InputError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""


@attrs.frozen(eq=False)
class FeatureCache:
    """Encoded inputs by modality and path.

    Attributes:
        features: ``(K, F)`` float32 each, on the CPU.
    """

    features: dict[tuple[str, Path], torch.Tensor]

    @classmethod
    def build(
        cls,
        model: ModalloyForConditionalGeneration,
        processor: ModalloyProcessor,
        sources: Sequence[tuple[str, Path]],
        progress: Progress,
        batch_size: int = 32,
    ) -> "FeatureCache":
        """Encode every source.

        Args:
            model: Supplies the encoders.
            processor: Reads and preprocesses.
            sources: ``(modality, path)``, distinct.
            progress: Told after every batch.
            batch_size: Inputs encoded at a time.

        Raises:
            InputError: An input cannot be read, or its features are not finite.
        """
        found: dict[tuple[str, Path], torch.Tensor] = {}
        for modality in sorted({name for name, _ in sources}):
            own = [one for one in sources if one[0] == modality]
            for start in range(0, len(own), batch_size):
                batch = own[start : start + batch_size]
                tensors = processor.preprocess(batch)
                inputs = {key[len(modality) + 1 :]: value for key, value in tensors.items()}
                with torch.no_grad():
                    encoded = model.encoders.run(modality, inputs, model.device).cpu()
                for (_, path), own_features in zip(batch, encoded, strict=True):
                    _check_finite(own_features, modality, path)
                found |= dict(zip(batch, encoded, strict=True))
                progress(f"encoding {modality}", start + len(batch), len(own))
        return cls(found)

    def batch(self, inputs: Sequence[tuple[str, Path]]) -> dict[str, torch.Tensor]:
        """Return ``<modality>_features (N, K, F)`` of inputs in prompt order."""
        names = sorted({name for name, _ in inputs})
        return {
            f"{name}_features": torch.stack([self.features[o] for o in inputs if o[0] == name])
            for name in names
        }


def _check_finite(features: torch.Tensor, modality: str, path: Path) -> None:
    if not bool(features.isfinite().all()):
        raise InputError(
            f"{path}: its {modality} features are not all finite numbers; look at the file, or "
            "leave its chats out"
        )
