"""Checking a modality: what it declares, what it reads, what it refuses, and its encoders."""

import inspect
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modalloy.modality import Modality, resolve
from modalloy.registry import Registry
from modalloy.testing.encoder_checks import check_encoders, used_encoders
from modalloy.testing.fresh import check_declaring
from modalloy.testing.reading_checks import Reader, Sample, enforces, survives
from modalloy.testing.report import Check, Checks, expect

MEMORY = 1 << 30
"""Bytes that reading a small damaged file may take, unless told otherwise."""


def check_modality(
    spec: str | Modality,
    *,
    registry: Registry | None = None,
    samples: Iterable[object] = (),
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    seconds: float = 10.0,
    memory: int = MEMORY,
) -> tuple[Check, ...]:
    """Check that a modality keeps the contract, with the encoders that take its inputs.

    Looked at is

    - its plugin, where it is installed: loading it imports nothing heavy and prints nothing;
    - what it declares, and whether its reader can be imported and called;
    - its limits: each is to be enforced, which takes a sample that is larger than 1 in it;
    - reading: a file as bytes and by its path gives the same, twice the same, and changes nothing;
    - refusing: what is no input, a URL, a pipe, what is empty, damaged, cut off or claims to be
      huge raises :class:`~modalloy.errors.InputError` with a message, and nothing else, within
      bounds of time and memory; damaged files are derived from the samples, the same ones every
      time, and what is read of them all the same must be of use to the encoders;
    - each encoder whose configuration is known: shapes follow from the configuration alone and
      without torch, features are finite and depend on the input, a batch of any size gives what
      each input gives alone, the encoder is frozen, repeats itself, and is the same built anew;
    - conduct: reader and encoder leave torch's settings, random states, the environment, files and
      standard output alone, and the reader asks no network.

    Args:
        spec: Name of a registered modality, or a modality.
        registry: Supplies it and its encoders; what is installed if left out.
        samples: Good inputs: the bytes of files, their paths (``pathlib.Path``), or objects that
            the reader takes. Without any, little can be said.
        configs: Configuration by encoder name. Those of the modality's packaged parents are known.
        seconds: The most that reading one of these inputs may take.
        memory: The most bytes that reading a damaged one may take.

    Returns:
        All that was looked at; ``ok`` is ``None`` where something could not be.

    Raises:
        CheckFailed: A check failed; the message lists all that did.
        UnknownNameError: No such modality is registered.
    """
    registry = registry or Registry.discover()
    modality = registry.modality(spec) if isinstance(spec, str) else spec
    subject = f"modality {modality.name!r}"
    checks = Checks(subject)
    if registry.modalities.get(modality.name) is modality:
        owner = registry.owner("modality", modality.name)
        if owner.distribution is not None:
            checks.run(subject, "plugin", lambda: check_declaring(owner.name))
    if not checks.run(subject, "reader", lambda: _callable_reader(modality)):
        return checks.finish()
    with tempfile.TemporaryDirectory(prefix="modalloy-") as folder:
        reader = Reader(modality, Path(folder), seconds, memory)
        given = [reader.sample(index, source) for index, source in enumerate(samples)]
        for one in given[:1]:
            reader.conduct.warm(one.read)
        good = [one for one in given if checks.run(subject, one.label, one.check_read)]
        used = used_encoders(registry, modality.name, configs or {})
        if good:
            checks.run(subject, "type of what is read", lambda: _one_type(good))
            for limit in modality.limits:
                checks.run(subject, f"limit {limit!r}", enforces(reader, good, limit))
        else:
            checks.skip(subject, "reading and limits", "no sample was given, or none could be read")
        checks.run(subject, "what is no input", reader.refuses_no_inputs)
        check_encoders(checks, registry, modality, used, [one.decoded for one in good])
        files = [one for one in good if one.data is not None]
        for one in files:
            checks.run(subject, f"{one.label}, damaged", survives(reader, one, used))
        if not files:
            checks.skip(subject, "damaged files", "no sample is a file: bytes or a pathlib.Path")
        checks.run(subject, "conduct", reader.conduct.verdict)
    return checks.finish()


def _callable_reader(modality: Modality) -> str:
    read = resolve(modality.read)
    expect(callable(read), f"read must be callable, found {type(read).__name__}")
    try:
        inspect.signature(read).bind(b"", modality.limits)
    except TypeError as error:
        raise AssertionError(f"read must take (source, limits): {error}") from error
    return f"{modality.read} takes (source, limits)"


def _one_type(good: list[Sample]) -> str:
    kinds = sorted({type(one.decoded).__name__ for one in good})
    expect(
        len(kinds) == 1, f"samples are read as {', '.join(kinds)}; an encoder expects one of these"
    )
    return kinds[0]
