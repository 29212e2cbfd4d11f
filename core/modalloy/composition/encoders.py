"""Encoders of a composition: opened when first used, frozen, outside its parameters."""

import inspect
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from modalloy.errors import FormatError, InputError, MissingComponentError, UnknownNameError
from modalloy.modality import Encoder, resolve
from modalloy.registry import Registry


class EncoderStore:
    """Opens each modality's encoder on first use and keeps it.

    Attributes:
        files: By modality, the ``encoder.safetensors`` that holds its weights; a modality that
            is not among them fetches its own.
        registry: What is installed.
    """

    def __init__(self, modalities: Mapping[str, Any], registry: Registry) -> None:
        self._modalities = modalities
        self.registry = registry
        self._open: dict[str, nn.Module] = {}
        self._digests: dict[str, str] = {}
        self.files: dict[str, Path] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process: opened encoders, and what is installed."""
        return {"_modalities": self._modalities, "files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what is installed where the copy is."""
        self.__init__(state["_modalities"], Registry.discover())  # type: ignore[misc]
        self.files = state["files"]

    def features(self, modality: str) -> int:
        """Return F, features per token, from the configuration alone."""
        return int(self._modalities[modality]["encoder"]["shape"][1])

    def run(
        self, modality: str, inputs: Mapping[str, torch.Tensor], device: torch.device
    ) -> torch.Tensor:
        """Encode preprocessed inputs.

        Args:
            modality: Name of the modality.
            inputs: Tensors of ``preprocess``, stacked over N inputs.
            device: Where to run.

        Returns:
            Features ``(N, K, F)`` float32.

        Raises:
            MissingComponentError: The encoder's plugin is not installed.
            InputError: The inputs are not those that the encoder takes.
            FormatError: Its features are not of the shape that was declared.
        """
        module = self.opened(modality).to(device)
        try:
            inspect.signature(module.forward).bind(**inputs)
        except TypeError as error:
            raise InputError(
                f"encoder of {modality!r}: {error}; it was given "
                f"{', '.join(f'{modality}_{name}' for name in sorted(inputs))}. Preprocess inputs "
                "with the composition's own processor; its tensors are named by the encoder's "
                "preprocess, as its forward names its arguments"
            ) from error
        like = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        given = {
            name: tensor.to(device, like) if tensor.is_floating_point() else tensor.to(device)
            for name, tensor in inputs.items()
        }
        features = module(**given)
        expected = tuple(self._modalities[modality]["encoder"]["shape"])
        if tuple(features.shape[1:]) != expected:
            declared = tuple(resolve(self.kind(modality).output_shape)(self._config(modality)))
            whose = (
                "its plugin declares" if declared == expected else "the composition was made for"
            )
            more = "" if declared == expected else "; compose anew with the plugin as it is now"
            raise FormatError(
                f"encoder of {modality!r} returned features {tuple(features.shape)}, {whose} "
                f"(N, {expected[0]}, {expected[1]}){more}",
                path=modality,
            )
        return features.float()

    def digest(self, modality: str) -> str:
        """Return the SHA-256 of an encoder's weights, wherever they come from.

        Raises:
            MissingComponentError: The encoder's plugin is not installed.
        """
        if modality not in self._digests:
            found = sha256()
            for name, tensor in sorted(self.opened(modality).state_dict().items()):
                found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                found.update(raw.numpy())
            self._digests[modality] = found.hexdigest()
        return self._digests[modality]

    def opened(self, modality: str) -> nn.Module:
        """Return the encoder of a modality, frozen, opened when first asked for.

        Raises:
            FormatError: The file does not hold its weights.
            MissingComponentError: The encoder's plugin is not installed.
        """
        if modality not in self._open:
            self._open[modality] = self._build(modality)
        return self._open[modality]

    def _config(self, modality: str) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self._modalities[modality]["encoder"]["config"]
        return config

    def kind(self, modality: str) -> Encoder:
        """Return the registered encoder type of a modality.

        Raises:
            MissingComponentError: No installed plugin supplies it.
        """
        entry = self._modalities[modality]
        try:
            return self.registry.encoder(entry["encoder"]["type"])
        except UnknownNameError as error:
            requires = entry.get("requires")
            advice = f'pip install "{requires}"' if requires else "install the plugin that has it"
            raise MissingComponentError(
                f"this composition hears of {entry['content_type']!r} inputs through the encoder "
                f"{entry['encoder']['type']!r}, which no installed plugin supplies; {advice}. "
                "Without it the model still runs on inputs_embeds",
                component=entry["encoder"]["type"],
            ) from error

    def _build(self, modality: str) -> nn.Module:
        module = resolve(self.kind(modality).build)(self._config(modality))
        if modality in self.files:
            path = self.files[modality]
            try:
                module.load_state_dict(load_file(path), strict=True)
            except (OSError, SafetensorError, RuntimeError) as error:
                raise FormatError(
                    f"{path} does not hold the weights of encoder {modality!r}: {error}", path=path
                ) from error
        return module.eval().requires_grad_(requires_grad=False)
