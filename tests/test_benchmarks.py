"""Benchmarks: what plugins declare, what the core's own readers take and refuse."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from modalloy import API_VERSION, Benchmark, Registry, hookimpl
from modalloy.errors import FormatError, SpecError, UnknownNameError, UnsafePathError
from modalloy.evaluation.judging import gold, judge, normalise
from modalloy.evaluation.questions import Question
from modalloy.modality import resolve


def spec(**changes: Any) -> Benchmark:
    fields = {"name": "b", "api_version": API_VERSION, "summary": "s", "questions": "json:loads"}
    return Benchmark(**{**fields, "scoring": ("exact",), **changes})


def test_the_core_registers_its_own() -> None:
    registry = Registry()
    assert list(registry.benchmarks) == [
        "avqa", "household", "household-mcub", "mcub", "music-avqa", "retention"]  # fmt: skip
    assert [n for n, one in registry.benchmarks.items() if one.against_parents] == ["retention"]
    assert registry.owner("benchmark", "mcub").name == "builtin"
    for one in registry.benchmarks.values():
        assert callable(resolve(one.questions))
    with pytest.raises(UnknownNameError, match=r"unknown benchmark 'mcbu'.*Did you mean 'mcub'"):
        registry.benchmark("mcbu")


def test_a_plugin_offers_its_own() -> None:
    class Plugin:
        @hookimpl
        def register_benchmarks(self, register: Any) -> None:
            register(spec(name="mine"))

    registry = Registry()
    report = registry.register(Plugin(), name="p")
    assert report.benchmarks == ("mine",)
    assert registry.benchmark("mine").scoring == ("exact",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scoring": ("exakt",)},
            "one or more of options, letter, exact, evalai; got 'exakt'. Did",
        ),
        ({"scoring": ()}, "Benchmark 'b': scoring must be one or more of"),
        ({"scoring": "exact"}, "scoring must be a tuple of names; got 'exact', write ('exact',)"),
        ({"questions": "nowhere"}, "questions must be a callable or 'package.module:attribute'"),
        ({"name": "B"}, "Benchmark.name must be lower-case words"),
        ({"api_version": 0}, "upgrade the plugin"),
    ],
)
def test_malformed_benchmarks(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(**changes)
    assert message in str(caught.value)


def question(**fields: Any) -> Question:
    return Question(**{"id": "1", "kind": "k", "messages": [], **fields})


@pytest.mark.parametrize(
    ("scoring", "reference", "answer", "right"),
    [
        ("letter", "B", "B. a dog", True),
        ("letter", "B", "  B", True),
        ("letter", "B", "b", False),
        ("letter", "B", "A dog", False),
        ("letter", "B", "", False),
        ("exact", "It is a cup.", "It is a cup.", True),
        ("exact", "It is a cup.", "it is a cup.", False),
        ("evalai", "two", "2", True),
        ("evalai", "2", "Two.", True),
        ("evalai", "yes", "Yes, it is", False),
        ("evalai", "the piano", "Piano", True),
        ("evalai", "1,000", "1000", True),
        ("evalai", "2.5", "25", False),
        ("evalai", "don't", "dont", True),
        ("evalai", "left-hand", "left hand", True),
        ("evalai", "zero", "none", True),
    ],
)
def test_judging(scoring: str, reference: str, answer: str, *, right: bool) -> None:
    assert judge(scoring, question(reference=reference), answer) is right


def test_the_right_answer_is_shown_as_a_scoring_sees_it() -> None:
    asked = question(options=["a cat", "a dog"], answer=1, reference=None)
    assert gold("options", asked) == "a dog"
    assert gold("letter", asked) == "B"
    assert gold("letter", question(reference=" C. boats")) == "C"
    assert normalise("  The\nTwo  dogs? ") == "2 dogs"


def item(**changes: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "conversations": [
            {"from": "human", "value": "<image>\n<point>\nWhat?\nA. x\nB. y"},
            {"from": "gpt", "value": None},
        ],
        "modal_inputs": {"vision": ["a.jpg"], "point": "b.npy"},
        **changes,
    }


def official(root: Path, items: Any, answers: Any = None, name: str = "MCUB-4.json") -> Path:
    (root / name).write_text(json.dumps(items))
    if answers is not None:
        (root / "MCUB-answer.json").write_text(json.dumps(answers))
    for file in ("a.jpg", "b.npy"):
        (root / file).write_bytes(b"x")
    return root


def mcub(root: Path, limit: int | None = None) -> list[Question]:
    found: list[Question] = resolve(Registry().benchmark("mcub").questions)(root, limit)
    return found


@pytest.mark.parametrize("answers", [{"7": "B. y"}, [{"id": 7, "answer": "B"}]])
def test_mcub_puts_inputs_in_the_places_of_their_marks(tmp_path: Path, answers: Any) -> None:
    (one,) = mcub(official(tmp_path, [item()], answers))
    assert one.messages == [{"role": "user", "content": [
        {"type": "image", "path": tmp_path / "a.jpg"},
        {"type": "point_cloud", "path": tmp_path / "b.npy"},
        {"type": "text", "text": "What?\nA. x\nB. y"},
    ]}]  # fmt: skip
    assert (one.kind, one.id, gold("letter", one)) == ("MCUB-4", "0-7", "B")
    assert one.objects == ["vision/a.jpg", "point/b.npy"]


def test_limit_is_per_file_and_answers_may_stand_in_the_second_turn(tmp_path: Path) -> None:
    turns = [{"value": "<image> what"}, {"value": "A"}]
    items = [item(conversations=turns, modal_inputs={"vision": ["a.jpg"]})] * 3
    official(tmp_path, items)
    official(tmp_path, items, name="MCUB-3-image-audio-video.json")
    assert [one.kind for one in mcub(tmp_path, 2)] == [
        *["MCUB-3-image-audio-video"] * 2, *["MCUB-4"] * 2]  # fmt: skip


TURNS = [{"value": "<image> what"}, {"value": "A"}]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({}, "MCUB-4.json: expected a list of items, found dict"),
        ([3], "MCUB-4.json, item 0: expected {'id', 'conversations'"),
        ([item()], "item 0: question '7' has no answer, neither in its second turn nor in a file"),
        ([item(conversations=TURNS)], "modal_inputs has more point paths than the text has marks"),
        ([item(conversations=TURNS, modal_inputs={})], "more <image> marks than modal_inputs has"),
        ([item(conversations=TURNS, modal_inputs={"smell": []})], "modal_inputs has smell; known"),
        (
            [item(conversations=TURNS, modal_inputs={"vision": f"{i}.jpg"}) for i in range(5)],
            "5 of 5 media files are missing: ",
        ),
    ],
)
def test_malformed_official_files(tmp_path: Path, items: Any, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        mcub(official(tmp_path, items))
    assert message in str(caught.value)
    if "missing" in message:
        assert "2.jpg and 2 more; fetch them, or point --data at" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "other"),
    [("avqa", "AVQA_image_audio.json", "MUSIC-AVQA.json"),
     ("music-avqa", "MUSIC-AVQA-video.json", "avqa.json")],
)  # fmt: skip
def test_the_two_avqa_readers_take_their_own_files(
    tmp_path: Path, name: str, file: str, other: str
) -> None:
    items = [item(conversations=TURNS, modal_inputs={"vision": ["a.jpg"]})]
    official(tmp_path, items, name=file)
    official(tmp_path, items, name=other)
    (one,) = resolve(Registry().benchmark(name).questions)(tmp_path, None)
    assert one.kind == Path(file).stem


@pytest.mark.parametrize("name", ["avqa", "household", "household-mcub", "mcub", "retention"])
def test_no_data(tmp_path: Path, name: str) -> None:
    read = resolve(Registry().benchmark(name).questions)
    with pytest.raises(FormatError, match=f"benchmark '{name}' needs --data DIR"):
        read(None, None)
    with pytest.raises(FormatError, match=r"holds no questions.*: expected "):
        read(tmp_path, None)


def test_household_sets_are_told_apart(tmp_path: Path) -> None:
    names = ("test-vision-mc", "test-audio-caption", "val-vision-mc", "test-mcub-av", "vision-mc")
    for name in names:
        record = {"id": "1", "kind": name, "options": ["a"], "answer": 0, "messages": []}
        lines = [json.dumps({**record, "id": str(i)}) for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    table = Registry().benchmarks

    def kinds(name: str, limit: int | None) -> list[str]:
        return [q.kind for q in resolve(table[name].questions)(tmp_path, limit)]

    assert kinds("household", 1) == ["test-audio-caption", "test-vision-mc"]
    assert kinds("retention", None) == ["test-audio-caption"] * 3 + ["test-vision-mc"] * 3
    assert kinds("household-mcub", 2) == ["test-mcub-av"] * 2
    for file in tmp_path.glob("test-*"):
        file.unlink()
    assert kinds("household", 1) == ["vision-mc"]


def test_answers_of_different_subsets_do_not_mix(tmp_path: Path) -> None:
    for name, letter in (("av", "A"), ("v", "B")):
        official(tmp_path, [item()], name=f"AVQA-{name}.json")
        (tmp_path / f"AVQA-{name}-answer.json").write_text(json.dumps({"7": letter}))
    found = {
        one.kind: one.reference
        for one in resolve(Registry().benchmark("avqa").questions)(tmp_path, None)
    }
    assert found == {"AVQA-av": "A", "AVQA-v": "B"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversations": ["x"]}, "item 0: expected {'id', 'conversations'"),
        ({"conversations": [{"value": "x"}, "B"]}, "item 0: expected {'id', 'conversations'"),
        ({"modal_inputs": ["a.png"]}, "item 0: modal_inputs must be a mapping"),
        ({"modal_inputs": {"vision": 5}}, "item 0: modal_inputs['vision'] must be a path or"),
        ({"modal_inputs": {"vision": [None]}}, "item 0: modal_inputs['vision'] must be a path or"),
    ],
)
def test_malformed_official_items(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(FormatError, match=re.escape(message)):
        mcub(official(tmp_path, [item() | change], {"7": "B"}))


def test_official_media_lie_below_their_file(tmp_path: Path) -> None:
    outside = {"conversations": [{"value": "<image>?"}], "modal_inputs": {"vision": "../a.png"}}
    with pytest.raises(UnsafePathError, match=r"item 0: '../a.png' leads outside"):
        mcub(official(tmp_path, [item() | outside], {"7": "B"}))
