"""The contract between modalloy and its plugins, on one page.

A plugin is a module named by an entry point in the group ``modalloy``::

    [project.entry-points.modalloy]
    vision = "modalloy_vision.plugin"

It implements any of the hooks below with ``@modalloy.hookimpl``. Each is called once, at
discovery, with a ``register`` callback that validates what it is given and raises on a duplicate
name; a hook returns nothing. Importing the module must not import torch: what needs it is named
by a target string (:mod:`modalloy.modality`). A plugin whose import or hooks fail is left out
whole, with the reason on record; the others are unaffected.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

from modalloy.benchmark import Benchmark
from modalloy.modality import Connector, Encoder, MergeMethod, Modality
from modalloy.parent import Parent
from modalloy.tensor_method import TensorMethod

if TYPE_CHECKING:
    import typer

GROUP = "modalloy"
"""Entry-point group, and the project name of pluggy's markers."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def register_modalities(register: Callable[[Modality], None]) -> None:
    """Offer kinds of input: content part, placeholder, reader and limits."""


@hookspec
def register_encoders(register: Callable[[Encoder], None]) -> None:
    """Offer kinds of encoder, by the name that ``parent.json`` uses."""


@hookspec
def register_connectors(register: Callable[[Connector], None]) -> None:
    """Offer kinds of connector, by the name that ``parent.json`` uses."""


@hookspec
def register_parents(register: Callable[[Parent], None]) -> None:
    """Offer trained parents: packaged directories or Hub repositories."""


@hookspec
def register_merge_methods(register: Callable[[MergeMethod], None]) -> None:
    """Offer ways to turn parents' deltas into the streams of a composition."""


@hookspec
def register_tensor_methods(register: Callable[[TensorMethod], None]) -> None:
    """Offer ways to merge whole weights, tensor by tensor."""


@hookspec
def register_benchmarks(register: Callable[[Benchmark], None]) -> None:
    """Offer sets of questions, by the name that ``modalloy evaluate`` uses."""


@hookspec
def register_commands(cli: "typer.Typer") -> None:
    """Add commands to the ``modalloy`` command line; called only when it runs."""
