"""Fake plugins: their source text, and distributions laid out as pip leaves them."""

import sys
from pathlib import Path

import attrs

import modalloy

HEADER = """
from modalloy import API_VERSION, Connector, Encoder, MergeMethod, Modality, Parent, hookimpl
"""


def modality_source(name: str, content_type: str = "smell") -> str:
    """Return a plugin that offers one modality."""
    return f"""{HEADER}
@hookimpl
def register_modalities(register):
    register(Modality(
        name={name!r}, api_version=API_VERSION, content_type={content_type!r},
        placeholder="<|{content_type}|>", read="json:loads", limits={{"bytes": 1000}},
    ))
"""


def encoder_source(
    name: str, modality: str = "smell", target: str = "json:loads", shape: str = "json:dumps"
) -> str:
    """Return hooks, to be added to a plugin, that offer one encoder."""
    return f"""
@hookimpl
def register_encoders(register):
    register(Encoder(
        name={name!r}, api_version=API_VERSION, modality={modality!r},
        build="json:loads", preprocess={target!r}, output_shape={shape!r},
    ))
"""


def parent_source(
    name: str, directory: Path, *, modality: str = "smell", base: str = "tiny"
) -> str:
    """Return hooks, to be added to a plugin, that offer one packaged parent."""
    return f"""
from pathlib import Path

@hookimpl
def register_parents(register):
    register(Parent(
        name={name!r}, api_version=API_VERSION, modality={modality!r}, base={base!r},
        strategy="naive", source=Path({str(directory)!r}), licence="MIT",
    ))
"""


@attrs.frozen
class Site:
    """A directory of installed distributions that importlib.metadata really reads."""

    path: Path

    def install(
        self,
        distribution: str,
        source: str,
        *,
        name: str | None = None,
        version: str = "1.0",
        metadata: str | None = None,
    ) -> str:
        """Install a distribution of one module with one entry point; return the module's name."""
        module = distribution.replace("-", "_")
        (self.path / f"{module}.py").write_text(source, encoding="utf-8")
        info = self.path / f"{module}-{version}.dist-info"
        info.mkdir()
        if metadata is None:
            metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        points = f"[modalloy]\n{name or distribution} = {module}\n"
        (info / "entry_points.txt").write_text(points, encoding="utf-8")
        return module

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of a subprocess that sees this site, the core, and no more."""
        core = str(Path(modalloy.__file__).parents[1])
        return {
            "PATH": str(Path(sys.executable).parent),
            "PYTHONPATH": f"{self.path}:{core}",
            "OMP_NUM_THREADS": "1",
            **variables,
        }
