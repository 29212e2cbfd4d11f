"""Checking what encoders declare and what they make of decoded inputs."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modalloy.modality import Modality, Target
from modalloy.parent import ENCODER_FILE, MANIFEST, read_manifest
from modalloy.registry import Registry
from modalloy.testing.conduct import Conduct
from modalloy.testing.feature_checks import check_features
from modalloy.testing.fresh import shape_in_fresh_process
from modalloy.testing.report import Checks, expect
from modalloy.testing.sameness import content, same
from modalloy.testing.used import Used


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
        conduct = Conduct()
        looked = functools.partial(_check_preprocess, one, decoded, conduct)
        if checks.run(one.subject, "preprocess", looked):
            check_features(checks, registry, modality, one, decoded, conduct)
        checks.run(one.subject, "conduct", conduct.verdict)


def _check_shape(one: Used) -> str:
    shape = one.shape()
    expect(one.shape() == shape, "output_shape gives two results for one configuration")
    target: Target = one.kind.output_shape
    if isinstance(target, str):
        found, heavy = shape_in_fresh_process(target, one.config)
        expect(found == list(shape), f"output_shape is {found} in a new process, {shape} here")
        expect(not heavy, f"{target} imports torch, which laying out a prompt must not")
    return f"{shape[0]} tokens of {shape[1]} features"


def _check_preprocess(one: Used, decoded: Sequence[Any], conduct: Conduct) -> str:
    given, contents = content(dict(one.config)), [content(each) for each in decoded]
    conduct.warm(lambda: one.preprocess(decoded[0]))
    first = one.preprocess(decoded[0])
    for index, (each, before) in enumerate(zip(decoded, contents, strict=True)):
        work = functools.partial(one.preprocess, each)
        tensors = conduct.watch("preprocess", work)
        expect(same(tensors, work()), f"sample {index} twice gives two results")
        expect(content(each) == before, f"it changes what was read of sample {index}")
        found, goal = ({n: tuple(t.shape) for n, t in ts.items()} for ts in (tensors, first))
        expect(
            found == goal,
            f"sample {index} gives tensors {found}, sample 0 gives {goal}; shapes must follow "
            "from the configuration alone",
        )
        kinds, wanted = ({n: t.dtype for n, t in ts.items()} for ts in (tensors, first))
        expect(kinds == wanted, f"sample {index} gives tensors of {kinds}, sample 0 of {wanted}")
    expect(content(dict(one.config)) == given, "it changes the configuration that it is given")
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in first.items())
