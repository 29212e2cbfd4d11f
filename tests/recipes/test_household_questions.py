import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from recipes.household import questions, samples
from recipes.household.attributes import TABLE, is_absent, is_mixed
from recipes.household.dealing import Dealer, deck
from recipes.household.draws import dice
from recipes.household.wordings import MODALITIES, SHARED, WORDINGS, Wording, with_article

from household_inputs import (
    LABELS,
    MEDIA,
    ROOT,
    Record,
    answer_of,
    degrade,
    label_of,
    parts_of,
    text_of,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("household")
    with pytest.MonkeyPatch.context() as patch:
        # A tenth of everything: the draws are the same kind, and the test stays short.
        for name in ("SAMPLES", "SINGLE", "JOINT"):
            patch.setattr(questions, name, tenth(getattr(questions, name)))
        questions.write_all(work, MEDIA, LABELS, 0, degrade)
    return work


def tenth(sizes: Any) -> Any:
    return sizes // 10 if isinstance(sizes, int) else {k: tenth(v) for k, v in sizes.items()}


def read(file: Path) -> list[Record]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("modality", sorted(MODALITIES))
def test_training_mixes_kinds_counts_and_positions_in_fixed_shares(modality: str) -> None:
    media = MEDIA["train"][MODALITIES[modality]]
    chats = samples.training("t", media, LABELS, 300, seed=0)
    wording = WORDINGS[media[0].type]
    seen: Counter[tuple[str, int]] = Counter()
    positions: Counter[str] = Counter()
    for chat in chats:
        count = len(parts_of(chat))
        kind = kind_of(answer_of(chat), wording)
        seen[kind, count] += 1
        types = [part["type"] == "text" for part in chat["messages"][0]["content"]]
        inside = types[0] and types[-1]
        positions["inside" if inside else "after" if types[0] else "before"] += 1
        assert {part["type"] for part in parts_of(chat)} == {media[0].type}
    for kind in ("caption", "naming", "attribute"):
        assert [seen[kind, count] for count in (1, 2, 3)] == [50, 30, 20]
    assert positions == {"before": 180, "after": 60, "inside": 60}


def kind_of(answer: str, wording: Wording) -> str:
    named = {wording.naming.answered(label): "naming" for label in LABELS}
    named |= {wording.caption.answered(label): "caption" for label in LABELS}
    named |= {wording.attribute.answered(word): "attribute" for word in TABLE}
    return named[answer]


@pytest.mark.parametrize("modality", sorted(MODALITIES))
def test_training_answers_are_true_of_all_inputs_and_the_other_options_are_not(
    modality: str,
) -> None:
    wording = WORDINGS[MODALITIES[modality]]
    chats = samples.training("t", MEDIA["train"][MODALITIES[modality]], LABELS, 300, seed=1)
    mixed = several = 0
    for chat in chats:
        labels, said = [label_of(part) for part in parts_of(chat)], answer_of(chat)
        kind = kind_of(said, wording)
        if kind != "attribute":
            assert len(set(labels)) == 1
            form = wording.caption if kind == "caption" else wording.naming
            assert said == form.answered(labels[0])
            if len(labels) > 1 and labels[0] != "bed":
                assert len({re.sub(r"-\d.*", "", p["path"]) for p in parts_of(chat)}) == len(labels)
        else:
            offered = [word for word in TABLE if word in text_of(chat)]
            assert len(offered) == 4
            right = next(word for word in TABLE if wording.attribute.answered(word) == said)
            assert set(labels) <= TABLE[right].true
            wrong = [word for word in offered if word != right]
            assert all(is_mixed(w, labels) or is_absent(w, labels) for w in wrong)
            several += len(set(labels)) > 1
            mixed += len(set(labels)) > 1 and any(is_mixed(w, labels) for w in wrong)
    assert several > 40
    assert mixed > 0.8 * several


def test_attributes_are_right_and_wrong_about_equally_often() -> None:
    chats = samples.training("t", MEDIA["train"]["image"], LABELS, 3 * 22 * 20, seed=0)
    right, wrong = Counter[str](), Counter[str]()
    for chat in chats:
        word = answer_of(chat).removeprefix("It ").removesuffix(".")
        if word in TABLE:
            right[word] += 1
            wrong.update(one for one in TABLE if one in text_of(chat) and one != word)
    # Else the words alone would tell something about the answer.
    assert set(right.values()) == {20}
    assert set(wrong) == set(TABLE)
    assert min(wrong.values()) >= 40
    assert max(wrong.values()) <= 80


def test_captions_only_shows_single_inputs_before_a_caption_question() -> None:
    chats = samples.training("t", MEDIA["train"]["audio"], LABELS, 40, seed=0, captions_only=True)
    for chat in chats:
        assert [p["type"] for p in chat["messages"][0]["content"]] == ["audio", "text"]
        assert answer_of(chat) == f'"{label_of(parts_of(chat)[0])}"'


def test_the_same_seed_gives_the_same_samples_whatever_the_order_and_another_seed_others() -> None:
    media = MEDIA["train"]["image"]
    one = samples.training("t", media, LABELS, 50, seed=0)
    assert samples.training("t", media[::-1], LABELS, 50, seed=0) == one
    assert samples.training("t", media, LABELS, 50, seed=1) != one


def test_classes_weigh_the_same_and_so_do_objects_within_a_class() -> None:
    dealer = Dealer(MEDIA["train"]["image"], dice(0))
    dealt = [dealer.take(dealer.next_label()) for _ in range(20 * 10)]
    assert set(Counter(medium.label for medium in dealt).values()) == {10}
    by_object = Counter(medium.id for medium in dealt)
    assert by_object.pop("train/bed0") == 10
    assert set(by_object.values()) == {2}


def test_several_of_a_class_are_different_objects_as_far_as_there_are() -> None:
    dealer = Dealer(MEDIA["train"]["image"], dice(0))
    for _ in range(20):
        assert len({medium.id for medium in dealer.several(["car"] * 3)}) == 3
    assert {medium.id for medium in dealer.several(["bed"] * 3)} == {"train/bed0"}


def test_a_deck_holds_every_item_once_a_round() -> None:
    dealt = list(islice(deck("abc", dice(0)), 12))
    assert all(sorted(dealt[start : start + 3]) == ["a", "b", "c"] for start in range(0, 12, 3))


def test_single_tests_balance_places_and_refer_to_the_right_option() -> None:
    made = questions.single_sets(
        "test", MEDIA["test"], LABELS, {"mc": 40, "caption": 20, "attribute": 44}, 0
    )
    assert len(made) == 12
    for name, asked in made.items():
        modality, kind = name.split("-")
        form = WORDINGS[MODALITIES[modality]].form(questions._KINDS[kind])
        for question in asked:
            (part,) = parts_of(question)
            right = question["options"][question["answer"]]
            assert question["reference"] == right
            assert part["type"] == MODALITIES[modality]
            label = label_of(part)
            if kind == "attribute":
                held = [form.answered(w) for w in TABLE if label in TABLE[w].true]
                open_ = [form.answered(w) for w in TABLE if label in TABLE[w].arguable]
                assert [option in held for option in question["options"]].count(True) == 1
                assert right in held
                assert not set(open_) & set(question["options"])
            else:
                assert right == form.answered(label)
            assert len(set(question["options"])) == (20 if kind == "caption" else 4)
        if kind != "caption":
            places = Counter(question["answer"] for question in asked)
            assert set(places.values()) == {len(asked) // 4}


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+", text.replace("{options}", " | ").lower())


def test_shared_words_are_in_no_training_text() -> None:
    def triples(text: str) -> set[tuple[str, ...]]:
        pieces = [re.findall(r"\w+", piece) for piece in text.lower().split("{options}")]
        return {tuple(p[at : at + 3]) for p in pieces for at in range(len(p) - 2)}

    trained: set[tuple[str, ...]] = set()
    for wording in WORDINGS.values():
        for form in (wording.caption, wording.naming, wording.attribute):
            for text in (*form.one, *form.many):
                trained |= triples(text)
    shared = [*SHARED.naming.many, *SHARED.attribute.many]
    assert not trained & set().union(*map(triples, shared))


def test_every_modality_asks_and_answers_in_its_own_form() -> None:
    forms = [f for w in WORDINGS.values() for f in (w.caption, w.naming, w.attribute)]
    texts = [text for form in forms for text in (*form.one, *form.many)]
    assert len(texts) == len(set(texts))
    answers = [form.answer for form in forms]
    assert len(set(answers)) == 12
    assert {SHARED.naming.answer, SHARED.attribute.answer}.isdisjoint(answers)
    for form in forms:
        # Where there are options to choose from, all of a form's questions list them.
        listed = {"{options}" in text for text in (*form.one, *form.many)}
        assert len(listed) == 1


def test_articles_follow_the_first_letter() -> None:
    assert [with_article(word) for word in ("bed", "oven")] == ["a bed", "an oven"]


def test_prompts_are_short() -> None:
    longest = sorted(TABLE, key=len)[-4:]
    for wording in (*WORDINGS.values(), SHARED):
        for text in wording.attribute.many:
            asked = text.format(options=wording.listing("attribute", longest))
            assert len(tokens(asked)) <= 35


def test_written_files_keep_the_splits_apart_and_the_shared_words_out(written: Path) -> None:
    files = {file.stem: read(file) for file in written.glob("*.jsonl")}
    assert len(files) == 12 + 24 + 44 + 22 + 4
    for name, records in files.items():
        split = next((s for s in ("val", "test") if name.startswith(f"{s}-")), None)
        split = split or ("val" if name.endswith("-val") else "train")
        for record in records:
            for part in parts_of(record):
                assert f"/{split}/" in part["path"]
            if "objects" in record:
                assert all(id_.startswith(split) for id_ in record["objects"])
            else:
                assert not re.search("Candidates|Possible answers|Decide|Find", text_of(record))
    assert {len(files[f"{m}-train"]) for m in MODALITIES} == {360}
    assert {len(files[f"{m}-pretrain"]) for m in MODALITIES} == {150}
    assert {len(files[f"{m}-val"]) for m in MODALITIES} == {20}
    assert len(files["test-vision-mc"]) == 40
    assert len(files["val-mcub-object-audio+vision-noisy"]) == 15
    assert len(files["test-single-object-video-noisy"]) == 50


def test_writing_again_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "SAMPLES", {"train": 60, "val": 20})
    monkeypatch.setattr(
        questions,
        "JOINT",
        {split: {"clean": 4, "noisy": 8, "single": 8} for split in ("val", "test")},
    )
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    questions.write_all(one, MEDIA, LABELS, 0, degrade)
    backwards: dict[str, Any] = {
        split: {type_: media[::-1] for type_, media in reversed(types.items())}
        for split, types in reversed(MEDIA.items())
    }
    questions.write_all(other, backwards, LABELS[::-1], 0, degrade)
    assert len(list(one.glob("*.jsonl"))) == 8 + 24 + 2 * (44 + 4)
    for file in one.glob("*.jsonl"):
        assert (other / file.name).read_bytes() == file.read_bytes()


def test_a_split_without_some_class_is_named(tmp_path: Path) -> None:
    lacking = {split: dict(types) for split, types in MEDIA.items()}
    lacking["val"]["video"] = [m for m in MEDIA["val"]["video"] if m.label != "sink"]
    with pytest.raises(
        ValueError, match="val video inputs: expected every class and no other; found none of sink"
    ):
        questions.write_all(tmp_path, lacking, LABELS, 0, degrade)
    assert not list(tmp_path.iterdir())


def test_the_text_questions_are_whole_and_balanced() -> None:
    asked = read(ROOT / "recipes" / "household" / "text_questions.jsonl")
    assert len(asked) == 60
    assert len({question["id"] for question in asked}) == 60
    assert set(Counter(question["answer"] for question in asked).values()) == {15}
    for question in asked:
        assert question["kind"] == "text"
        assert len(set(question["options"])) == 4
        assert all(option in text_of(question) for option in question["options"])
    prose = (ROOT / "recipes" / "household" / "text.txt").read_text(encoding="utf-8")
    assert 2300 <= len(prose.split()) <= 2700
