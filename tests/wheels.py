"""A plugin that is installed, and wheels of it that are whole or not."""

import zipfile
from pathlib import Path

import pytest

from fakes import Site, modality_source

POINTS = "[modalloy]\nsmell = nose\n"
METADATA = (
    "Name: nose\nVersion: 1.0\nLicense-Expression: MIT\nLicense-File: LICENSE\n"
    "Requires-Dist: modalloy-vision>=3\nRequires-Dist: modalloy<0.2,>=0.1\n"
)
FULL = (
    "nose/__init__.py",
    "nose/weights.bin",
    "nose/py.typed",
    "nose-1.0.dist-info/licenses/LICENSE",
)


def wheel(folder: Path, *names: str, metadata: str = "", points: str = "") -> Path:
    file = folder / "nose-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "")
        archive.writestr("nose-1.0.dist-info/METADATA", metadata)
        archive.writestr("nose-1.0.dist-info/entry_points.txt", points)
    return file


@pytest.fixture
def installed(site: Site) -> Site:
    package = site.path / "nose"
    package.mkdir()
    (package / "weights.bin").write_bytes(b"1")
    (package / "py.typed").touch()
    site.install("nose", modality_source("smell"), name="smell")
    (site.path / "nose.py").rename(package / "__init__.py")
    return site
