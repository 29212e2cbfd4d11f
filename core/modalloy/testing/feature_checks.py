"""Checking what encoders compute: shapes, determinism, batches and frozen weights.

They are opened and run by the host's own way, as a composition does it.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import attrs
import torch

from modalloy.composition.encoders import EncoderStore
from modalloy.errors import MissingComponentError
from modalloy.modality import Modality
from modalloy.registry import Registry
from modalloy.testing.conduct import Conduct, torch_state
from modalloy.testing.report import Checks, expect
from modalloy.testing.sameness import content, same
from modalloy.testing.used import Used

# Sums of some thousand float32 products in another order; features are of the order of 1.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5
_BATCHES = (2, 3, 5)
_SEEDS = (11, 12)


def check_features(
    checks: Checks,
    registry: Registry,
    modality: Modality,
    one: Used,
    decoded: Sequence[Any],
    conduct: Conduct,
) -> None:
    """Open an encoder as a composition does, and run it.

    Args:
        checks: Takes the outcomes.
        registry: Supplies it.
        modality: Whose it is.
        one: The encoder and its configuration.
        decoded: What the reader made of the samples.
        conduct: Watches it.
    """
    entry = {
        "content_type": modality.content_type,
        "encoder": {"type": one.kind.name, "config": one.config, "shape": list(one.shape())},
        "requires": None,
    }

    def opened() -> EncoderStore:
        store = EncoderStore({modality.name: entry}, registry)
        if one.file is not None:
            store.files[modality.name] = one.file
        return store

    store = opened()
    run = _Run(store, modality.name, [one.preprocess(each) for each in decoded], conduct)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEEDS[0])
        try:
            store.digest(modality.name)
        except MissingComponentError as error:
            checks.skip(one.subject, "features", f"its weights are not at hand ({error})")
            return
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001, S110 - the first check meets it anew, and tells it
            pass
        state = torch_state()
    if not checks.run(one.subject, "features", run.features):
        return
    checks.run(one.subject, "frozen", run.frozen)
    checks.run(one.subject, "built anew", lambda: run.same_as(opened(), state))
    if run.distinct():
        checks.run(one.subject, "batch", run.batch)
    else:
        why = "no two samples differ to the encoder; give another"
        checks.skip(one.subject, "batch", why)


@attrs.frozen(eq=False)
class _Run:
    """An encoder and what it is given.

    Attributes:
        store: Has it.
        name: Its modality.
        items: Tensors of each sample.
        conduct: Watches it.
    """

    store: EncoderStore
    name: str
    items: list[dict[str, torch.Tensor]]
    conduct: Conduct

    @torch.no_grad()
    def encode(self, items: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """Return the features of some samples, ``(N, K, F)``.

        Raises:
            AssertionError: They are not what an encoder returns, or it changes what it is given.
        """
        inputs = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        before = content(inputs)
        raw: list[Any] = []
        module = self.store.opened(self.name)
        handle = module.register_forward_hook(lambda *arguments: raw.append(arguments[-1]))
        try:
            found = self.conduct.watch(
                f"encoding {len(items)}",
                lambda: self.store.run(self.name, inputs, torch.device("cpu")),
            )
        except AttributeError:
            if raw:  # it returned something that has no shape
                _check_raw(raw, len(items))
            raise
        finally:
            handle.remove()
        _check_raw(raw, len(items))
        expect(content(inputs) == before, "forward changes the tensors that it is given")
        return found

    def features(self) -> str:
        """Check what one sample gives."""
        self.conduct.warm(lambda: self.encode(self.items[:1]))
        found = self.encode(self.items[:1])
        expect(bool(found.isfinite().all()), "features have NaN or infinite values")
        return f"{tuple(found.shape)} float32"

    def frozen(self) -> str:
        """Check that the encoder is as frozen as the host asks, and repeats itself."""
        module = self.store.opened(self.name)
        training = [name or "itself" for name, part in module.named_modules() if part.training]
        expect(not training, f"parts are in training mode: {', '.join(training[:3])}")
        tuned = [name for name, value in module.named_parameters() if value.requires_grad]
        expect(not tuned, f"parameters require gradients: {', '.join(tuned[:3])}")
        before = _digest(module)
        first, again = self.encode(self.items[:1]), self.encode(self.items[:1])
        expect(torch.equal(first, again), "one input encoded twice gives two results")
        expect(_digest(module) == before, "encoding changed weights or buffers of the encoder")
        return "evaluation mode, no gradients, twice the same, weights unchanged"

    def same_as(self, other: EncoderStore, state: bytes) -> str:
        """Check that a second encoder, opened under another random state, is the same.

        Args:
            other: Will open it.
            state: Of torch's generator when the first one had been opened.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEEDS[1])
            other.opened(self.name)
            seeded = torch_state() == state
        expect(
            not seeded,
            "build seeds torch's random generator, which is its caller's; use a torch.Generator or "
            "torch.random.fork_rng",
        )
        again = _Run(other, self.name, self.items, self.conduct).encode(self.items[:1])
        expect(
            same(again, self.encode(self.items[:1])),
            "built twice, it gives one input two results: a part of it has random weights that "
            "come from no file and no seed",
        )
        return "twice the same, whatever the random state"

    def distinct(self) -> bool:
        """Whether two samples differ as the encoder gets them."""
        return any(not same(item, self.items[0]) for item in self.items)

    def batch(self) -> str:
        """Check that a batch gives what each of its inputs gives alone."""
        alone = [self.encode([item])[0] for item in self.items]
        for size in _BATCHES:
            order = [place % len(alone) for place in range(size)]
            together = self.encode([self.items[index] for index in order])
            for place, index in enumerate(order):
                scale = max(1.0, float(alone[index].abs().max()))
                gap = float((together[place] - alone[index]).abs().max())
                expect(
                    gap <= (_RELATIVE + _ABSOLUTE) * scale,
                    f"input {place} of a batch of {size} differs by {gap:.3g} from itself alone "
                    f"(features up to {scale:.3g})",
                )
        expect(
            any(not torch.equal(one, alone[0]) for one in alone),
            "all samples give the same features: it does not look at its input",
        )
        return f"batches of {', '.join(map(str, _BATCHES))} give what each input gives alone"


def _check_raw(raw: Sequence[Any], count: int) -> None:
    """Check what forward itself returned, before the host makes float32 of it."""
    found: Any = raw[-1] if raw else None
    expect(
        isinstance(found, torch.Tensor),
        f"forward must return one tensor (N, K, F), found {type(found).__name__}",
    )
    expect(found.is_floating_point(), f"features are {found.dtype}, expected floating point")
    expect(len(found) == count, f"{count} inputs gave features of {len(found)}")


def _digest(module: torch.nn.Module) -> str:
    found = sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
