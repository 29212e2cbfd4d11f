"""What is installed, to the byte: a digest of a distribution's files, from what pip recorded."""

import csv
import importlib.metadata
import json
from hashlib import sha256

_OWN = frozenset({"METADATA", "entry_points.txt"})
"""Files beside the package that come with a wheel; others there are the installer's."""


def installed_digest(distribution: str | None) -> str | None:
    """Return one SHA-256 over those that ``RECORD`` has of a distribution's files.

    It is the same wherever the same wheel is installed: what the installer adds (compiled files,
    scripts, where it came from) is not looked at. No file is read, so this does not tell whether
    one was changed since.

    Args:
        distribution: Its name; ``None`` for what was registered in code.

    Returns:
        The digest; ``None`` where there is nothing to take it from: an editable installation, no
        ``RECORD``, or a damaged one.
    """
    if distribution is None:
        return None
    try:
        found = importlib.metadata.distribution(distribution)
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        rows = list(csv.reader((found.read_text("RECORD") or "").splitlines()))
    except (
        importlib.metadata.PackageNotFoundError,
        ValueError,
        RecursionError,
        OSError,
        csv.Error,
    ):
        return None
    folder = origin.get("dir_info") if isinstance(origin, dict) else None
    if isinstance(folder, dict) and folder.get("editable") is True:
        return None
    lines = sorted(f"{row[1]} {row[0]}\n" for row in rows if len(row) > 1 and _counts(*row[:2]))
    return sha256("".join(lines).encode()).hexdigest() if lines else None


def _counts(path: str, digest: str) -> bool:
    folder, _, name = path.rpartition("/")
    inside = digest != "" and not path.startswith(("..", "/"))
    return inside and (not folder.split("/")[0].endswith(".dist-info") or name in _OWN)
