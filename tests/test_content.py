"""Content parts: which forms are understood, and what is never let through."""

import base64
from pathlib import Path
from typing import Any

import pytest

from modalloy.composition.content import check_layout, flatten_message
from modalloy.errors import InputError

SEEN = b"\x89PNG bytes"
CODED = base64.b64encode(SEEN).decode()
URL = f"data:image/png;base64,{CODED}"


def entry(kind: str, tokens: int) -> dict[str, Any]:
    return {
        "content_type": kind,
        "payload_keys": [kind],
        "placeholder": f"<|{kind}|>",
        "tokens": tokens,
    }


MODALITIES = {"sight": entry("image", 2), "sound": entry("audio", 1)}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ({"type": "image", "path": "cat.png"}, Path("cat.png")),
        ({"type": "image", "path": Path("cat.png")}, Path("cat.png")),
        ({"type": "image", "image": "cat.png"}, Path("cat.png")),
        ({"type": "image", "image": SEEN}, SEEN),
        ({"type": "image", "image": [1, 2]}, [1, 2]),
        ({"type": "image", "image": URL}, SEEN),
        ({"type": "image", "url": URL}, SEEN),
        ({"type": "image", "base64": CODED}, SEEN),
        ({"type": "image", "path": "cat.png", "url": None}, Path("cat.png")),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, SEEN),
        ({"type": "image_url", "image_url": URL}, SEEN),
        ({"type": "input_image", "image_url": URL, "detail": "auto"}, SEEN),
        ({"type": "input_audio", "input_audio": {"data": CODED, "format": "wav"}}, SEEN),
        ({"type": "audio", "audio": "a.wav"}, Path("a.wav")),
    ],
)
def test_forms_that_are_understood(part: Any, source: Any) -> None:
    name, tokens = ("sound", 1) if "audio" in part["type"] else ("sight", 2)
    flat, inputs = flatten_message(user(text("see "), part, text(" so")), MODALITIES)
    assert inputs == [(name, source)]
    assert flat["content"] == "see " + MODALITIES[name]["placeholder"] * tokens + " so"


def test_text_alone_and_order() -> None:
    assert flatten_message({"role": "system", "content": "be"}, MODALITIES) == (
        {"role": "system", "content": "be"},
        [],
    )
    assert flatten_message(user({"type": "input_text", "text": "hi"}), MODALITIES)[0] == {
        "role": "user",
        "content": "hi",
    }
    flat, inputs = flatten_message(
        user({"type": "audio", "audio": 1}, {"type": "image", "image": 2}), MODALITIES
    )
    assert inputs == [("sound", 1), ("sight", 2)]
    assert flat["content"] == "<|audio|><|image|><|image|>"


def test_other_keys_reach_the_template() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [{"id": 1}], "name": "x"}
    assert flatten_message(message, MODALITIES)[0] == message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("hello", "a message must have 'role' and 'content'"),
        ({"role": "user"}, "a message must have 'role' and 'content'"),
        ({"role": "user", "content": None}, "content must be text or a list of parts"),
        (user("hello"), "a content part must be a mapping with a 'type'"),
        (user({"text": "hello"}), "a content part must be a mapping with a 'type'"),
        (user({"type": "text"}), "a text part must have a string under 'text'; got None"),
        (user({"type": "imag", "imag": 1}), ("unknown content part 'imag'; this composition "
         "understands text, audio, image. Did you mean 'image'?")),
        (user({"type": "video", "path": "x"}), "unknown content part 'video'"),
        (user({"type": "image"}), ("must hold exactly one of image, image_url, input_image, path, "
         "base64, url; got none")),
        (user({"type": "image", "path": "a", "image": "b"}), "exactly one of"),
        (user({"type": "image", "path": "a", "colour": 1}), "got colour, path"),
        (user({"type": "image", "path": 3}), "'path' must be a path, found int"),
        (user({"type": "image", "base64": "%%%"}), "image: the data is not valid base64"),
        (user({"type": "image", "base64": 3}), "image: the data is not valid base64"),
        (user({"type": "image", "url": "data:image/png,abc"}), "must be base64"),
    ],
)  # fmt: skip
def test_what_is_malformed(message: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        flatten_message(message, MODALITIES)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://host.example/cat.png"}},
        {"type": "image", "url": "http://host.example/cat.png"},
        {"type": "image", "image": "ftp://host.example/cat.png"},
        {"type": "image", "url": "file:///etc/hostname"},
        {"type": "image", "url": "/etc/hostname"},
        {"type": "image_url", "image_url": "/etc/hostname"},
        {"type": "image_url", "image_url": 3},
    ],
)
def test_nothing_is_fetched_and_urls_open_no_files(part: Any) -> None:
    with pytest.raises(InputError, match="only data: URLs are read, nothing is fetched"):
        flatten_message(user(part), MODALITIES)


@pytest.mark.parametrize(
    "parts",
    [
        [text("look: <|image|>")],
        [text("look: <|im"), text("age|>")],
        [text("<"), text("|image"), text(""), text("|"), text(">")],
        [{"type": "image", "image": 1}, text("<|audio"), text("|>")],
    ],
)
def test_text_cannot_hold_a_placeholder_even_in_pieces(parts: Any) -> None:
    with pytest.raises(InputError, match=r"give the input as a content part of type"):
        flatten_message(user(*parts), MODALITIES)


def test_halves_on_both_sides_of_an_input_are_just_text() -> None:
    flat, _ = flatten_message(
        user(text("<|im"), {"type": "audio", "audio": 1}, text("age|>")), MODALITIES
    )
    assert flat["content"] == "<|im<|audio|>age|>"


def test_what_the_template_wrote_is_counted() -> None:
    found = [("sight", 1)]
    good = "user: <|image|><|image|>"
    assert check_layout(good, found, MODALITIES) == good
    with pytest.raises(
        InputError, match=r"wrote 3 times '<\|image\|>', the sight inputs .* need 2"
    ):
        check_layout(good + "<|image|>", found, MODALITIES)
    with pytest.raises(InputError, match=r"wrote 0 times '<\|image\|>'.*drops or repeats content"):
        check_layout("user:", found, MODALITIES)
