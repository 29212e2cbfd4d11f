"""Which parents a composition takes in."""

import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest

import modalloy
from modalloy import API_VERSION, Parent, hookimpl
from modalloy.errors import MissingComponentError, ModalloyError, SpecError, UnknownNameError
from modalloy.parent import read_manifest, write_manifest
from tiny import tiny_base
from toy import ToyPlugin, toy_parent, toy_registry


class Offers:
    """A plugin that offers parents."""

    def __init__(self, *parents: Parent) -> None:
        self.parents = parents

    @hookimpl
    def register_parents(self, register: Any) -> None:
        for parent in self.parents:
            register(parent)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("selection")
    base = tiny_base(root / "base", seed=3)
    found = {"base": base, "root": root}
    for modality in ("sight", "sound"):
        for strategy in ("decoupled", "naive"):
            key = f"{modality}-{strategy}"
            found[key] = toy_parent(root / key, base, modality, strategy=strategy)
    return found


def offer(places: dict[str, Path], key: str, **changes: Any) -> Parent:
    modality, strategy = key.split("-")
    fields: dict[str, Any] = {
        "name": f"{key}-toy",
        "api_version": API_VERSION,
        "modality": modality,
        "base": "base",
        "strategy": strategy,
        "source": places[key],
    }
    return Parent(**{**fields, **changes})


def taken(places: dict[str, Path], *offers: Parent, **settings: Any) -> dict[str, tuple[str, str]]:
    """Source and strategy of the parent that was taken, by modality."""
    registry = toy_registry()
    registry.register(Offers(*offers), name="offers")
    base = settings.pop("base", places["base"])
    model, _ = modalloy.compose(base, registry=registry, **settings)
    return {p["modality"]: (p["source"], p["strategy"]) for p in model.provenance["parents"]}


ALL = ("sight-decoupled", "sight-naive", "sound-decoupled", "sound-naive")


def test_the_method_takes_the_strategy_it_likes_best(places: dict[str, Path]) -> None:
    offers = [offer(places, key) for key in ALL]
    assert taken(places, *offers) == {
        "sight": ("sight-decoupled-toy", "decoupled"),
        "sound": ("sound-decoupled-toy", "decoupled"),
    }
    assert taken(places, *offers, method="naive") == {
        "sight": ("sight-naive-toy", "naive"),
        "sound": ("sound-naive-toy", "naive"),
    }
    mixed = [offer(places, "sight-naive"), offer(places, "sound-decoupled")]
    assert taken(places, *mixed)["sight"] == ("sight-naive-toy", "naive")


def test_named_parents_take_the_place_of_installed_ones(places: dict[str, Path]) -> None:
    offers = [offer(places, key) for key in ALL]
    assert taken(places, *offers, parents=["sight-naive-toy"]) == {
        "sight": ("sight-naive-toy", "naive"),
        "sound": ("sound-decoupled-toy", "decoupled"),
    }
    by_path = taken(places, *offers, parents=[places["sound-naive"]], modalities=["sound"])
    assert by_path == {"sound": ("sound-naive", "naive")}
    as_text = taken(places, *offers, parents=[str(places["sound-naive"])], modalities=["sound"])
    assert as_text == by_path


def test_the_base_is_known_by_its_fingerprint(places: dict[str, Path]) -> None:
    moved = places["root"] / "renamed"
    if not moved.exists():
        shutil.copytree(places["base"], moved)
    offers = [offer(places, "sight-decoupled", base="org/another-name")]
    assert taken(places, *offers, base=moved)["sight"][0] == "sight-decoupled-toy"
    other = places["root"] / "other"
    if not other.exists():
        tiny_base(other, seed=9)
    with pytest.raises(SpecError, match="no installed plugin has a parent for base 'other'"):
        taken(places, *offers, base=other)


def test_two_that_fit_alike_must_be_named(places: dict[str, Path]) -> None:
    offers = [offer(places, "sight-naive"), offer(places, "sight-naive", name="again")]
    with pytest.raises(
        SpecError, match=r"has 2 naive parents .*: again, sight-naive-toy; name one"
    ):
        taken(places, *offers)
    assert taken(places, *offers, parents=["again"]) == {"sight": ("again", "naive")}


@pytest.mark.parametrize(
    ("offered", "settings", "kind", "message"),
    [
        (["sound-naive"], {"modalities": ["sight"]}, MissingComponentError,
         "modality 'sight' has no parent for base 'base' (it has no parents yet)"),
        (["sight-decoupled"], {"method": "naive"}, MissingComponentError,
         "merge method 'naive' takes naive parents; modality 'sight' has only decoupled ones"),
        (["sight-decoupled"], {"method": "naive", "parents": ["sight-decoupled-toy"]}, SpecError,
         "parent sight-decoupled-toy is decoupled; merge method 'naive' takes naive parents"),
        (ALL, {"parents": ["sight-naive-toy", "sight-decoupled-toy"]}, SpecError,
         "two parents were given for modality 'sight': sight-naive-toy and sight-decoupled-toy"),
        (ALL, {"parents": ["sight-naive-toy"], "modalities": ["sound"]}, SpecError,
         "a parent was given for sight, which modalities=['sound'] (--modality) leaves out"),
        (ALL, {"parents": ["sight-niave-toy"]}, UnknownNameError, "Did you mean 'sight-naive-toy'"),
        (ALL, {"modalities": ["sihgt"]}, UnknownNameError, "Did you mean 'sight'"),
        (ALL, {"modalities": "sight"}, SpecError, "must be a list of names; got 'sight', write"),
        (ALL, {"parents": "sight-naive-toy"}, SpecError, "parents must be a list of names"),
        (ALL, {"method": "dmac"}, UnknownNameError, "Did you mean 'damc'"),
        (ALL, {"modalities": []}, SpecError, "no installed plugin has a parent"),
    ],
)  # fmt: skip
def test_what_is_refused(
    places: dict[str, Path], offered: Any, settings: Any, kind: type[ModalloyError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        taken(places, *(offer(places, key) for key in offered), **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("sight-naive", {"modality": "sound"}), ("sight-naive", {"strategy": "decoupled"})],
)
def test_a_declaration_that_its_manifest_contradicts(
    places: dict[str, Path], key: str, wrong: dict[str, str]
) -> None:
    what, value = next(iter(wrong.items()))
    with pytest.raises(SpecError, match=rf"declared with {what} '{value}', its parent\.json says"):
        taken(places, offer(places, key, **wrong))


def test_what_has_no_parent_is_left_out_and_said(places: dict[str, Path]) -> None:
    registry = toy_registry()
    registry.register(Offers(offer(places, "sight-decoupled")), name="offers")
    said: list[str] = []
    modalloy.compose(places["base"], registry=registry, progress=said.append)
    assert "Left out, without a parent over base: sound" in said
    said.clear()
    modalloy.compose(places["base"], modalities=["sight"], registry=registry, progress=said.append)
    assert not [line for line in said if line.startswith("Left out")]


def test_a_parent_of_another_version_of_its_encoder(places: dict[str, Path]) -> None:
    parent = places["root"] / "older"
    shutil.copytree(places["sight-decoupled"], parent)
    manifest = read_manifest(parent)
    entry = attrs.evolve(manifest.encoder, shape=[4, 5])
    write_manifest(parent, attrs.evolve(manifest, encoder=entry))
    older = "encoder 'toy-sight' gives 3 tokens of 5 features, parent.json says 4 of 5; it is of "
    with pytest.raises(SpecError, match=f"^parent older: {older}another version of its plugin"):
        modalloy.compose(places["base"], parents=[parent], registry=toy_registry("sight"))

    class Newer(ToyPlugin):
        @hookimpl
        def register_encoders(self, register: Any) -> None:
            def shape(config: Any) -> tuple[int, int]:
                raise SpecError("encoder 'toy-sight': gain is not a known key", subject="toy-sight")

            super().register_encoders(lambda kind: register(attrs.evolve(kind, output_shape=shape)))

    registry = modalloy.Registry()
    registry.register(Newer("sight"), name="sight")
    with pytest.raises(
        SpecError, match=r"^parent sight-decoupled: .* not a known key; it is of ano"
    ):
        modalloy.compose(places["base"], parents=[places["sight-decoupled"]], registry=registry)
