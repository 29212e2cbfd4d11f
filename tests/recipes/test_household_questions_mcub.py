import re
from collections import Counter, defaultdict
from itertools import combinations

import pytest
from recipes.household import mcub
from recipes.household.attributes import TABLE, is_absent, is_mixed
from recipes.household.wordings import MODALITIES

from household_inputs import LABELS, MEDIA, Medium, Record, degrade, parts_of, text_of

SIZES = {"clean": 40, "noisy": 80, "single": 80}


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Record]]:
    return mcub.all_sets("test", MEDIA["test"], LABELS, SIZES, 0, degrade)


def test_every_subset_of_modalities_has_clean_and_noisy_sets_of_both_kinds(
    sets: dict[str, list[Record]],
) -> None:
    names = [
        "+".join(subset)
        for size in (2, 3, 4)
        for subset in combinations(("audio", "pointcloud", "video", "vision"), size)
    ]
    expected = {
        f"mcub-{kind}-{name}{end}"
        for kind in ("object", "attribute")
        for name in names
        for end in ("", "-noisy")
    }
    expected |= {f"single-object-{one}-noisy" for one in MODALITIES}
    assert set(sets) == expected
    for name, asked in sets.items():
        assert len(asked) == (80 if name.endswith("noisy") else 40)
        assert set(Counter(question["answer"] for question in asked).values()) == {len(asked) // 4}
        types = sorted(
            MODALITIES[one] for one in name.removesuffix("-noisy").split("-")[2].split("+")
        )
        for number, question in enumerate(asked):
            assert question["id"] == f"{name}-{number:03}"
            assert question["kind"] == name
            assert question["reference"] is None
            assert sorted(part["type"] for part in parts_of(question)) == types
            assert len(question["objects"]) == len(types)


def test_sets_of_fewer_modalities_show_the_same_inputs_in_the_same_order(
    sets: dict[str, list[Record]],
) -> None:
    for kind in ("object", "attribute"):
        for end in ("", "-noisy"):
            whole = sets[f"mcub-{kind}-audio+pointcloud+video+vision{end}"]
            for subset in mcub.subsets():
                types = {MODALITIES[one] for one in subset}
                fewer = sets[f"mcub-{kind}-{'+'.join(subset)}{end}"]
                for all_, some in zip(whole, fewer, strict=True):
                    kept = [part for part in parts_of(all_) if part["type"] in types]
                    assert parts_of(some) == kept
                    assert some["answer"] == all_["answer"]
                    right = all_["options"][all_["answer"]]
                    assert some["options"][some["answer"]] == right
                    if kind == "object":
                        assert (some["options"], text_of(some)) == (all_["options"], text_of(all_))


def test_noisy_sets_ask_what_the_clean_ones_ask_and_share_their_copies(
    sets: dict[str, list[Record]],
) -> None:
    for name in [one for one in sets if one.startswith("mcub") and not one.endswith("noisy")]:
        for clean, noisy in zip(sets[name], sets[f"{name}-noisy"], strict=False):
            for key in ("options", "answer", "objects"):
                assert clean[key] == noisy[key]
            assert text_of(clean) == text_of(noisy)
            assert all(part["path"].startswith("noisy/test/") for part in parts_of(noisy))
    for modality in MODALITIES:
        single = sets[f"single-object-{modality}-noisy"]
        for alone, joined in zip(
            single, sets["mcub-object-audio+pointcloud+video+vision-noisy"], strict=True
        ):
            assert parts_of(alone)[0] in parts_of(joined)
            assert (alone["options"], text_of(alone)) == (joined["options"], text_of(joined))
    paths = {p["path"] for name in sets if "noisy" in name for q in sets[name] for p in parts_of(q)}
    assert len(paths) == 2 * 80 * 4


def test_every_noisy_copy_is_made_once() -> None:
    made: Counter[str] = Counter()

    def counted(medium: Medium, name: str) -> Medium:
        made[name] += 1
        return degrade(medium, name)

    mcub.all_sets("val", MEDIA["val"], LABELS, {"clean": 0, "noisy": 12, "single": 0}, 0, counted)
    assert set(made.values()) == {1}
    assert len(made) == 2 * 12 * 4
    assert "val/object/003-pointcloud" in made


def test_object_questions_show_different_objects_of_one_class(
    sets: dict[str, list[Record]],
) -> None:
    orders: set[tuple[str, ...]] = set()
    for question in sets["mcub-object-audio+pointcloud+video+vision-noisy"]:
        label = question["options"][question["answer"]]
        assert all(label in id_ for id_ in question["objects"])
        if label != "bed":
            assert len(set(question["objects"])) == 4
        orders.add(tuple(part["type"] for part in parts_of(question)))
    assert len(orders) >= 20  # of 24


def test_attribute_questions_need_all_their_inputs(sets: dict[str, list[Record]]) -> None:
    soft: dict[int, int] = defaultdict(int)
    asked = 0
    for subset in mcub.subsets():
        for question in sets[f"mcub-attribute-{'+'.join(subset)}-noisy"]:
            labels = [re.sub(r".*/|\d", "", id_) for id_ in question["objects"]]
            assert len(set(labels)) == len(subset)
            options = question["options"]
            right = options[question["answer"]]
            assert all(label in TABLE[right].true for label in labels)
            wrong = [word for word in options if word != right]
            assert len(set(wrong)) == 3
            mixed = sum(is_mixed(word, labels) for word in wrong)
            assert mixed + sum(is_absent(word, labels) for word in wrong) == 3
            soft[len(subset)] += mixed < 2
            asked += 1
    assert asked == 11 * 80
    # The table has too few for some pairs, and for lamp, radiator and stove.
    assert soft[4] == 0
    assert soft[3] <= 0.03 * 4 * 80
    assert soft[2] <= 0.25 * 6 * 80


def test_attribute_options_of_fewer_inputs_are_kept_where_they_stay_wrong(
    sets: dict[str, list[Record]],
) -> None:
    whole = sets["mcub-attribute-audio+pointcloud+video+vision-noisy"]
    kept = total = 0
    for subset in mcub.subsets()[6:10]:
        fewer = sets[f"mcub-attribute-{'+'.join(subset)}-noisy"]
        for all_, some in zip(whole, fewer, strict=True):
            pairs = list(zip(all_["options"], some["options"], strict=True))
            kept += sum(one == other for one, other in pairs)
            total += 4
            moved = set(all_["options"]) & set(some["options"])
            assert sum(one == other for one, other in pairs) == len(moved)
    assert kept > 0.8 * total
