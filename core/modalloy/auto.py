"""Making transformers' Auto classes know compositions, without importing transformers.

transformers finds each of its own models by name: tables say that model type ``x`` has the
configuration class ``XConfig``, which is looked up in the module ``transformers.models.x`` when it
is first asked for. ``import modalloy`` has the type ``modalloy`` entered into those tables as each
of them is imported, and answers for the module ``transformers.models.modalloy``, whose classes are
modalloy's own. So ``import modalloy`` costs neither torch nor transformers, and a composition's
classes are imported when a composition is opened.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # what Python asks of them is in their methods; the module costs 10 ms
    Loader = MetaPathFinder = object

MODEL_TYPE = "modalloy"
"""``model_type`` in ``config.json`` of a composition."""

_ALIAS = f"transformers.models.{MODEL_TYPE}"
_CLASSES = ("ModalloyConfig", "ModalloyForConditionalGeneration", "ModalloyProcessor")
_FIRST = "transformers.models.auto.configuration_auto"
_TABLES = MappingProxyType(
    {
        _FIRST: {"CONFIG_MAPPING_NAMES": _CLASSES[0]},
        "transformers.models.auto.modeling_auto": {
            "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": _CLASSES[1],
            "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": _CLASSES[1],
        },
        "transformers.models.auto.processing_auto": {"PROCESSOR_MAPPING_NAMES": _CLASSES[2]},
    }
)
"""By module of transformers, the tables in it and what each has under the model type."""


def register() -> None:
    """Have transformers' Auto classes open compositions from now on."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    imported = _TABLES.keys() & sys.modules.keys()
    if imported == {_FIRST}:
        _enter(sys.modules[_FIRST])
    elif imported:
        # The tables were read into others by now. The public way takes the classes themselves.
        importlib.import_module("modalloy.composition.directory")


def _enter(module: ModuleType) -> None:
    """Enter the model type into the tables of a module."""
    for table, name in _TABLES[module.__name__].items():
        getattr(module, table).setdefault(MODEL_TYPE, name)


class _Finder(MetaPathFinder):
    """Sees the modules with the tables go by, and finds the module that stands for modalloy."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module that this finder has to do with, as importlib asks."""
        if fullname == _ALIAS:
            return ModuleSpec(fullname, _AliasLoader())
        if fullname not in _TABLES:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None
            if find is not None and not isinstance(finder, _Finder):
                spec = find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _TableLoader(spec.loader)
                return spec
        return None


class _TableLoader(Loader):
    """Runs a module of transformers as its own loader does, and makes entries in its tables."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Let the module's own loader make it."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run the module under its own loader, then enter the model type."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _enter(module)


class _AliasLoader(Loader):
    """Makes ``transformers.models.modalloy``, whose classes are imported when asked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:  # noqa: ARG002
        """Leave it to Python."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Give the module modalloy's classes."""

        def find(name: str) -> Any:
            if name not in _CLASSES:
                raise AttributeError(f"module {_ALIAS!r} has no attribute {name!r}")
            return getattr(importlib.import_module("modalloy"), name)

        vars(module).update(__getattr__=find, __all__=list(_CLASSES))
