"""Names in recipes, configurations and calls: of what is installed, never code, path or address."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import modalloy
from modalloy.errors import (
    FormatError,
    MissingComponentError,
    ModalloyError,
    SpecError,
    UnknownNameError,
)
from safety.entries import merge
from safety.hostile import Box
from toy import toy_registry

MakeBox = Callable[[str], Box]
NAMES = (
    "foreign:C",
    "foreign",
    "os:system",
    "../foreign",
    "./foreign.py",
    "git+https://evil.example/x",
    "https://evil.example/x.whl",
    "file:///etc/hostname",
)


@pytest.fixture
def inside(box: MakeBox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """A base whose directory holds a module, and is where Python would look for it."""
    found = box("base")
    found.code()
    monkeypatch.syspath_prepend(str(found.model))
    monkeypatch.chdir(found.model)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.setattr("modalloy.composition.directory.snapshot_download", unreachable)
    yield found
    assert "foreign" not in sys.modules


def unreachable(*arguments: Any, **_: Any) -> None:
    pytest.fail(f"the Hub was asked for {arguments}")


@pytest.mark.parametrize("name", NAMES)
def test_methods(inside: Box, good: Path, name: str) -> None:
    for call in (
        lambda: merge(inside, good / "base", good / "base", method=name),
        lambda: modalloy.compose(
            good / "base",
            parents=[good / "parent"],
            method=name,
            registry=toy_registry("sight"),
        ),
    ):
        inside.refuses(call, UnknownNameError, f"method {name!r}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["modality", "parent"])
def test_what_a_composition_is_made_of(inside: Box, good: Path, what: str, name: str) -> None:
    options: dict[str, Any] = {"parents": [good / "parent"], "modalities": ["sight", name]}
    if what == "parent":
        options = {"parents": [name]}

    def call() -> Any:
        return modalloy.compose(good / "base", registry=toy_registry("sight"), **options)

    inside.refuses(call, UnknownNameError, f"unknown {what} {name!r}")


@pytest.mark.parametrize(
    "name", [*NAMES, "/nowhere/at/all", "~nobody/x", "a/b/c", "C:\\x", "x\ny", "org/../x"]
)
def test_what_is_plainly_no_hub_id_is_asked_of_nobody(inside: Box, good: Path, name: str) -> None:
    """``foreign`` alone may name a composition's repository, and no base's."""

    def compose() -> Any:
        return modalloy.compose(name, parents=[good / "parent"], registry=toy_registry("sight"))

    inside.refuses(compose, UnknownNameError, "unknown base")
    for base, model in ((good / "base", name), (name, good / "base")):
        inside.refuses(lambda b=base, m=model: merge(inside, b, m), ModalloyError, "")
    if name != "foreign":
        inside.refuses(
            lambda: modalloy.load(name, registry=toy_registry("sight")),
            MissingComponentError,
            "is no directory",
        )


def test_a_recipe_runs_nothing(inside: Box, good: Path) -> None:
    """YAML has tags that make objects; what a recipe names is looked up, not imported."""
    lines = {
        "merge_method": "linear",
        "base_model": str(good / "base"),
        "models": f"[{{model: {good / 'base'}, parameters: {{weight: 1}}}}]",
    }
    for key, text in (
        ("merge_method", "!!python/name:foreign.C"),
        ("merge_method", "!!python/object/apply:os.system ['touch ../canary']"),
        ("models", "!!python/object/new:foreign.C []"),
        ("base_model", "!!python/module:foreign"),
    ):
        recipe = inside.outside.path.parent.parent / "recipe.yml"
        recipe.write_text("".join(f"{k}: {v}\n" for k, v in (lines | {key: text}).items()))
        inside.refuses(
            lambda path=recipe: modalloy.merge(path, inside.out), ModalloyError, "is not valid YAML"
        )


def test_a_recipe_that_unfolds_without_end(inside: Box) -> None:
    """Aliases within aliases: 10^9 numbers, if anything wrote them out."""
    rows = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 9)]
    recipe = inside.outside.path.parent.parent / "recipe.yml"
    whole = f"merge_method: linear\nmodels: [{{model: a}}]\nparameters:\n  {'{0}  '.join(rows)}\n"
    recipe.write_text(whole.replace("{0}", "\n"))
    inside.refuses(lambda: modalloy.merge(recipe, inside.out), SpecError, "no parameter 'x0'")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["encoder", "connector", "modality"])
def test_training_configurations(inside: Box, good: Path, part: str, name: str) -> None:
    from modalloy.training.config import read_config
    from modalloy.training.train import train

    values = {"encoder": "toy-sight", "connector": "linear", "modality": "sight", part: name}
    text = f"""
name: x
base: {good / "base"}
modality: "{values["modality"]}"
encoder: {{type: "{values["encoder"]}", config: {{}}}}
connector: {{type: "{values["connector"]}", config: {{}}}}
connector_stage: {{steps: 0, data: []}}
tuning_stage: {{steps: 0, data: []}}
"""
    path = inside.outside.path.parent.parent / "train.yml"
    path.write_text(text)
    config = inside.takes(lambda: read_config(path))
    work = inside.root.parent / "below" / "work"
    inside.refuses(
        lambda: train(
            config,
            inside.out,
            data=good,
            work=work,
            registry=toy_registry("sight"),
        ),
        UnknownNameError,
        f"unknown {part} {name!r}",
    )
    assert not work.parent.exists()  # nothing is made before it is known that it will be used


@pytest.mark.parametrize("name", ["org/kernel", "sdpa|org/kernel", "org/kernel@main:f"])
def test_attention_from_elsewhere(tmp_path: Path, name: str) -> None:
    """transformers takes such a name for a repository of kernels, fetches it and runs it."""
    from modalloy.training.config import read_config

    text = "name: x\nmodality: sight\nencoder: {type: toy-sight}\nconnector: {type: linear}\n"
    text += f"connector_stage: {{steps: 0}}\ntuning_stage: {{steps: 0}}\nattention: {name}\n"
    (tmp_path / "train.yml").write_text(text)
    with pytest.raises(FormatError, match="attention must be the name of an implementation of"):
        read_config(tmp_path / "train.yml")
