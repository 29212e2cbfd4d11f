"""The process that opens a pickle and writes its tensors as safetensors; nothing else of modalloy.

It is run by path, ``python -I unpickling.py SOURCE TARGET``, by :mod:`modalloy.interop.pickles`:
what a pickle does, it does in this process. What is wrong with the file is written
to standard error, one line, with exit code 3.
"""

import sys
import zipfile
from typing import Any

REFUSED = 3
"""Exit code when the file, and not the process, is at fault."""
_SLACK = 1 << 20
_LINE = 300


class Refused(Exception):  # noqa: N818 - its message is the outcome, not an accident
    """The file is not what may be read."""


def convert(source: str, target: str) -> None:
    """Write the tensors of a pickle as safetensors.

    Args:
        source: A file that ``torch.save`` made of a flat mapping from names to tensors.
        target: The safetensors file to write.

    Raises:
        Refused: It holds, or asks for, anything else.
    """
    from pathlib import Path

    from safetensors.torch import save_file

    entries = _load(source)
    if not isinstance(entries, dict) or not entries:
        raise Refused(f"holds a {type(entries).__name__}, expected tensors by name")
    tensors: dict[str, Any] = {}
    owners: set[int] = set()
    for name, value in entries.items():
        tensors[name] = _plain(name, value)
        place = value.untyped_storage().data_ptr()
        if place in owners:  # safetensors takes no two names for one memory
            tensors[name] = tensors[name].clone()
        owners.add(place)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > 2 * Path(source).stat().st_size + _SLACK:
        raise Refused(f"claims {size} bytes of tensors, more than twice the size of the file")
    save_file({n: t.contiguous() for n, t in tensors.items()}, target, metadata={"format": "pt"})


def _load(source: str) -> Any:
    import torch

    try:
        # Only the format of torch 1.6 and later, a zip file, can be mapped.
        mapped = zipfile.is_zipfile(source)
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever a stranger's file brings about is told, not thrown
        raise Refused(f"cannot be read as tensors alone: {_explain(error)}") from error


def _plain(name: object, value: Any) -> Any:
    """Return a tensor without its gradient.

    Raises:
        Refused: It is no tensor, or one whose values the file does not hold.
    """
    import torch

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        kind = type(value).__name__
        raise Refused(f"has an entry {str(name)[:_LINE]!r} that is a {kind}, expected a tensor")
    plain = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
    if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise Refused(f"has a tensor {name[:_LINE]!r} whose values it does not hold one by one")
    return value.detach()


def _explain(error: Exception) -> str:
    """Return the telling line of torch's message, which otherwise advises to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or line.startswith("Unsupported")]
    first = (telling or lines or [type(error).__name__])[0]
    return first.split(" Please use", 1)[0].split(" Re-running", 1)[0][:_LINE]


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    try:
        convert(*sys.argv[1:])
    except Refused as refused:
        sys.stderr.write(f"{refused}\n")
        sys.exit(REFUSED)
