"""Sweet Home 3D catalogues: what each entry of a ``.sh3f`` archive says of itself."""

import re
from collections import defaultdict
from pathlib import Path

import attrs

CATALOGUES = {
    "blendswap-cc-0": "BlendSwap-CC-0",
    "blendswap-cc-by": "BlendSwap-CC-BY",
    "katorlegaz": "KatorLegaz",
    "reallusion": "Reallusion",
    "scopia": "Scopia",
}
"""Source name to the file name of its Sweet Home 3D catalogue."""
LISTING = "PluginFurnitureCatalog.properties"
_KEYS = "icon|model|creator|modelRotation|width|depth|height"
_UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@attrs.frozen
class Entry:
    """One object of a catalogue.

    Attributes:
        icon: Member of the archive that holds its picture.
        model: Member that holds its OBJ file.
        creator: Author, or empty.
        rotation: 3 x 3 matrix, row by row, that turns the model upright (y up).
        size: Width, depth and height that the upright model has, in cm.
    """

    icon: str
    model: str
    creator: str
    rotation: tuple[float, ...]
    size: tuple[float, float, float]


def parse_catalogue(text: str) -> dict[str, Entry]:
    """Icon stem to entry of a ``PluginFurnitureCatalog.properties``."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key, number, value in re.findall(rf"^({_KEYS})#(\d+)=(.*)$", text, flags=re.MULTILINE):
        found[number][key] = value.strip()
    return {
        Path(entry["icon"]).stem: Entry(
            icon=entry["icon"].lstrip("/"),
            model=entry["model"].lstrip("/"),
            creator=entry.get("creator", ""),
            rotation=tuple(map(float, entry.get("modelRotation", "").split())) or _UPRIGHT,
            size=(float(entry["width"]), float(entry["depth"]), float(entry["height"])),
        )
        for entry in found.values()
        if "icon" in entry
    }
