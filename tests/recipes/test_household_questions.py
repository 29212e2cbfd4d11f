import json
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from recipes.household import catalogue, questions  # noqa: E402
from recipes.household.draws import dice  # noqa: E402
from recipes.household.questions import AUDIO, SHARED, VISION, Medium, Sample  # noqa: E402

LABELS = ["ball", "bed", "car", "chair", "door", "lamp"]
# "ball" has one object and the others three, to see that classes weigh the same all the same.
SEEN = [
    Medium(f"s/{label}{number}", label, "image", f"{label}{number}-{view}.png")
    for label in LABELS
    for number in range(1 if label == "ball" else 3)
    for view in range(2)
]
HEARD = [
    Medium(f"v{number}/{label}", label, "audio", f"{label}-{number}.flac")
    for label in LABELS
    for number in range(4)
]


def text_of(sample: Sample) -> str:
    return sample["messages"][0]["content"][-1]["text"]


def answer_of(sample: Sample) -> str:
    return sample["messages"][1]["content"]


def test_training_samples_are_half_captions_half_choices_in_the_form_of_their_modality() -> None:
    for media, captions, choices in (
        (SEEN, r"a \w+", r"It is a \w+\."),
        (HEARD, r'"\w+"', r'I hear "\w+"\.'),
    ):
        samples = questions.training("t", media, 120, seed=0)
        answers = [answer_of(sample) for sample in samples]
        assert sum(bool(re.fullmatch(captions, answer)) for answer in answers) == 60
        assert sum(bool(re.fullmatch(choices, answer)) for answer in answers) == 60


def test_training_answers_name_the_class_of_the_medium_and_choices_offer_it() -> None:
    label_of = {medium.path: medium.label for medium in SEEN}
    for sample in questions.training("t", SEEN, 200, seed=0):
        label = label_of[sample["messages"][0]["content"][0]["path"]]
        assert re.search(rf"\b{label}\b", answer_of(sample))
        if answer_of(sample).startswith("It is"):
            offered = [one for one in LABELS if re.search(rf"\ba {one}\b", text_of(sample))]
            assert len(offered) == 4
            assert label in offered


def test_the_same_seed_gives_the_same_samples_and_another_seed_others() -> None:
    one = questions.training("t", SEEN, 50, seed=0)
    assert questions.training("t", SEEN[::-1], 50, seed=0) == one
    assert questions.training("t", SEEN, 50, seed=1) != one


def test_classes_weigh_the_same_and_so_do_objects_within_a_class() -> None:
    dealt = list(islice(questions.deal(SEEN, dice(0)), 6 * 9))
    assert set(Counter(medium.label for medium in dealt).values()) == {9}
    by_object = Counter(medium.id for medium in dealt)
    assert by_object.pop("s/ball0") == 9
    assert set(by_object.values()) == {3}


def test_captions_only_holds_no_choice() -> None:
    samples = questions.training("t", HEARD, 40, seed=0, captions_only=True)
    assert all(answer_of(sample).startswith('"') for sample in samples)


def test_choice_questions_balance_places_and_score_against_the_right_option() -> None:
    asked = questions.choice_test("k", [[m] for m in HEARD], AUDIO, LABELS, seed=0)
    assert set(Counter(question["answer"] for question in asked).values()) == {6}
    for medium, question in zip(HEARD, asked, strict=True):
        assert len(set(question["options"])) == 4
        assert question["options"][question["answer"]] == f'I hear "{medium.label}".'
        assert question["reference"] == f'I hear "{medium.label}".'
        assert question["objects"] == [medium.id]
        listed = text_of(question).split("? ")[-1].split(". ")[-1].split(" / ")
        assert [f'I hear "{label}".' for label in listed] == question["options"]


def test_caption_questions_have_all_classes_as_options() -> None:
    (question,) = questions.caption_test("c", [SEEN[-1]], LABELS)
    assert question["options"] == [f"a {label}" for label in LABELS]
    assert question["options"][question["answer"]] == question["reference"] == "a lamp"


def test_pairs_show_and_name_one_class_and_half_of_them_start_with_the_word() -> None:
    pairs = questions.pairs(SEEN, HEARD, 24, 0, "p")
    assert all(one.label == other.label for one, other in pairs)
    assert Counter(pair[0].type for pair in pairs) == {"image": 12, "audio": 12}


def test_sets_that_share_their_draws_ask_the_same() -> None:
    pairs = questions.pairs(SEEN, HEARD, 12, 0, "p")
    alone = [[m for m in pair if m.type == "image"] for pair in pairs]
    both = questions.choice_test("both", pairs, SHARED, LABELS, 0, "shared")
    one = questions.choice_test("one", alone, SHARED, LABELS, 0, "shared")
    for a, b in zip(both, one, strict=True):
        assert (text_of(a), a["options"], a["answer"]) == (text_of(b), b["options"], b["answer"])
    assert [question["reference"] for question in both] == [None] * 12


def test_questions_about_several_inputs_use_no_wording_of_training() -> None:
    def stem(text: str) -> str:
        return re.sub(r"\W+", " ", text.replace("{options}", " ")).strip().lower()

    trained = {stem(t) for w in (VISION, AUDIO) for t in (*w.captions, *w.choices)}
    assert trained.isdisjoint(stem(text) for text in SHARED.choices)
    chosen = {wording.chosen for wording in (VISION, AUDIO, SHARED)}
    free = {VISION.free, AUDIO.free}
    assert len(chosen) == 3
    assert SHARED.chosen not in free


def test_prompts_are_short() -> None:
    longest = ["cabinet", "computer", "person", "bottle"]
    for wording in (VISION, AUDIO, SHARED):
        for text in wording.choices:
            # Twenty words and their punctuation stay below 45 tokens of any usual vocabulary.
            asked = text.format(options=wording.listing(longest))
            assert len(re.findall(r"\w+|[^\w\s]", asked)) <= 25


def test_splits_keep_groups_together_and_give_every_class_all_three() -> None:
    labels = {f"{label}{number}": label for label in LABELS for number in range(16)}
    pairs = [("bed1", "bed2"), ("bed3", "bed4"), ("bed4", "bed2"), ("car5", "car6")]
    groups = catalogue.group(list(labels), pairs)
    assert {groups[f"bed{number}"] for number in (1, 2, 3, 4)} == {"bed1"}
    splits = catalogue.split(labels, groups, seed=0)
    assert splits == catalogue.split(dict(reversed(labels.items())), groups, seed=0)
    for id_, first in groups.items():
        assert splits[id_] == splits[first]
    for label in LABELS:
        counts = Counter(split for id_, split in splits.items() if labels[id_] == label)
        assert counts == {"train": 10, "val": 2, "test": 4}


def test_the_chosen_pictures_are_consistent() -> None:
    picks, same = catalogue.read_picks()
    names = catalogue.classes(picks)
    assert len(names) == 20
    # "a {label}" must be right for each.
    assert not [label for label in names if label[0] in "aeiou"]
    assert min(Counter(pick.label for pick in picks).values()) >= 15
    assert all(len(ids) > 1 for ids in same)


def test_a_picture_chosen_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pictures.toml"
    path.write_text('[bed]\nscopia = "a b"\n[car]\nscopia = "b"\n[same-object]\nx = "scopia/c"\n')
    with pytest.raises(ValueError, match=r"\['scopia/b'\] twice and \['scopia/c'\] unknown"):
        catalogue.read_picks(path)


def test_a_catalogue_is_read_by_icon() -> None:
    text = (
        "icon=/other.png\nname#1=Armchair\nicon#1=/blendswap-cc-0/armchair.png\r\n"
        "creator#1=Absfrm\nicon#2=/blendswap-cc-0/bed1.png\n"
    )
    assert catalogue.parse_catalogue(text) == {
        "armchair": ("blendswap-cc-0/armchair.png", "Absfrm"),
        "bed1": ("blendswap-cc-0/bed1.png", ""),
    }


@pytest.mark.parametrize("kind", ["vision-mc", "audio-mc", "vision+audio"])
def test_the_bundled_questions_are_whole(kind: str) -> None:
    folder = ROOT / "tests" / "data" / "household"
    lines = (folder / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line) for line in lines]
    assert len(asked) == 40
    for question in asked:
        assert question["kind"] == kind
        *media, text = question["messages"][0]["content"]
        assert (
            sorted(part["type"] for part in media)
            == {
                "vision-mc": ["image"],
                "audio-mc": ["audio"],
                "vision+audio": ["audio", "image"],
            }[kind]
        )
        assert all((folder / part["path"]).is_file() for part in media)
        assert all(part["path"].split("/")[0] == part["type"] for part in media)
        assert text["type"] == "text"
        pictures = [id_ for id_ in question["objects"] if id_.startswith("blendswap")]
        assert len(pictures) == sum(part["type"] == "image" for part in media)
        assert all(id_.startswith("blendswap-cc-0/") for id_ in pictures)
    assert set(Counter(question["answer"] for question in asked).values()) == {10}
