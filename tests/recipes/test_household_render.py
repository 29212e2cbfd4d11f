from pathlib import Path

import attrs
import numpy as np
import pytest
from recipes.household import media, render, shapes
from recipes.household.dealing import Medium
from recipes.household.meshes import Mesh


def box(width: float = 1.0, *, depth: float = 1.0, height: float = 1.0) -> Mesh:
    """A red box whose top is green, whose front (-y) is blue and whose left side is purple."""
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    quads = [(0, 2, 6, 4), (1, 3, 7, 5), (0, 1, 5, 4), (2, 3, 7, 6), (0, 1, 3, 2), (4, 5, 7, 6)]
    faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    colours = np.full((12, 3), (200, 0, 0), dtype=np.uint8)
    colours[2:4] = (0, 200, 0)
    colours[4:6] = (0, 0, 200)
    colours[8:10] = (200, 0, 200)
    return Mesh(
        vertices=(corners * np.array([width, depth, height]) / 2).astype(np.float32),
        faces=np.array(faces),
        colours=colours,
        corners=np.zeros((12, 3, 2), dtype=np.float32),
        skin=np.full(12, -1),
        skins=(),
    )


def clip(mesh: Mesh, **shot: float) -> np.ndarray:
    return render.render(mesh, render.Shot(**shot), np.random.default_rng(0))


def drawn(frame: np.ndarray) -> np.ndarray:
    return (frame.astype(int).max(-1) - frame.astype(int).min(-1)) > 60


def test_the_front_faces_the_eye_first_and_the_top_is_seen_from_above() -> None:
    frames = clip(box())
    assert frames.shape == (render.FRAMES, render.SIDE, render.SIDE, 3)
    assert frames.dtype == np.uint8
    middle = render.SIDE // 2
    red, green, blue = frames[0, middle + 15, middle].astype(int)
    assert blue > 100 > max(red, green)
    rows, _ = np.nonzero(frames[0, :, :, 1].astype(int) - frames[0, :, :, 2] > 80)
    assert len(rows) > 200
    assert rows.max() < middle  # the top lies above the middle of the picture
    # Seen from above it turns against the clock: a quarter later the left side is in front.
    red, green, blue = frames[render.FRAMES // 4, middle + 15, middle].astype(int)
    assert min(red, blue) > 100 > green
    # Half a turn later the red back is where the front was.
    red, green, blue = frames[render.FRAMES // 2, middle + 15, middle].astype(int)
    assert red > 100 > max(green, blue)


def test_nothing_shows_through_and_the_ground_is_grey() -> None:
    frame = clip(box(), elevation=0.0)[0]
    middle = slice(render.SIDE // 2 - 25, render.SIDE // 2 + 25)
    inner = frame[middle, middle].astype(int)
    assert ((inner[..., 2] > 100) & (inner[..., 0] < 20)).mean() > 0.995
    assert (frame[:4] == 235).all()


def test_the_object_fits_the_frame_from_every_side() -> None:
    for frame in clip(box(3.0, height=0.3), elevation=35.0):
        edge = np.concatenate([frame[:1], frame[-1:], frame[:, :1].swapaxes(0, 1)])
        assert (edge == 235).all()
        assert drawn(frame).sum() > 500


def test_it_turns_all_the_way_round_in_even_steps() -> None:
    widths = [np.ptp(np.nonzero(drawn(f))[1]) for f in clip(box(3.0, depth=0.4), elevation=0.0)]
    half = render.FRAMES // 2
    assert widths[0] == pytest.approx(widths[half], abs=2)
    assert widths[half // 2] < widths[0] / 3
    turned = clip(box(3.0, depth=0.4), elevation=0.0, heading=90.0)
    assert np.ptp(np.nonzero(drawn(turned[0]))[1]) == pytest.approx(widths[half // 2], abs=2)


def test_a_tall_object_stands_upright_and_zoom_and_light_take_effect() -> None:
    rows, columns = np.nonzero(drawn(clip(box(height=4.0))[0]))
    assert np.ptp(rows) > 2 * np.ptp(columns)
    small = drawn(clip(box(), zoom=0.5)[0]).sum()
    assert small == pytest.approx(drawn(clip(box())[0]).sum() / 4, rel=0.15)
    lit = clip(box(), elevation=0.0, light=(0.0, 0.0, 1.0))[0]
    dark = clip(box(), elevation=0.0, light=(0.0, 1.0, 0.01))[0]
    assert lit[80, 80, 2] > dark[80, 80, 2] + 50


def test_the_same_seed_gives_the_same_file_and_the_colours_survive_it(tmp_path: Path) -> None:
    frames = clip(box())
    for name in ("a.mp4", "b.mp4"):
        render.write_clip(tmp_path / name, clip(box()))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    back = render.read_clip(tmp_path / "a.mp4")
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() < 4
    assert not list(tmp_path.glob("*.part"))


def test_plain_shots_differ_in_heading_alone_and_varied_ones_in_all() -> None:
    plain = [render.draw_shot(np.random.default_rng(s), varied=False) for s in range(4)]
    assert len({shot.heading for shot in plain}) == 4
    assert len({attrs.evolve(shot, heading=0) for shot in plain}) == 1
    varied = [render.draw_shot(np.random.default_rng(s), varied=True) for s in range(8)]
    for name in ("heading", "elevation", "turn", "zoom", "light", "ground"):
        assert len({getattr(shot, name) for shot in varied}) > 1


def test_degraded_clips_and_clouds_keep_type_and_id_but_not_the_bytes(tmp_path: Path) -> None:
    render.write_clip(tmp_path / "x.mp4", clip(box()))
    points = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    shapes.write_cloud(tmp_path / "x.ply", shapes.Cloud(points, np.zeros((500, 3), dtype=np.uint8)))
    for type_, path in (("video", "x.mp4"), ("point_cloud", "x.ply")):
        medium = Medium("s/x", "bed", type_, path)
        bad = media.degraded(tmp_path, medium, "test/1", seed=0)
        assert (bad.id, bad.label, bad.type) == ("s/x", "bed", type_)
        assert bad.path == f"noisy/test/1{path[1:]}"
        first = (tmp_path / bad.path).read_bytes()
        (tmp_path / bad.path).unlink()
        media.degraded(tmp_path, medium, "test/1", seed=0)
        assert (tmp_path / bad.path).read_bytes() == first
    clean = render.read_clip(tmp_path / "x.mp4").astype(int)
    assert np.abs(render.read_clip(tmp_path / "noisy/test/1.mp4") - clean).mean() > 4
    cloud = shapes.read_cloud(tmp_path / "noisy/test/1.ply")
    assert len(cloud.points) == media.CLOUD_DAMAGE["count"]


def test_an_unknown_content_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"y\.bin: expected .* image, point_cloud, video, found 's"
    ):
        media.degraded(tmp_path, Medium("s/x", "bed", "smell", "y.bin"), "n", seed=0)
