"""Where modules run, which need not be where their weights are kept (accelerate)."""

import torch
from torch import nn


def execution_device(module: nn.Module) -> torch.device:
    """Return where a module runs, wherever its weights are kept meanwhile."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next((p.device for p in module.parameters()), torch.device("cpu"))
