"""The five invariants of a composition, for one parent over a base, beside a toy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from modalloy.base import Base
from modalloy.composition.compose import Composition, compose, load
from modalloy.composition.fitting import fit_delta, without_embedding
from modalloy.deltas.lowrank import LowRankDelta
from modalloy.deltas.whole import STREAMS, read_stream
from modalloy.parent import ParentManifest, read_manifest
from modalloy.registry import Registry
from modalloy.testing.oracle import parent_logits
from modalloy.testing.report import Checks, expect
from modalloy.testing.toys import TYPES, ToyPlugin, toy_parent

# The sums of a linear layer in another order, over all layers: a few units in the last place of
# the largest logit. A delta that is left out or on the wrong tokens shows a thousand times larger.
CLOSE = 2e-5
_NEW = 3
_ANSWER: dict[str, Any] = {
    "max_new_tokens": _NEW,
    "min_new_tokens": _NEW,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}
_TEXT = "What is the time"


def check_invariants(
    checks: Checks,
    subject: str,
    base: Base,
    parent: Path,
    registry: Registry,
    samples: Sequence[object],
    work: Path,
) -> None:
    """Compose a parent alone and beside a toy, and check the invariants.

    Args:
        checks: Takes the outcomes.
        subject: The parent's name in messages.
        base: Its base.
        parent: Its directory.
        registry: Supplies its modality, encoder and connector.
        samples: Inputs to ask about, read and encoded by the plugin; without any, random features
            stand in for what the encoder makes.
        work: An empty directory for what is written.
    """
    manifest = read_manifest(parent)
    toy = _companion(registry, manifest.modality)
    with registry:
        registry.register(ToyPlugin(toy), name=f"modalloy-testing-{toy}")
        ground = _Ground(base, manifest, parent, toy, registry, tuple(samples), work)
        if not checks.run(subject, "composes alone and beside a toy", ground.compose):
            return
        for what, check in (
            ("1: alone it is the parent, in prefill", ground.is_the_parent),
            ("1: alone it is the parent, in cached decoding", ground.decodes_as_the_parent),
            ("2: the only modality present, it is the parent", ground.restored_beside_another),
            ("3: text alone is the base", ground.text_is_the_base),
            ("4: order changes no bit", ground.order_changes_nothing),
            ("5: saved and loaded it says the same", ground.says_the_same_again),
            ("5: every tensor is accounted for", ground.accounts_for_all),
        ):
            checks.run(subject, f"invariant {what}", check)


def _companion(registry: Registry, modality: str) -> str:
    """Return a toy that can stand beside a modality."""
    spec = registry.modality(modality)
    return next(
        name
        for name, kind in TYPES.items()
        if name not in registry.modalities
        and f"toy-{name}" not in registry.encoders
        and kind != spec.content_type
        and f"<|{name}|>" != spec.placeholder
    )


class _Features(nn.Module):
    """Stands in for an encoder: what it is given are the features."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


@attrs.define(eq=False, slots=False)
class _Ground:
    """A parent, a toy, and what is composed of them."""

    base: Base
    manifest: ParentManifest
    parent: Path
    toy: str
    registry: Registry
    samples: tuple[object, ...]
    work: Path

    @property
    def modality(self) -> str:
        return self.manifest.modality

    def compose(self) -> str:
        """Compose both, in float32."""
        other = toy_parent(self.work / "toy", self.base.path, self.toy, seed=7, suffix=1)
        self.parents = [self.parent, other]
        self.plain = self.base.model(torch.float32)
        self.alone = self._compose([self.parent])
        self.together = self._compose(self.parents)
        entry = self.alone.model.config.modalities[self.modality]
        return f"{entry['tokens']} tokens an input, over {self.base.id}"

    def _compose(self, parents: Sequence[Path], registry: Registry | None = None) -> Composition:
        registry = registry or self.registry
        names = [read_manifest(parent).modality for parent in parents]
        made = compose(
            self.base.path, modalities=names, parents=parents, dtype="float32", registry=registry
        )
        return self._heard(made)

    def _heard(self, made: Composition) -> Composition:
        """Without samples, let random features stand in for the encoder's."""
        if not self.samples:
            made.model.encoders._open[self.modality] = _Features()  # noqa: SLF001
        return made

    def prompt(self, made: Composition, *inputs: str) -> dict[str, Any]:
        """Return a prompt with an input of each modality named, words between them."""
        spans = [_TEXT]
        sources: list[tuple[str, Any]] = []
        for name in inputs:
            entry = made.model.config.modalities[name]
            spans.append(entry["placeholder"] * entry["tokens"] + " and")
            if name != self.modality:
                sources.append((name, [0.7]))
            elif self.samples:
                sources.append((name, self.samples[0]))
        batch = dict(made.processor.encode_prompts(["".join(spans)], sources))
        if self.modality in inputs and not self.samples:
            tokens, features = made.model.config.modalities[self.modality]["encoder"]["shape"]
            generator = torch.Generator().manual_seed(11)
            values = torch.randn(1, tokens, features, generator=generator)
            batch[f"{self.modality}_features"] = values
        return batch

    def is_the_parent(self) -> str:
        """The first invariant, over a whole prompt."""
        batch = self.prompt(self.alone, self.modality)
        return _close(_logits(self.alone, batch), self._expected(batch), "the parent's own logits")

    def decodes_as_the_parent(self) -> str:
        """The first invariant, token by token over a cache."""
        batch = self.prompt(self.alone, self.modality)
        out = self.alone.model.generate(**batch, **_ANSWER)
        new = out.sequences[:, -_NEW:]
        ones = torch.ones_like(new)
        whole = {
            **batch,
            "input_ids": torch.cat([batch["input_ids"], new], 1),
            "attention_mask": torch.cat([batch["attention_mask"], ones], 1),
            "mm_token_type_ids": torch.cat([batch["mm_token_type_ids"], 0 * ones], 1),
        }
        goal = self._expected(whole)[:, -_NEW - 1 : -1]
        return _close(torch.stack(out.logits, 1), goal, "the logits of the whole")

    def restored_beside_another(self) -> str:
        """The second invariant: the toy has no say where it is not in the prompt."""
        found = _logits(self.together, self.prompt(self.together, self.modality))
        goal = _logits(self.alone, self.prompt(self.alone, self.modality))
        return _close(found, goal, "the parent composed alone")

    def text_is_the_base(self) -> str:
        """The third invariant, to the bit."""
        batch = self.prompt(self.together)
        keys = ("input_ids", "attention_mask")
        with torch.no_grad():
            goal = self.plain(**{key: batch[key] for key in keys}).logits
        gap = _gap(_logits(self.together, batch), goal)
        expect(gap == 0, f"logits of a text prompt differ from the base's by {gap:.3g}")
        return "to the bit"

    def order_changes_nothing(self) -> str:
        """The fourth invariant: parents and plugins the other way round."""
        other = self._compose(self.parents[::-1], _turned(self.registry))
        first, second = (self.prompt(m, self.modality, self.toy) for m in (self.together, other))
        gap = _gap(_logits(self.together, first), _logits(other, second))
        expect(gap == 0, f"logits differ by {gap:.3g} with parents and plugins the other way round")
        expect(
            self.together.model.config.to_dict() == other.model.config.to_dict(),
            "the configuration depends on the order of parents or plugins",
        )
        return "parents and plugins turned round, to the bit"

    def says_the_same_again(self) -> str:
        """The fifth invariant: a copy from disk answers alike."""
        made, place = self.together, self.work / "saved"
        made.model.save_pretrained(place)
        made.processor.save_pretrained(place)
        again = self._heard(load(place, registry=self.registry))
        first, second = (self.prompt(one, self.modality, self.toy) for one in (made, again))
        gap = _gap(_logits(made, first), _logits(again, second))
        expect(gap == 0, f"saved and loaded, the logits differ by {gap:.3g}")
        answers = [
            one.model.generate(**batch, max_new_tokens=_NEW, do_sample=False)
            for one, batch in ((made, first), (again, second))
        ]
        expect(torch.equal(*answers), "saved and loaded, it answers with other tokens")
        return "logits and answer, to the bit"

    def accounts_for_all(self) -> str:
        """The fifth invariant: the record has every tensor of the parent, and what became of it."""
        rows = {
            row["part"]: row
            for row in self.alone.model.provenance["accounting"]
            if row["source"] == self.parent.resolve().name
        }
        text, own = self._deltas()
        goal = {
            "text delta": text.count,
            "modality delta": own.count,
            "connector": len(self.alone.model.connectors[self.modality].state_dict()),
            "encoder": None,
        }
        found = {part: rows.get(part, {}).get("tensors", "no row") for part in goal}
        expect(found == goal, f"accounting has {found}, the parent's files have {goal}")
        bare = [part for part, row in rows.items() if not row["fate"]]
        expect(not bare, f"accounting does not say what became of {', '.join(bare)}")
        return ", ".join(f"{part}: {row['fate']}" for part, row in sorted(rows.items()))

    def _deltas(self) -> tuple[LowRankDelta, LowRankDelta]:
        """Return the deltas of the text stream and of the modality's, of the base's modules."""
        streams = STREAMS if self.manifest.strategy == "decoupled" else STREAMS[:1]
        read = [fit_delta(read_stream(self.parent, one, self.base), self.plain) for one in streams]
        return read[0], without_embedding(read[-1], self.plain)

    def _expected(self, batch: Mapping[str, Any]) -> torch.Tensor:
        model, types = self.alone.model, batch["mm_token_type_ids"]
        media = {k: v for k, v in batch.items() if k.startswith(f"{self.modality}_")}
        with torch.no_grad():
            embeds = model.embed(batch["input_ids"], types, media)
        return parent_logits(self.plain, *self._deltas(), embeds, types)


def _logits(made: Composition, batch: Mapping[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = made.model(**batch).logits
    return logits


def _gap(found: torch.Tensor, goal: torch.Tensor) -> float:
    return float((found - goal).abs().max())


def _close(found: torch.Tensor, goal: torch.Tensor, what: str) -> str:
    scale, gap = max(float(goal.abs().max()), 1e-9), _gap(found, goal)
    expect(
        gap <= CLOSE * scale,
        f"logits differ by {gap:.3g} from {what}, at most {CLOSE * scale:.3g} is rounding",
    )
    return f"within {gap / scale:.1g} of {what}"


def _turned(registry: Registry) -> Registry:
    """Return a registry of the same plugins, registered the other way round."""
    turned = Registry()
    used = [
        (report.name, plugin.load())
        for report, plugin in zip(registry.reports, registry._view.plugins, strict=True)  # noqa: SLF001
        if report.status == "loaded"
    ]
    for name, plugin in used[:0:-1]:  # without the core's own, which is first
        turned.register(plugin, name=name)
    return turned
