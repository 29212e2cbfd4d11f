"""modalloy: one multimodal LLM forged out of many, without joint training.

Shapes in this project's docstrings use one legend:

====  ==========================================================================
B     rows of a batch
T     tokens of a row, padding included
D     hidden size of the base
I, O  input and output features of a linear layer (``weight`` is ``(O, I)``)
R     rank of a low-rank delta, or the sum of ranks where several are stacked
M     modalities of a composition
N     inputs (pictures, sounds, ...) of a batch, in prompt order, row by row
K     tokens of one input
F     features of an encoder's token
V     vocabulary of the base
====  ==========================================================================

Importing this package imports neither torch nor any plugin; names are loaded when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from modalloy.auto import register as _register
from modalloy.benchmark import Benchmark
from modalloy.errors import ModalloyError
from modalloy.hookspecs import hookimpl
from modalloy.modality import API_VERSION, Connector, Encoder, MergeMethod, Modality
from modalloy.parent import Parent
from modalloy.tensor_method import Parameter, TensorMethod

if TYPE_CHECKING:
    from modalloy.composition.compose import load
    from modalloy.composition.configuration import ModalloyConfig
    from modalloy.composition.modeling import ModalloyForConditionalGeneration
    from modalloy.composition.processing import ModalloyProcessor
    from modalloy.evaluation.composing import compose
    from modalloy.evaluation.questions import Question
    from modalloy.evaluation.results import Results, paired_interval
    from modalloy.evaluation.run import evaluate
    from modalloy.evaluation.search import search_coefficients
    from modalloy.evaluation.searched import SearchResult
    from modalloy.interop.convert import convert
    from modalloy.interop.export import export
    from modalloy.merging.merge import merge
    from modalloy.registry import Registry

__version__ = "0.1.0"

_LAZY = {
    "ModalloyConfig": "modalloy.composition.configuration",
    "ModalloyForConditionalGeneration": "modalloy.composition.modeling",
    "ModalloyProcessor": "modalloy.composition.processing",
    "Question": "modalloy.evaluation.questions",
    "Registry": "modalloy.registry",
    "Results": "modalloy.evaluation.results",
    "SearchResult": "modalloy.evaluation.searched",
    "compose": "modalloy.evaluation.composing",
    "convert": "modalloy.interop.convert",
    "evaluate": "modalloy.evaluation.run",
    "export": "modalloy.interop.export",
    "load": "modalloy.composition.compose",
    "merge": "modalloy.merging.merge",
    "paired_interval": "modalloy.evaluation.results",
    "search_coefficients": "modalloy.evaluation.search",
}

__all__ = [
    "API_VERSION",
    "Benchmark",
    "Connector",
    "Encoder",
    "MergeMethod",
    "Modality",
    "ModalloyConfig",
    "ModalloyError",
    "ModalloyForConditionalGeneration",
    "ModalloyProcessor",
    "Parameter",
    "Parent",
    "Question",
    "Registry",
    "Results",
    "SearchResult",
    "TensorMethod",
    "compose",
    "convert",
    "evaluate",
    "export",
    "hookimpl",
    "load",
    "merge",
    "paired_interval",
    "search_coefficients",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'modalloy' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


_register()  # last: it may import what imports this package
