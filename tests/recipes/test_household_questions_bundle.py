import json
from collections import Counter
from pathlib import Path

import attrs
import pytest
from recipes.household import bundle
from recipes.household.catalogue import Thing

from household_inputs import LABELS, MEDIA, ROOT, Medium, parts_of

SHIPPED = ROOT / "tests" / "data" / "household"


def thing(medium: Medium) -> Thing:
    return Thing(
        id=medium.id,
        label=medium.label,
        source="blendswap-cc-0",
        licence="CC0-1.0",
        creator="Somebody",
        group=medium.id,
        split=medium.id.partition("/")[0],
        picture=medium.path,
        points=None,
        clip=None,
    )


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    for split in ("val", "test"):
        for media in MEDIA[split].values():
            for medium in media:
                (folder / medium.path).parent.mkdir(parents=True, exist_ok=True)
                (folder / medium.path).write_text(medium.path)
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    monkeypatch.setattr(bundle, "DATA", tmp_path / "data")
    monkeypatch.setattr(bundle, "DEMO", tmp_path / "demo")

    def degraded(work: Path, medium: Medium, name: str, seed: int) -> Medium:
        copy = attrs.evolve(medium, path=f"noisy/{name}{Path(medium.path).suffix}")
        (work / copy.path).parent.mkdir(parents=True, exist_ok=True)
        (work / copy.path).write_text("noisy")
        return copy

    monkeypatch.setattr(bundle, "degraded", degraded)
    return folder


THINGS = [thing(medium) for split in ("val", "test") for medium in MEDIA[split]["image"]]


def test_the_bundle_holds_every_set_and_just_the_files_it_shows(work: Path) -> None:
    bundle.bundle_questions(work, MEDIA, THINGS, LABELS, 0)
    names = {file.stem for file in bundle.DATA.glob("*.jsonl")}
    assert len(names) == 4 + 44 + 4 + 22
    assert {"audio-mc", "val-video-mc", "mcub-object-audio+vision"} <= names
    assert "val-mcub-object-audio+vision-noisy" in names
    shown = set()
    for name in names:
        lines = (bundle.DATA / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == (12 if name.startswith("val-") else 24)
        for line in lines:
            for part in parts_of(json.loads(line)):
                shown.add(part["path"])
                assert part["path"].startswith("noisy/") == name.endswith("-noisy")
    stored = {
        file.relative_to(bundle.DATA).as_posix()
        for file in bundle.DATA.rglob("*")
        if file.is_file() and file.suffix not in (".jsonl", ".md")
    }
    assert stored == shown
    voicings = {path.partition("audio/")[2].split("--")[0] for path in shown if "audio" in path}
    assert voicings == {"val0", "val1", "test0", "test1"}
    readme = (bundle.DATA / "README.md").read_text()
    assert "| test/bed0 | CC0-1.0 | Somebody | test |" in readme
    assert "train" not in readme.replace("trained", "")


def test_a_bundle_that_is_too_large_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MOST", 1000)
    with pytest.raises(ValueError, match=r"data: expected at most 0 MB, found \d\.\d MB. Lower"):
        bundle.bundle_questions(work, MEDIA, THINGS, LABELS, 0)


def test_the_demo_holds_its_picks_and_asks_of_nothing_else(work: Path) -> None:
    bundle.bundle_demo(work, MEDIA["test"], THINGS)
    asked = json.loads((bundle.DEMO / "demo.json").read_text())["questions"]
    for pick in bundle.PICKS:
        stored = (bundle.DEMO / pick.file).read_text()
        assert stored.startswith(f"{pick.type}/test/{pick.label}{pick.place}")
    inputs = [(one["type"], one["file"]) for question in asked for one in question["inputs"]]
    assert set(inputs) == {(pick.type, pick.file) for pick in bundle.PICKS}
    # The last question shows all four at once.
    assert {one["type"] for one in asked[-1]["inputs"]} == set(MEDIA["test"])
    assert all(question["truth"] for question in asked)


def test_a_demo_input_that_is_not_there_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "PICKS", (bundle.Pick("bed.mp4", "video", "bed", 1),))
    with pytest.raises(
        ValueError, match=r"demo/bed.mp4: expected at least 2 free test inputs .* found 1 \(there"
    ):
        bundle.bundle_demo(work, MEDIA["test"], THINGS)


def test_shipped_questions_have_their_media_and_balanced_answers() -> None:
    files = sorted(SHIPPED.glob("*.jsonl"))
    assert files
    for file in files:
        asked = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        places = Counter(question["answer"] for question in asked)
        assert set(places.values()) == {len(asked) // 4}, file.name
        for question in asked:
            assert question["kind"] == file.stem.removeprefix("val-")
            assert all((SHIPPED / part["path"]).is_file() for part in parts_of(question))
            assert len(question["objects"]) == len(parts_of(question))
