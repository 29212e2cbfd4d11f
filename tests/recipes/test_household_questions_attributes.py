import re
from collections import Counter
from itertools import combinations

import pytest
from recipes.household import attributes, mcub
from recipes.household.attributes import LABELS, TABLE, holds, wrong_options


def truth(word: str, label: str) -> str:
    entry = TABLE[word]
    assert not entry.true & entry.arguable
    return "yes" if label in entry.true else "open" if label in entry.arguable else "no"


def test_the_table_names_known_classes_and_gives_each_at_least_two_attributes() -> None:
    assert len(LABELS) == 20
    for word, entry in TABLE.items():
        assert (entry.true | entry.arguable) <= set(LABELS), word
        assert len(entry.true) >= 2, word
    counts = Counter(label for entry in TABLE.values() for label in entry.true)
    assert min(counts[label] for label in LABELS) >= 2
    # Four different inputs can share these.
    assert sum(len(entry.true) >= 4 for entry in TABLE.values()) >= 12


def test_no_attribute_starts_another() -> None:
    for one, other in combinations(TABLE, 2):
        assert not one.startswith(other)
        assert not other.startswith(one)
    assert not [label for label in LABELS if any(re.search(rf"\b{label}\b", w) for w in TABLE)]


def test_holds_reads_the_table() -> None:
    assert holds("has wheels", "car") is True
    assert holds("has wheels", "chair") is None
    assert holds("has wheels", "tree") is False
    with pytest.raises(ValueError, match="unknown class 'hat'; expected one of bed, bike"):
        holds("has wheels", "hat")


def test_wrong_options_agree_with_a_brute_force_reading_of_the_table() -> None:
    order = list(TABLE)[::-1]
    tried = 0
    for right, entry in TABLE.items():
        for size in (1, 2, 3):
            for labels in combinations(sorted(entry.true), size):
                answers = {w: {truth(w, one) for one in labels} for w in TABLE if w != right}
                mixed = {w for w, found in answers.items() if found == {"yes", "no"}}
                absent = {w for w, found in answers.items() if found == {"no"}}
                found = wrong_options(right, labels, order)
                assert len(set(found)) == 3
                assert set(found) <= mixed | absent
                assert len(mixed & set(found)) == min(3, len(mixed))
                tried += 1
    assert tried > 200


def test_options_are_kept_in_place_unless_they_became_right_or_too_easy() -> None:
    order = list(TABLE)
    whole = ["has a handle", "opens and shuts", "gets hot"]
    # Of cabinet, shelf, stove and table all three hold for some.
    assert all(attributes.is_mixed(w, ["cabinet", "shelf", "stove", "table"]) for w in whole)
    # Both first ones hold for cabinet and stove: they would be right too.
    fewer = wrong_options("has a flat top", ["cabinet", "stove"], order, whole)
    assert fewer[2] == "gets hot"
    assert not set(fewer[:2]) & set(whole)
    # "gets hot" holds for neither of cabinet and shelf, but the other two still for one of them.
    assert wrong_options("has a flat top", ["cabinet", "shelf"], order, whole) == whole
    # Of shelf and table none holds for any; two give way to those that do.
    pair = wrong_options("has a flat top", ["shelf", "table"], order, whole)
    assert sum(attributes.is_mixed(word, ["shelf", "table"]) for word in pair) == 2
    assert pair[0] == whole[0]


def test_too_few_wrong_options_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {word: TABLE[word] for word in ("has wheels", "grows", "is soft")}
    monkeypatch.setattr(attributes, "TABLE", few)
    with pytest.raises(ValueError, match="'has wheels' asked of car has only 1 wrong options"):
        wrong_options("has wheels", ["car"], list(few))


def test_class_sets_are_hard_in_every_part_but_for_two_pairs() -> None:
    for right in [word for word, entry in TABLE.items() if len(entry.true) >= 4]:
        found = mcub.class_sets(right, LABELS)
        assert found
        for chosen in found:
            assert set(chosen) <= TABLE[right].true
            easy = [
                part
                for size in (2, 3, 4)
                for part in combinations(chosen, size)
                if sum(
                    {truth(w, one) for one in part} == {"yes", "no"} for w in TABLE if w != right
                )
                < 2
            ]
            if right != "is switched on and off":  # only four classes share it
                assert len(easy) <= 2
                assert all(len(part) == 2 for part in easy)


def test_too_few_classes_for_an_attribute_are_reported() -> None:
    media = {
        type_: [mcub.Medium(f"o/{label}", label, type_, f"{label}") for label in ("bed", "car")]
        for type_ in mcub.MODALITIES.values()
    }
    with pytest.raises(ValueError, match="no attribute holds for two of the classes bed, car"):
        mcub.draw_attributes(media, 1, mcub.dice(0))
