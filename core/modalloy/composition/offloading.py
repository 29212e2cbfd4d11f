"""Compositions whose parts accelerate places (``device_map``), and keeps elsewhere until used.

accelerate brings a module's own parameters to its device when the module is called, and takes them
away afterwards. A stream-aware layer reads parameters of modules inside it that are never called,
so its hook has to bring those along. And what is there only while a layer runs cannot be folded.
"""

from typing import Any

import torch
from torch import nn

from modalloy.composition.devices import execution_device
from modalloy.composition.folding import Folding
from modalloy.composition.layers import StreamLinear
from modalloy.composition.vectors import StreamEmbedding, StreamNorm

WHOLE = (StreamEmbedding, StreamLinear, StreamNorm)
"""Layers that are brought with all that is inside them."""


class PlacedModel:
    """Where a composed model's parts are, see the class that mixes this in.

    Attributes:
        folding: Of the language model.
    """

    folding: Folding
    _no_split_modules = tuple(kind.__name__ for kind in WHOLE)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "hf_device_map":  # the last that accelerate sets, its hooks in place
            self._settle()

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the weights, or the one that accelerate starts on."""
        if hasattr(self, "hf_device_map"):
            return execution_device(self)  # type: ignore[arg-type]  # it is a module
        device: torch.device = super().device  # type: ignore[misc]  # of transformers' class
        return device

    def _settle(self) -> None:
        """Have stream-aware layers brought whole; where any are, fold nothing."""
        whole = [m for m in self.modules() if isinstance(m, WHOLE)]  # type: ignore[attr-defined]
        for module in whole:
            hook = getattr(module, "_hf_hook", None)
            if getattr(hook, "offload", False):
                self.folding.drop()
                self.folding.limit = 0
                _bring_whole(module, hook)


def _bring_whole(module: nn.Module, hook: Any) -> None:
    """Put one hook on a module, in place of one on each of the modules in it."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    if hook.place_submodules:
        return
    kept = ("execution_device", "io_same_device", "weights_map", "skip_keys", "tied_params_map")
    settings = {name: getattr(hook, name) for name in kept}
    remove_hook_from_module(module, recurse=True)
    add_hook_to_module(module, AlignDevicesHook(offload=True, place_submodules=True, **settings))
