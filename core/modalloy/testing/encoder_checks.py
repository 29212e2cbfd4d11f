"""Checking encoders: shapes, determinism, batches and frozen weights, by the host's own way."""

import functools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
import torch

from modalloy.composition.encoders import EncoderStore
from modalloy.errors import MissingComponentError, ModalloyError, ModalloyWarning
from modalloy.modality import Encoder, Modality, Target, resolve
from modalloy.parent import ENCODER_FILE, MANIFEST, read_manifest
from modalloy.registry import Registry
from modalloy.testing.report import Checks, expect
from modalloy.testing.sameness import same

# Sums of some thousand float32 products in another order; features are of the order of 1.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5

_LIGHT = """
import importlib, json, sys
before = "torch" in sys.modules
module, _, name = sys.argv[1].partition(":")
shape = getattr(importlib.import_module(module), name)(json.load(sys.stdin))
print(json.dumps([list(shape), "torch" in sys.modules and not before]))
"""


@attrs.frozen(eq=False)
class Used:
    """An encoder with a configuration.

    Attributes:
        kind: The encoder.
        config: Its configuration.
        file: ``encoder.safetensors`` that holds its weights, where it does not fetch its own.
    """

    kind: Encoder
    config: Mapping[str, Any]
    file: Path | None = None

    @property
    def subject(self) -> str:
        """Its name in messages."""
        return f"encoder {self.kind.name!r}"

    def shape(self) -> tuple[int, int]:
        """Return (K, F).

        Raises:
            AssertionError: It is no such pair.
        """
        found = resolve(self.kind.output_shape)(self.config)
        right = isinstance(found, tuple) and [type(size) for size in found] == [int, int]
        expect(
            right and min(found) > 0,
            f"output_shape must return (tokens, features), two positive integers; found {found!r}",
        )
        tokens, features = found
        return tokens, features

    def preprocess(self, decoded: Any) -> dict[str, torch.Tensor]:
        """Return the tensors of one input.

        Raises:
            AssertionError: They are not what an encoder takes.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModalloyWarning)  # of what it cuts or leaves out
            tensors = resolve(self.kind.preprocess)(decoded, self.config)
        expect(
            isinstance(tensors, dict) and bool(tensors),
            f"preprocess must return a dict of tensors, found {type(tensors).__name__}",
        )
        for name, tensor in tensors.items():
            expect(
                isinstance(name, str) and name.isidentifier(),
                f"preprocess names a tensor {name!r}, which is no argument of a forward",
            )
            expect(
                isinstance(tensor, torch.Tensor),
                f"preprocess gives a {type(tensor).__name__} for {name!r}, expected a tensor",
            )
            if tensor.is_floating_point():
                expect(
                    tensor.dtype == torch.float32,
                    f"tensor {name!r} of preprocess is {tensor.dtype}, expected float32",
                )
                expect(
                    bool(tensor.isfinite().all()),
                    f"tensor {name!r} of preprocess has NaN or infinite values",
                )
        return dict(tensors)


def used_encoders(
    registry: Registry, modality: str, configs: Mapping[str, Mapping[str, Any]]
) -> list[Used]:
    """Return a modality's encoders with the configurations that are known, sorted by name.

    Args:
        registry: Supplies encoders, and parents whose packaged manifests tell configurations.
        modality: Name of the modality.
        configs: Further configurations by encoder name.
    """
    found: dict[tuple[str, str], Used] = {}
    for name, config in configs.items():
        found[name, json.dumps(config, sort_keys=True)] = Used(registry.encoder(name), config)
    for parent in registry.parents(modality=modality):
        if not isinstance(parent.source, Path) or not (parent.source / MANIFEST).is_file():
            continue
        entry = read_manifest(parent.source).encoder
        kind = registry.encoders.get(entry.type)
        if kind is not None and kind.modality == modality:
            file = parent.source / ENCODER_FILE
            key = entry.type, json.dumps(entry.config, sort_keys=True)
            found.setdefault(key, Used(kind, entry.config, file if file.is_file() else None))
    return [found[key] for key in sorted(found)]


def check_encoders(
    checks: Checks,
    registry: Registry,
    modality: Modality,
    used: Sequence[Used],
    decoded: Sequence[Any],
) -> None:
    """Check the encoders of a modality.

    Args:
        checks: Takes the outcomes.
        registry: Supplies them.
        modality: Whose they are.
        used: Those whose configuration is known.
        decoded: What its reader made of the samples.
    """
    known = {one.kind.name for one in used}
    for name, kind in registry.encoders.items():
        if kind.modality == modality.name and name not in known:
            why = "no packaged parent uses it; give its configuration in configs"
            checks.skip(f"encoder {name!r}", "shapes and features", why)
    for one in used:
        if not checks.run(one.subject, "output_shape", functools.partial(_check_shape, one)):
            continue
        if not decoded:
            checks.skip(one.subject, "preprocess and features", "there is no sample")
            continue
        if checks.run(
            one.subject, "preprocess", functools.partial(_check_preprocess, one, decoded)
        ):
            _check_module(checks, registry, modality, one, decoded)


def _check_shape(one: Used) -> str:
    shape = one.shape()
    expect(one.shape() == shape, "output_shape gives two results for one configuration")
    target: Target = one.kind.output_shape
    if isinstance(target, str):
        found, heavy = _in_fresh_process(target, one.config)
        expect(found == list(shape), f"output_shape is {found} in a new process, {shape} here")
        expect(not heavy, f"{target} imports torch, which laying out a prompt must not")
    return f"{shape[0]} tokens of {shape[1]} features"


def _in_fresh_process(target: str, config: Mapping[str, Any]) -> tuple[list[int], bool]:
    """Return what a target gives where nothing else is imported, and whether it imports torch."""
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-W", "ignore", "-c", _LIGHT, target],
        input=json.dumps(config),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    expect(done.returncode == 0, f"{target} fails in a new process: {done.stderr[-500:]}")
    shape, heavy = json.loads(done.stdout.splitlines()[-1])
    return shape, heavy


def _check_preprocess(one: Used, decoded: Sequence[Any]) -> str:
    first = one.preprocess(decoded[0])
    for index, each in enumerate(decoded):
        tensors = one.preprocess(each)
        expect(same(tensors, one.preprocess(each)), f"sample {index} twice gives two results")
        found, goal = ({n: tuple(t.shape) for n, t in ts.items()} for ts in (tensors, first))
        expect(
            found == goal,
            f"sample {index} gives tensors {found}, sample 0 gives {goal}; shapes must follow "
            "from the configuration alone",
        )
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in first.items())


def _check_module(
    checks: Checks, registry: Registry, modality: Modality, one: Used, decoded: Sequence[Any]
) -> None:
    """Open the encoder as a composition does, and run it."""
    entry = {
        "content_type": modality.content_type,
        "encoder": {"type": one.kind.name, "config": one.config, "shape": list(one.shape())},
        "requires": None,
    }
    store = EncoderStore({modality.name: entry}, registry)
    if one.file is not None:
        store.files[modality.name] = one.file
    try:
        store.digest(modality.name)
    except MissingComponentError as error:
        checks.skip(one.subject, "features", f"its weights are not at hand ({error})")
        return
    except (ModalloyError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        pass  # raised anew, and told, by the first check
    run = _Run(store, modality.name, [one.preprocess(each) for each in decoded])
    if checks.run(one.subject, "features", run.features):
        checks.run(one.subject, "frozen", run.frozen)
        checks.run(one.subject, "batch", run.batch)


@attrs.frozen(eq=False)
class _Run:
    """An encoder and what it is given.

    Attributes:
        store: Has it.
        name: Its modality.
        items: Tensors of each sample.
    """

    store: EncoderStore
    name: str
    items: list[dict[str, torch.Tensor]]

    @torch.no_grad()
    def encode(self, items: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """Return the features of some samples, ``(N, K, F)``."""
        inputs = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        return self.store.run(self.name, inputs, torch.device("cpu"))

    def features(self) -> str:
        """Check what one sample gives."""
        found = self.encode(self.items[:1])
        expect(found.dtype == torch.float32, f"features are {found.dtype}, expected float32")
        expect(bool(found.isfinite().all()), "features have NaN or infinite values")
        return f"{tuple(found.shape)} float32"

    def frozen(self) -> str:
        """Check that the encoder is as frozen as the host asks, and repeats itself."""
        module = self.store._opened(self.name)  # noqa: SLF001 - the encoder as the host has it
        training = [name or "itself" for name, part in module.named_modules() if part.training]
        expect(not training, f"parts are in training mode: {', '.join(training[:3])}")
        tuned = [name for name, value in module.named_parameters() if value.requires_grad]
        expect(not tuned, f"parameters require gradients: {', '.join(tuned[:3])}")
        before = _digest(module)
        first, again = self.encode(self.items[:1]), self.encode(self.items[:1])
        expect(torch.equal(first, again), "one input encoded twice gives two results")
        expect(_digest(module) == before, "encoding changed weights or buffers of the encoder")
        return "evaluation mode, no gradients, twice the same, weights unchanged"

    def batch(self) -> str:
        """Check that a batch gives what each of its inputs gives alone."""
        items = (self.items * 2)[: max(2, len(self.items))]
        together = self.encode(items)
        for index, item in enumerate(items):
            alone = self.encode([item])[0]
            scale = max(1.0, float(alone.abs().max()))
            gap = float((together[index] - alone).abs().max())
            expect(
                gap <= (_RELATIVE + _ABSOLUTE) * scale,
                f"input {index} of a batch of {len(items)} differs by {gap:.3g} from itself alone "
                f"(features up to {scale:.3g})",
            )
        return f"{len(items)} inputs together give what each gives alone"


def _digest(module: torch.nn.Module) -> str:
    found = sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
