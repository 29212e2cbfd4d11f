"""Finds the Debian packages that the household data come from, or fetches them without root.

Run ``python -m recipes.household.fetch --work DIR`` to see where each one lies.
"""

import argparse
import shutil
import subprocess
from pathlib import Path

import attrs
from recipes.household.furniture import CATALOGUES

PACKAGES = {
    "sweethome3d-furniture": "usr/share/sweethome3d/furniture",
    "tuxpaint-stamps-default": "usr/share/tuxpaint/stamps",
    "openclipart-png": "usr/share/openclipart/png",
}
"""Debian package to the folder that it unpacks, relative to its root."""


@attrs.frozen
class Sources:
    """Where the raw material lies.

    Attributes:
        furniture: Folder of the five ``.sh3f`` catalogues.
        stamps: Picture folder of Tux Paint's stamps.
        clipart: Picture folder of openclipart.
        espeak: The espeak-ng program.
    """

    furniture: Path
    stamps: Path
    clipart: Path
    espeak: Path

    def catalogue(self, source: str) -> Path:
        """The ``.sh3f`` archive of a source of Sweet Home 3D."""
        return self.furniture / f"{CATALOGUES[source]}.sh3f"


def fetch(work: Path) -> Sources:
    """Uses installed packages, and downloads and unpacks the others below ``work/debian``.

    Raises:
        FileNotFoundError: espeak-ng is not installed, or a package does not hold what it should.
        subprocess.CalledProcessError: apt-get or dpkg failed; their own message stands above.
    """
    folders = {package: _folder(package, path, work) for package, path in PACKAGES.items()}
    espeak = shutil.which("espeak-ng")
    if espeak is None:
        raise FileNotFoundError(
            "The program espeak-ng is not on PATH; it speaks the words of the audio data. "
            "Install it with: apt-get install espeak-ng"
        )
    return Sources(
        furniture=folders["sweethome3d-furniture"],
        stamps=folders["tuxpaint-stamps-default"],
        clipart=folders["openclipart-png"],
        espeak=Path(espeak),
    )


def _folder(package: str, path: str, work: Path) -> Path:
    """The installed folder of ``package``, or that of a copy unpacked below ``work``."""
    installed = Path("/", path)
    if installed.is_dir():
        return installed
    root = work / "debian" / package
    unpacked = root / path
    if not unpacked.is_dir():
        _unpack(package, root)
    if not unpacked.is_dir():
        raise FileNotFoundError(
            f"Debian package {package}: expected the folder {path} in it, found none in {root}. "
            "Another release may have moved it: install the package and look for it, or take "
            "Debian 12's."
        )
    return unpacked


def _unpack(package: str, root: Path) -> None:
    """Downloads ``package`` and unpacks it to ``root``; a broken run leaves no ``root``."""
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    print(f"fetching {package}", flush=True)
    subprocess.run(["apt-get", "download", package], cwd=part, check=True)
    deb = next(part.glob("*.deb"))
    subprocess.run(["dpkg", "-x", deb.name, "."], cwd=part, check=True)
    deb.unlink()
    part.rename(root)


def main() -> None:
    """Fetches what is missing and prints where everything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for fetched packages")
    for name, path in attrs.asdict(fetch(parser.parse_args().work)).items():
        print(f"{name:10} {path}")


if __name__ == "__main__":
    main()
