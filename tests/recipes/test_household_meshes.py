import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image
from recipes.household import catalogue, shapes
from recipes.household.catalogue import Outline, Pick
from recipes.household.furniture import Entry, parse_catalogue
from recipes.household.meshes import Mesh, read_mesh, surface

ENTRY = Entry(
    icon="x/box.png",
    model="x/box.obj",
    creator="",
    rotation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    size=(200.0, 100.0, 400.0),
)
# A cube from 0 to 1: top (y = 1) red, bottom invisible, front (z = 1) textured, the others grey;
# a stray vertex that no face uses; quads, negative places, and a name in another case.
BOX = """\
mtllib Box.MTL
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 1
v 1 0 1
v 1 1 1
v 0 1 1
v 99 99 99
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl red
f 4 3 7 8
usemtl glass
f 1 2 6 5
usemtl skin
f 5/1 6/2 7/3 8/4
usemtl unknown
f -9 -8 -7 -6
f 1 4 8 5
f 2//1 3//1 7//1 6//1
"""
MATERIALS = """\
newmtl red
Kd 1 0 0
newmtl glass
Kd 0 1 0
d 0.0
newmtl skin
Kd 1 1 1
map_Kd .\\Skin.png
"""


def archive(obj: str = BOX) -> zipfile.ZipFile:
    # Left half blue, right half seen through.
    skin = Image.new("RGBA", (8, 8), (0, 0, 255, 255))
    skin.paste((0, 0, 0, 0), (4, 0, 8, 8))
    picture = io.BytesIO()
    skin.save(picture, "PNG")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        made.writestr("x/box.obj", obj)
        made.writestr("x/box.mtl", MATERIALS)
        made.writestr("x/skin.png", picture.getvalue())
    return zipfile.ZipFile(data)


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with archive() as made:
        yield read_mesh(made, ENTRY)


def test_a_mesh_stands_upright_in_metres_around_its_middle(mesh: Mesh) -> None:
    used = mesh.vertices[mesh.faces].reshape(-1, 3)
    # Width 2 m along x, depth 1 m along y, height 4 m along z.
    np.testing.assert_allclose(used.max(0), [1, 0.5, 2])
    np.testing.assert_allclose(used.min(0), [-1, -0.5, -2])
    red = (mesh.colours == [255, 0, 0]).all(1)
    np.testing.assert_allclose(mesh.vertices[mesh.faces[red], 2], 2)  # OBJ's y is up
    front = mesh.skin == 0
    np.testing.assert_allclose(mesh.vertices[mesh.faces[front], 1], -0.5)  # OBJ's z is towards us


def test_materials_colour_faces_and_glass_is_left_out(mesh: Mesh) -> None:
    assert len(mesh.faces) == 10
    counts = Counter(map(tuple, mesh.colours.tolist()))
    # A texture's mean counts only what can be seen of it.
    assert counts == {(255, 0, 0): 2, (0, 0, 255): 2, (204, 204, 204): 6}


def test_a_model_that_lies_down_is_turned_upright() -> None:
    lying = attrs.evolve(ENTRY, rotation=(0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    with archive() as made:
        mesh = read_mesh(made, lying)
    red = (mesh.colours == [255, 0, 0]).all(1)
    np.testing.assert_allclose(mesh.vertices[mesh.faces[red], 0], 1)  # what was up is right


def test_points_spread_evenly_by_area_with_colours_and_normals(mesh: Mesh) -> None:
    points, colours, normals = surface(mesh, 26_000, np.random.default_rng(0))
    assert (points.dtype, colours.dtype, normals.dtype) == (np.float32, np.uint8, np.float32)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-5)
    # Square metres: top 2, front 8 of which half is seen, back 8, two sides of 4: 22 in all.
    counts = Counter(map(tuple, colours.tolist()))
    assert counts[255, 0, 0] / 26_000 == pytest.approx(2 / 22, rel=0.02)
    assert counts[0, 0, 255] / 26_000 == pytest.approx(4 / 22, rel=0.02)
    assert (points[(colours == [0, 0, 255]).all(1), 0] < 0).all()
    back = points[np.isclose(points[:, 1], 0.5)]
    across, up = np.histogram2d(back[:, 0], back[:, 2], bins=4)[0].sum(0), len(back) / 4
    np.testing.assert_allclose(across, up, rtol=0.05)
    # Shuffled, so that the first points are a sample of the whole.
    assert abs(points[:2000].mean(0)[2] - points.mean(0)[2]) < 0.1


def test_the_same_seed_draws_the_same_points(mesh: Mesh) -> None:
    one, again, other = (surface(mesh, 500, np.random.default_rng(s))[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_model_without_faces_or_with_invisible_ones_says_so() -> None:
    with (
        archive("v 0 0 0\nv 1 0 0\nv 0 1 0\n") as made,
        pytest.raises(ValueError, match=r"x/box.obj: .* faces, found 3 vertices and no face"),
    ):
        read_mesh(made, ENTRY)
    glass = "mtllib box.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl glass\nf 1 2 3\n"
    with (
        archive(glass) as made,
        pytest.raises(ValueError, match=r"can be seen, found 1 faces and none of them"),
    ):
        read_mesh(made, ENTRY)


def test_a_mesh_without_area_says_so(mesh: Mesh) -> None:
    flat = attrs.evolve(mesh, vertices=np.zeros_like(mesh.vertices))
    with pytest.raises(ValueError, match=r"10 faces, 0 square metres: expected 5 points"):
        surface(flat, 5, np.random.default_rng(0))


def test_a_catalogue_listing_becomes_entries() -> None:
    text = (
        "icon#1=/x/box.png\nmodel#1=/x/box.obj\nwidth#1=200\ndepth#1=100\nheight#1=400\n"
        "icon#2=/x/b.png\nmodel#2=/x/b.obj\nwidth#2=1\ndepth#2=2\nheight#2=3.5\ncreator#2=Ann\n"
        "modelRotation#2=1 0 0 0 0 1 0 -1 0\nname#2=B\n"
    )
    entries = parse_catalogue(text)
    assert entries["box"] == ENTRY
    assert entries["b"].creator == "Ann"
    assert entries["b"].rotation == (1, 0, 0, 0, 0, 1, 0, -1, 0)
    assert entries["b"].size == (1, 2, 3.5)


def test_clouds_survive_their_file_and_other_files_are_refused(tmp_path: Path, mesh: Mesh) -> None:
    cloud = shapes.Cloud(*surface(mesh, 100, np.random.default_rng(0))[:2])
    path = tmp_path / "a.ply"
    shapes.write_cloud(path, cloud)
    back = shapes.read_cloud(path)
    np.testing.assert_array_equal(back.points, cloud.points)
    np.testing.assert_array_equal(back.colours, cloud.colours)
    path.write_bytes(path.read_bytes()[:-15])
    with pytest.raises(ValueError, match=r"a\.ply: expected a PLY file as this recipe writes it"):
        shapes.read_cloud(path)


def test_varied_clouds_keep_the_upright_and_roughly_the_size(mesh: Mesh) -> None:
    cloud = shapes.Cloud(*surface(mesh, 2000, np.random.default_rng(0))[:2])
    varied = shapes.vary(cloud, np.random.default_rng(2))
    height = np.ptp(varied.points[:, 2]) / np.ptp(cloud.points[:, 2])
    assert 0.84 < height < 1.25
    correlation = np.corrcoef(varied.points[:, 2], cloud.points[:, 2])[0, 1]
    assert correlation > 0.99
    turned = np.corrcoef(varied.points[:, 0], cloud.points[:, 0])[0, 1]
    assert abs(turned) < 0.95


def test_damage_leaves_few_points_of_one_side(mesh: Mesh) -> None:
    cloud = shapes.Cloud(*surface(mesh, 2000, np.random.default_rng(0))[:2])
    cut = shapes.damage(cloud, np.random.default_rng(3), count=90, kept=0.5, jitter=0.0)
    assert len(cut.points) == len(cut.colours) == 90
    # What is left lies on one side of some plane: its middle is off the whole cloud's.
    assert np.linalg.norm(cut.points.mean(0)) > 0.25 * shapes.radius(cloud.points)
    whole = {tuple(p) for p in cloud.points.tolist()}
    assert all(tuple(p) in whole for p in cut.points.tolist())
    moved = shapes.damage(cloud, np.random.default_rng(3), count=90, kept=0.5, jitter=0.05)
    off = np.std(moved.points - cut.points) / shapes.radius(cloud.points)
    assert off == pytest.approx(0.05, rel=0.2)


def picks(solid: int, flat: int) -> list[Pick]:
    return [
        Pick(f"{source}/{label}{n}", label, source, f"{label}{n}")
        for label in ("bed", "car", "sink")
        for source, count in (("scopia", solid), ("openclipart", flat))
        for n in range(count)
    ]


def test_every_class_has_both_kinds_of_objects_in_every_split() -> None:
    chosen = picks(20, 10)
    splits = catalogue.split(chosen, {pick.id: pick.id for pick in chosen}, seed=0)
    counts = Counter((pick.label, pick.solid, splits[pick.id]) for pick in chosen)
    for label in ("bed", "car", "sink"):
        found = [counts[label, True, split] for split in ("train", "val", "test")]
        assert found == [12, 2, 6]
        assert [counts[label, False, split] for split in ("train", "val", "test")] == [6, 1, 3]


def test_groups_stay_together_even_across_classes_and_test_has_two_models() -> None:
    chosen = picks(7, 2)
    groups = {pick.id: pick.id for pick in chosen}
    groups["scopia/bed1"] = groups["scopia/bed2"] = groups["scopia/bed0"]
    groups["openclipart/bed0"] = groups["scopia/car3"] = "scopia/bed5"
    groups["scopia/car5"] = groups["scopia/car6"] = "scopia/car4"
    for seed in range(20):
        splits = catalogue.split(chosen, groups, seed)
        assert len({(group, splits[id_]) for id_, group in groups.items()}) == len(
            set(groups.values())
        )
        counts = Counter((pick.label, splits[pick.id]) for pick in chosen if pick.solid)
        assert all(counts[label, "test"] >= 2 for label in ("bed", "car", "sink"))
        assert all(counts[label, "val"] >= 1 for label in ("bed", "car", "sink"))


def test_a_class_with_too_few_models_says_so() -> None:
    chosen = picks(3, 0)
    one = {pick.id: "scopia/bed0" if pick.label == "bed" else pick.id for pick in chosen}
    with pytest.raises(ValueError, match=r"Class 'bed': expected 1 objects .* the val split, fo"):
        catalogue.split(chosen, one, seed=0)


def test_the_chosen_objects_have_twenty_classes_with_models() -> None:
    chosen, same = catalogue.read_picks()
    labels = catalogue.classes(chosen)
    assert len(labels) == 20
    assert all(sum(p.solid for p in chosen if p.label == label) >= 6 for label in labels)
    assert all(len(ids) > 1 for ids in same)


def test_models_are_one_where_faces_and_proportions_or_vertices_agree() -> None:
    outlines = {
        "a": Outline(50, 120, (1.0, 0.5, 0.2)),
        "posed": Outline(50, 120, (0.4, 1.0, 0.2)),
        "respun": Outline(99, 120, (1.0, 0.51, 0.21)),
        "other": Outline(99, 120, (0.1, 0.2, 1.0)),
        "box": Outline(8, 12, (1.0, 0.5, 0.2)),
        "case": Outline(8, 12, (1.0, 0.9, 0.2)),
        "flat box": Outline(8, 12, (1.0, 0.5, 0.21)),
    }
    found = catalogue.same_models(outlines)
    assert found == [("a", "posed"), ("a", "respun"), ("box", "flat box"), ("other", "respun")]
