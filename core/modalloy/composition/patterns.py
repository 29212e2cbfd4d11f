"""Which modules deltas reach, as patterns: what a composition's configuration says of them.

A pattern is ``{"module", "rank", "scale"}``. Of a pair, ``module`` is the name of a linear layer;
of a whole delta it is a tensor's name, and the rank is 0.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from modalloy.deltas.lowrank import LowRankDelta
from modalloy.errors import DeltaError

WHOLE = 0
"""Rank of a pattern that stands for whole tensors."""


def summarise(
    delta: LowRankDelta, linears: Iterable[str], parameters: Iterable[str]
) -> list[dict[str, Any]]:
    """Return a delta's modules, ranks and scales as patterns, for the configuration.

    A layer number becomes ``*`` where the delta reaches that module in every layer of the model
    with one rank and scale; other modules stand by name.

    Args:
        delta: The delta.
        linears: Names of the model's linear layers.
        parameters: Names of its parameters.

    Raises:
        DeltaError: The delta names a module or tensor that is not among them.
    """
    pairs = {name: (pair.rank, pair.scale) for name, pair in delta.pairs.items()}
    entries = _group(pairs, linears, "linear layer")
    return entries + _group(dict.fromkeys(delta.tensors, (WHOLE, 1.0)), parameters, "parameter")


def _group(
    members: Mapping[str, tuple[int, float]], known: Iterable[str], what: str
) -> list[dict[str, Any]]:
    everywhere: dict[str, set[str]] = {}
    for name in known:
        everywhere.setdefault(_star(name), set()).add(name)
    groups: dict[str, dict[str, tuple[int, float]]] = {}
    for name, value in members.items():
        if name not in everywhere.get(_star(name), ()):
            raise DeltaError(
                f"the delta of {name!r} has no place: the base has no {what} of that name",
                tensor=name,
            )
        groups.setdefault(_star(name), {})[name] = value
    entries: list[dict[str, Any]] = []
    for star, found in groups.items():
        uniform = found.keys() == everywhere[star] and len(set(found.values())) == 1
        named = {star: next(iter(found.values()))} if uniform else found
        entries += [{"module": n, "rank": rank, "scale": s} for n, (rank, s) in named.items()]
    return entries


def expand_patterns(
    entries: Iterable[Mapping[str, Any]], linears: Iterable[str]
) -> dict[str, tuple[int, float]]:
    """Return rank and scale by module name of the pairs: the inverse of :func:`summarise`.

    Raises:
        DeltaError: A pattern matches no linear layer of the model.
    """
    by_star = _by_star(linears)
    table: dict[str, tuple[int, float]] = {}
    for entry in entries:
        if entry["rank"] != WHOLE:
            names = _match(entry["module"], by_star, "linear layer")
            table |= dict.fromkeys(names, (entry["rank"], float(entry["scale"])))
    return table


def expand_tensors(
    entries: Iterable[Mapping[str, Any]], parameters: Iterable[str]
) -> frozenset[str]:
    """Return the names of the tensors that have whole deltas.

    Raises:
        DeltaError: A pattern matches no parameter of the model.
    """
    whole = [entry["module"] for entry in entries if entry["rank"] == WHOLE]
    by_star = _by_star(parameters) if whole else {}
    return frozenset(name for module in whole for name in _match(module, by_star, "parameter"))


def _by_star(names: Iterable[str]) -> dict[str, list[str]]:
    by_star: dict[str, list[str]] = {}
    for name in names:
        by_star.setdefault(_star(name), []).append(name)
        by_star.setdefault(name, [name])
    return by_star


def _match(pattern: str, by_star: Mapping[str, list[str]], what: str) -> list[str]:
    if pattern not in by_star:
        raise DeltaError(f"config.json: {pattern!r} matches no {what} of the base", tensor=pattern)
    return by_star[pattern]


def _star(name: str) -> str:
    """Return a module's name with ``*`` in place of its layer number."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
