"""Wheels that look whole and are not, and plugins that are no package."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fakes import Site, modality_source, parent_source
from modalloy import Registry
from modalloy.parent import MANIFEST, read_manifest, write_manifest
from modalloy.testing import CheckFailed, check_wheel, tiny_base, toy_parent
from modalloy.testing.wheel_contents import package_of
from wheels import FULL, METADATA, POINTS, installed, wheel

__all__ = ["installed"]  # the fixture


def failed(file: Path | None, name: str = "smell", **options: Any) -> dict[str, str]:
    with pytest.raises(CheckFailed) as caught:
        check_wheel(name, file, **options)
    return {one.check: one.detail for one in caught.value.checks if one.ok is False}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("Name: nose", "Name: ears"), "it is of 'ears', and the plugin that is installed of 'no"),
        (("modalloy<0.2,>=0.1", "modalloy>=9,<10"), "cannot be installed beside modalloy 0.1.0"),
        (("modalloy<0.2,>=0.1", 'modalloy<0.2; extra == "x"'), "it requires no modalloy"),
        (("modalloy<0.2,>=0.1", "modalloy!=0.3"), "with an upper bound"),
        (("modalloy<0.2,>=0.1", "modalloy~~1"), "InvalidRequirement"),
    ],
)
def test_metadata_that_would_not_do(
    installed: Site, tmp_path: Path, change: tuple[str, str], text: str
) -> None:
    file = wheel(tmp_path, *FULL, metadata=METADATA.replace(*change), points=POINTS)
    assert text in failed(file)["metadata"]


@pytest.mark.parametrize(
    ("points", "text"),
    [
        ("[modalloy]\nnose = nose\n[console_scripts]\nsmell = nose\n", "found nose = nose"),
        ("[modalloy]\nSmell = nose\n", "found Smell = nose"),
        ("[modalloy]\nsmell = nose.plugin\n", "found smell = nose.plugin"),
        ("smell = nose\n", "entry_points.txt cannot be read: File contains no section headers"),
        ("", "must have 'smell = nose' under [modalloy], found nothing"),
    ],
)
def test_an_entry_point_elsewhere_is_none(
    installed: Site, tmp_path: Path, points: str, text: str
) -> None:
    file = wheel(tmp_path, *FULL, metadata=METADATA, points=points)
    assert text in failed(file)["entry point"]


def test_what_is_no_wheel_is_told(installed: Site, tmp_path: Path) -> None:
    (tmp_path / "text.whl").write_text("no wheel")
    for file in (tmp_path / "text.whl", tmp_path / "nothing.whl", tmp_path):
        assert failed(file) == {"opened": f"{file} is not there, or is no wheel"}


def test_a_plugin_without_a_distribution_or_a_package_is_told(site: Site, tmp_path: Path) -> None:
    registry = Registry()
    site.install("single", modality_source("single"))
    assert failed(tmp_path, "single")["opened"].endswith("is no wheel")
    file = wheel(tmp_path, "single.py")
    assert failed(file, "single")["opened"].startswith("single is a single file; make it a pac")
    registry.register(__import__("single"), name="coded")
    assert failed(None, "coded", registry=registry)["opened"] == (
        "plugin 'coded' is registered in code, so no distribution of it is installed"
    )


def test_a_package_in_a_namespace(site: Site) -> None:
    (site.path / "many" / "nose").mkdir(parents=True)
    (site.path / "many" / "nose" / "__init__.py").touch()
    (site.path / "many" / "nose" / "plugin.py").touch()
    package = package_of("many.nose.plugin")
    assert package.name.as_posix() == "many/nose"
    assert package.files() == ["many/nose/__init__.py", "many/nose/plugin.py"]


@pytest.fixture
def packaged(installed: Site, tmp_path: Path) -> Path:
    """Return a parent inside the plugin's package."""
    base = tiny_base(tmp_path / "base")
    parent = toy_parent(installed.path / "nose" / "parent", base, "sight")
    with (installed.path / "nose" / "__init__.py").open("a") as file:
        file.write(parent_source("nose", parent, modality="sight"))
    return parent


def whole(parent: Path, tmp_path: Path) -> Path:
    """Return a wheel that has the parent as it is now."""
    file = wheel(tmp_path, *FULL, metadata=METADATA, points=POINTS)
    with zipfile.ZipFile(file, "a") as archive:
        for one in sorted(path for path in parent.rglob("*") if path.is_file()):
            archive.write(one, f"nose/parent/{one.relative_to(parent).as_posix()}")
    return file


def test_a_wheel_with_an_earlier_parent_is_told(packaged: Path, tmp_path: Path) -> None:
    file = whole(packaged, tmp_path)
    assert all(check.ok for check in check_wheel("smell", file))
    save_file({"projection.weight": torch.ones(2, 2)}, packaged / "connector.safetensors")
    write_manifest(packaged, read_manifest(packaged))
    assert "its nose/parent/parent.json is not the one" in failed(file)["parent 'nose'"]
    (packaged / "connector.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    assert (
        "its nose/parent/connector.safetensors is not the one that parent.json records"
        in (failed(whole(packaged, tmp_path))["parent 'nose'"])
    )


def test_a_parent_outside_its_package_is_told(installed: Site, tmp_path: Path) -> None:
    parent = toy_parent(tmp_path / "parent", tiny_base(tmp_path / "base"), "sight")
    with (installed.path / "nose" / "__init__.py").open("a") as file:
        file.write(parent_source("nose", parent, modality="sight"))
    found = failed(wheel(tmp_path, *FULL, metadata=METADATA, points=POINTS))["parent 'nose'"]
    outside = f"{parent / MANIFEST} is outside the package {installed.path / 'nose'}; put it inside"
    assert found == outside
