"""Messages and their content parts: from a caller's conversation to text and raw inputs.

Understood are transformers' parts (``{"type": "image", "path": ...}``), OpenAI's
(``image_url``, ``input_audio``) and those that installed modalities declare. An unknown part is
an error, never left out in silence. Nothing is fetched from the network.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modalloy.errors import InputError, nearest

_COMMON_KEYS = ("path", "base64", "url")
_SCHEME = re.compile(r"data:|[A-Za-z][A-Za-z0-9+.-]*://")
_IGNORED_KEYS = frozenset({"type", "detail", "format"})  # hints that change nothing here


def flatten_message(
    message: Mapping[str, Any], modalities: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Turn one message into one whose content is text with placeholders, and its raw inputs.

    Args:
        message: ``{"role": ..., "content": text or list of parts}``.
        modalities: ``modalities`` of a composition's configuration.

    Returns:
        The message with ``content`` as one string, its other keys as they were (templates read
        ``name``, ``tool_calls`` and the like), and ``(modality, source)`` in prompt order; a
        source is bytes, a path, or an object of the caller's.

    Raises:
        InputError: The message is malformed, has an unknown part, or its text holds a
            placeholder.
    """
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InputError(f"a message must have 'role' and 'content'; got {message!r}")
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise InputError(f"a message's content must be text or a list of parts; got {content!r}")
    by_type = {entry["content_type"]: name for name, entry in modalities.items()}
    text = [""]
    inputs: list[tuple[str, Any]] = []
    for part in parts:
        kind = _part_type(part, by_type)
        if kind == "text":
            # Checked together with the text parts before it, as a template would join them.
            text[-1] = check_text(text[-1] + _text(part), modalities)
            continue
        name = by_type[kind]
        entry = modalities[name]
        inputs.append((name, _source(part, kind, entry["payload_keys"])))
        text += [entry["placeholder"] * entry["tokens"], ""]
    return {**message, "role": str(message["role"]), "content": "".join(text)}, inputs


def _part_type(part: Any, by_type: Mapping[str, str]) -> str:
    """Return ``"text"`` or the content type of a part."""
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InputError(f"a content part must be a mapping with a 'type'; got {part!r}")
    given: str = part["type"]
    # OpenAI's names: image_url, video_url, audio_url, input_audio.
    kind = given.removesuffix("_url") if given.endswith("_url") else given.removeprefix("input_")
    for candidate in (given, kind):
        if candidate == "text" or candidate in by_type:
            return candidate
    known = ["text", *sorted(by_type)]
    raise InputError(
        f"unknown content part {given!r}; this composition understands {', '.join(known)}."
        f"{nearest(given, known)}"
    )


def _text(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    if not isinstance(text, str):
        raise InputError(f"a text part must have a string under 'text'; got {text!r}")
    return text


def check_text(text: str, modalities: Mapping[str, Mapping[str, Any]]) -> str:
    """Return ``text`` if it holds no placeholder.

    Raises:
        InputError: It holds one, which would stand for an input that is not there.
    """
    for name, entry in modalities.items():
        if entry["placeholder"] in text:
            raise InputError(
                f"the text holds {entry['placeholder']!r}, which stands for {name} inputs; give "
                f"the input as a content part of type {entry['content_type']!r} instead"
            )
    return text


def check_layout(
    prompt: str,
    inputs: Sequence[tuple[str, Any]],
    modalities: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return a laid-out prompt if it has just the placeholders of its inputs.

    Roles, templates and messages that a template joins are looked at in no other place.

    Args:
        prompt: As the chat template wrote it.
        inputs: ``(modality, source)`` of this prompt.
        modalities: ``modalities`` of a composition's configuration.

    Raises:
        InputError: There are more placeholders, or fewer.
    """
    for name, entry in modalities.items():
        expected = entry["tokens"] * sum(owner == name for owner, _ in inputs)
        found = prompt.count(entry["placeholder"])
        if found != expected:
            raise InputError(
                f"the chat template wrote {found} times {entry['placeholder']!r}, the {name} "
                f"inputs of the conversation need {expected}; it drops or repeats content, or a "
                "role or another field of a message holds the placeholder"
            )
    return prompt


def _source(part: Mapping[str, Any], kind: str, payload_keys: Sequence[str]) -> Any:
    """Return what a part holds: bytes, a path, or the caller's object."""
    own = (*payload_keys, kind, f"{kind}_url", f"input_{kind}")
    allowed = dict.fromkeys((*own, *_COMMON_KEYS))
    unknown = sorted(part.keys() - allowed.keys() - _IGNORED_KEYS)
    given = [key for key in allowed if part.get(key) is not None]
    if unknown or len(given) != 1:
        raise InputError(
            f"a part of type {part['type']!r} must hold exactly one of {', '.join(allowed)}; got "
            f"{', '.join(sorted(part.keys() - {'type'})) or 'none'}"
        )
    key, value = given[0], part[given[0]]
    if key == "path":
        if not isinstance(value, str | os.PathLike):
            raise InputError(f"{kind}: 'path' must be a path, found {type(value).__name__}")
        return Path(value)
    if key == "base64":
        return _decode(value, kind)
    if isinstance(value, Mapping) and value.keys() & {"url", "data"}:
        return _from_url(value["url"]) if "url" in value else _decode(value["data"], kind)
    if key.endswith("url"):
        return _from_url(value)
    if isinstance(value, str):
        return _from_url(value) if _SCHEME.match(value) else Path(value)
    return value


def _from_url(value: Any) -> bytes:
    """Read a ``data:`` URL.

    Messages may come from a network: what they call a URL must not open local files either.
    """
    if not isinstance(value, str) or not value.startswith("data:"):
        raise InputError(
            f"{str(value)[:80]!r}: only data: URLs are read, nothing is fetched; download the "
            "file and give it under 'path'"
        )
    header, _, payload = value.partition(",")
    if not header.endswith(";base64"):
        raise InputError("a data: URL must be base64 (data:<type>;base64,<data>)")
    return _decode(payload, header[5:40])


def _decode(value: Any, what: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InputError(f"{what}: the data is not valid base64: {error}") from error
