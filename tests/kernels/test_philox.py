import pytest
import torch

from kernels.oracles import random_word
from modalloy.errors import SpecError
from modalloy.kernels.philox import philox, random_words

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def test_each_element_draws_its_own_word() -> None:
    key, start = 0xFEDCBA9876543210, 4096 * (2**31 + 7)
    words = random_words(key, start, 3 * 4096 + 5)
    assert words.dtype == torch.int64
    for e in (0, 1, 1023, 1024, 2047, 2048, 3072, 4095, 4096, 8191, 3 * 4096 + 4):
        assert int(words[e]) == random_word(key, start + e)


def test_a_piece_draws_what_the_whole_draws() -> None:
    whole = random_words(7, 0, 20000)
    assert torch.equal(whole[8192:15000], random_words(7, 8192, 15000 - 8192))
    assert random_words(7, 0, 0).shape == (0,)


def test_words_are_spread_evenly_and_keys_differ() -> None:
    words, others = random_words(1, 0, 1 << 18), random_words(1 + 2**32, 0, 1 << 18)
    # The mean of n uniform values has a deviation of 1 / sqrt(12 n); six of them are allowed.
    allowed = 6 / (12 * (1 << 18)) ** 0.5
    assert abs(float((words / 2**32).mean()) - 0.5) < allowed
    assert int((words == others).sum()) < 5
    assert int(words.min()) >= 0
    assert int(words.max()) < 2**32


def test_a_piece_begins_where_a_block_does() -> None:
    with pytest.raises(SpecError, match="start is -4096; expected a multiple of 4096, at least 0"):
        random_words(0, -4096, 1)
