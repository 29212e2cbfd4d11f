"""Features of inputs: encoders are frozen and alike everywhere, so each input is encoded once.

:class:`FeatureCache` holds those of a training run; :class:`FeatureStore` also keeps them on disk,
for whatever composition asks about the same inputs.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modalloy.checkpoints.new_directory import new_file
from modalloy.composition.modeling import ModalloyForConditionalGeneration
from modalloy.composition.processing import ModalloyProcessor
from modalloy.errors import FormatError, InputError
from modalloy.parent import sha256

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
                encoded = _encode(model, processor, batch)
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


class FeatureStore:
    """Encoded inputs, kept in memory and, where a directory is given, on disk.

    An input is known by its bytes and by its encoder: type, configuration, weights, and the
    versions of the plugins that read and encode it. On disk they
    are ``<modality>-<encoder>/<digest>.safetensors``, each a shard of tensors named by the SHA-256
    of their input. Shards are only ever added, so that several processes may share a directory.
    Objects of the caller's (arrays, pictures) are encoded each time.

    Args:
        directory: Where shards are; made when the first is written.
        memory: Bytes of features that are held in memory.
    """

    def __init__(self, directory: Path | None = None, *, memory: int = 2**30) -> None:
        self.directory = directory
        self.memory = memory
        self._held: dict[tuple[str, str], torch.Tensor] = {}
        self._bytes = 0
        self._pending: dict[str, dict[str, torch.Tensor]] = {}
        self._shards: dict[str, dict[str, Path]] = {}
        self._digests: dict[tuple[Path, int, int], str] = {}

    def batch(
        self,
        model: ModalloyForConditionalGeneration,
        processor: ModalloyProcessor,
        inputs: Sequence[tuple[str, Any]],
    ) -> dict[str, torch.Tensor]:
        """Return ``<modality>_features (N, K, F)`` float32 of inputs in prompt order.

        What is not known yet is encoded, all inputs of a modality together.

        Raises:
            InputError: An input cannot be read, or its features are not finite.
            FormatError: A shard is damaged.
        """
        return {
            f"{name}_features": torch.stack(
                self._features(model, processor, [one for one in inputs if one[0] == name])
            )
            for name in sorted({name for name, _ in inputs})
        }

    def flush(self) -> None:
        """Write what was encoded since the last time."""
        for folder, tensors in sorted(self._pending.items()):
            if self.directory is None or not tensors:
                continue
            digest = hashlib.sha256("".join(sorted(tensors)).encode()).hexdigest()
            file = self.directory / folder / f"{digest[:16]}.safetensors"
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FormatError(f"{file} cannot be written: {error}", path=file) from error
            with new_file(file) as partial:  # another process may be writing the same features
                save_file(tensors, partial)
            self._shards[folder] |= dict.fromkeys(tensors, file)
        self._pending.clear()

    def digest(self, source: Any) -> str | None:
        """Return the SHA-256 of an input's bytes, or ``None`` for an object of the caller's.

        A file that has kept its size and time of change is not read again.

        Raises:
            InputError: The file cannot be read.
        """
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()
        if not isinstance(source, Path):
            return None
        try:
            state = source.stat()
            key = (source, state.st_size, state.st_mtime_ns)
            if key not in self._digests:
                self._digests[key] = sha256(source)
        except OSError as error:
            raise InputError(f"{source} cannot be read: {error}") from error
        return self._digests[key]

    def _features(
        self,
        model: ModalloyForConditionalGeneration,
        processor: ModalloyProcessor,
        inputs: Sequence[tuple[str, Any]],
    ) -> list[torch.Tensor]:
        """Return ``(K, F)`` of each input; all are of one modality."""
        folder = self.folder(model, processor, inputs[0][0])
        keys = [self.digest(source) or f"object {i}" for i, (_, source) in enumerate(inputs)]
        found = {key: self._known(folder, key) for key in keys}
        new = {k: one for k, one in zip(keys, inputs, strict=True) if found[k] is None}
        names = list(new)
        for start in range(0, len(names), _ENCODED_TOGETHER):
            some = names[start : start + _ENCODED_TOGETHER]
            encoded = _encode(model, processor, [new[name] for name in some])
            for name, features in zip(some, encoded, strict=True):
                found[name] = features
                if not name.startswith("object "):
                    self._hold(folder, name, features)
                    self._pending.setdefault(folder, {})[name] = features.clone(
                        memory_format=torch.contiguous_format
                    )
        if sum(len(tensors) for tensors in self._pending.values()) >= _SHARD:
            self.flush()
        return [features for key in keys if (features := found[key]) is not None]

    def folder(
        self, model: ModalloyForConditionalGeneration, processor: ModalloyProcessor, modality: str
    ) -> str:
        """Return the name of a modality's shards: all that its features depend on but the input.

        Raises:
            MissingComponentError: The encoder's plugin is not installed.
        """
        encoder = model.config.modalities[modality]["encoder"]
        registry = processor.registry
        kind = model.encoders.kind(modality).name
        identity = {
            **{key: encoder[key] for key in ("type", "config", "shape")},
            "weights": model.encoders.digest(modality),
            "reader": registry.owner("modality", modality).origin,
            "plugin": registry.owner("encoder", kind).origin,
        }
        text = json.dumps(identity, sort_keys=True)
        return f"{modality}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _known(self, folder: str, key: str) -> torch.Tensor | None:
        if (folder, key) in self._held:
            return self._held[folder, key]
        if folder not in self._shards:
            self._shards[folder] = self._list(folder)
        file = self._shards[folder].get(key)
        if file is None:
            return None
        features = _read(file, key)
        self._hold(folder, key, features)
        return features

    def _hold(self, folder: str, key: str, features: torch.Tensor) -> None:
        self._held[folder, key] = features
        self._bytes += features.nbytes
        while self._bytes > self.memory and len(self._held) > 1:
            self._bytes -= self._held.pop(next(iter(self._held))).nbytes

    def _list(self, folder: str) -> dict[str, Path]:
        if self.directory is None:
            return {}
        files = sorted((self.directory / folder).glob("*.safetensors"))
        return {key: file for file in files for key in _keys(file)}


_ENCODED_TOGETHER = 32
"""Inputs in one pass through an encoder."""

_SHARD = 256
"""Features that are worth a file of their own."""


def _keys(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as shard:
            return sorted(shard.keys())
    except (OSError, SafetensorError) as error:
        raise FormatError(
            f"{file} is no shard of features: {error}; remove it", path=file
        ) from error


def _read(file: Path, key: str) -> torch.Tensor:
    try:
        with safe_open(file, "pt") as shard:
            features: torch.Tensor = shard.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise FormatError(
            f"{file} is no shard of features: {error}; remove it", path=file
        ) from error
    return features


def _encode(
    model: ModalloyForConditionalGeneration,
    processor: ModalloyProcessor,
    batch: Sequence[tuple[str, Any]],
) -> torch.Tensor:
    """Return ``(N, K, F)`` float32 on the CPU of inputs of one modality."""
    modality = batch[0][0]
    tensors = processor.preprocess(batch)
    inputs = {key[len(modality) + 1 :]: value for key, value in tensors.items()}
    with torch.no_grad():
        encoded = model.encoders.run(modality, inputs, model.device).cpu()
    for (_, source), features in zip(batch, encoded, strict=True):
        _check_finite(features, modality, source)
    return encoded


def _check_finite(features: torch.Tensor, modality: str, source: Any) -> None:
    if not bool(features.isfinite().all()):
        raise InputError(
            f"{source!s:.200}: its {modality} features are not all finite numbers; look at the "
            "file, or leave its chats out"
        )
