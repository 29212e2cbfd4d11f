"""Model cards with an enemy's texts in them, read as a browser's Markdown reads them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

import modalloy
from modalloy.cards import block, cell, code, front
from modalloy.composition.extras import model_card
from modalloy.interop.export import export
from modalloy.interop.export_cards import adapters_card, plain_card
from safety.entries import load
from safety.hostile import Box
from toy import toy_registry

MakeBox = Callable[[str], Box]
EVIL = (
    "MIT\n\n# Free\r\n<script>alert(1)</script> | a | `b` [x](javascript:y) ![z](http://e/t)"
    "\x85- ~~not~~ **this** <img src=x> &lt;i&gt; \\"
)
ON_ONE_LINE = " ".join(EVIL.split())
TEXTS = [
    EVIL, "`", "``", " `a` ", "\\", "\\`", "|", "\\|", "a|b", "<b>", "&amp;", "[a][b]", "\x1b[31m",
    "\u202eevil", "\ud800", "\u2028# a", "", " ", "# a", "- a", "```\n<b>", "https://x|y", "a_b_c",
]  # fmt: skip


def read(markdown: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return a card's front matter, and its elements: what each is, and the text in it."""
    markdown.encode()
    start, head, body = markdown.split("---\n", 2)
    assert start == ""
    found: list[tuple[str, str]] = []
    kinds = {"th_open": "heading of a column", "td_open": "cell"}
    opened = ""
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body):
        if token.type == "fence":
            found.append(("block", token.content))
        elif token.type == "inline":
            for inner in token.children or []:
                assert inner.type in ("text", "text_special", "code_inline", "softbreak",
                                      "strong_open", "strong_close"), inner  # fmt: skip
            text = "".join(
                " " if i.type == "softbreak" else i.content for i in token.children or []
            )
            found.append((kinds.get(opened, opened.removesuffix("_open")), text))
        else:
            assert token.type not in ("html_block", "hr", "code_block", "blockquote_open"), token
            opened = token.type
    return yaml.safe_load(head), found


@pytest.mark.parametrize("text", TEXTS)
def test_texts_stay_texts(text: str) -> None:
    def plain(value: str) -> str:
        return " ".join("".join(c if c.isprintable() else " " for c in value).split())

    table = f"| a | b |\n|---|---|\n| {cell(text)} | {cell(text)} |"
    _, found = read(f"{front('x', [])}\n# {cell(text)} a\n\nb {code(text)} c\n\n{table}\n")
    wanted = plain(text)
    assert found == [
        ("heading", f"{wanted} a".strip()),
        ("paragraph", f"b {wanted or '(empty)'} c"),
        ("heading of a column", "a"),
        ("heading of a column", "b"),
        ("cell", wanted),
        ("cell", wanted),
    ]


@pytest.mark.parametrize("text", ["a: 1\n", "```\n<b>\n", "  ````\n# a\n", "a `b`\n"])
def test_blocks_stay_blocks(text: str) -> None:
    _, found = read(f"{front('x', [])}\n{block(text, 'yaml')}\nafter\n")
    assert found == [("block", text), ("paragraph", "after")]


@pytest.mark.parametrize(
    ("bases", "named"),
    [
        (["org/name"], {"base_model": "org/name", "base_model_relation": "merge"}),
        (["b/c", "a/b", "b/c"], {"base_model": ["a/b", "b/c"], "base_model_relation": "merge"}),
        (["base"], {}),
        (["smollm2", "/a/b", "a/b/c", "a/b\nlicense: x", "../a", ""], {}),
    ],
)
def test_bases_are_named_that_the_hub_knows(bases: list[str], named: dict[str, Any]) -> None:
    head, _ = read(f"{front('transformers', bases)}\n")
    assert head == {"library_name": "transformers", "tags": ["merge", "modalloy"]} | named


@pytest.fixture(scope="module")
def made(good: Path) -> Any:
    """A composition."""
    return load(good / "composition").model


def spoil(record: dict[str, Any]) -> dict[str, Any]:
    """Put an enemy's text wherever a record has a text that a card shows."""
    record = copy.deepcopy(record)
    record["base"]["id"] = record["method"] = record["modalloy"] = EVIL
    record["base"]["fingerprint"] |= {"architecture": EVIL, "structure": "`<b>", "content": "|`"}
    for parent in record["parents"]:
        parent.update(dict.fromkeys(("name", "strategy", "licence"), EVIL))
        parent["plugin"] = dict.fromkeys(("distribution", "version"), EVIL)
    return record


def test_a_composition(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, elements = read(model_card(made))
    assert "base_model" not in plain
    assert "base_model_relation" not in plain  # of nothing
    monkeypatch.setattr(made, "provenance", spoil(made.provenance))
    monkeypatch.setattr(made.config, "method", EVIL)
    head, found = read(model_card(made, ["a\n---\n<b>"]))
    assert head.pop("tags") == ["merge", "modalloy", "a\n---\n<b>"]
    assert head == {"library_name": "transformers", "pipeline_tag": "any-to-any"}
    assert [kind for kind, _ in found] == [kind for kind, _ in elements]
    cells = [text for kind, text in found if kind == "cell"]
    assert cells == ["sight", *[ON_ONE_LINE] * 3, f"{ON_ONE_LINE} {ON_ONE_LINE}"]


def test_a_composition_names_its_base(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record = copy.deepcopy(made.provenance)
    record["base"]["id"] = "org/name"
    monkeypatch.setattr(made, "provenance", record)
    head, _ = read(model_card(made))
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "any-to-any",
        "base_model": "org/name",
        "base_model_relation": "merge",
        "tags": ["merge", "modalloy"],
    }


@pytest.mark.parametrize("to", ["transformers", "peft"])
def test_exports(good: Path, tmp_path: Path, to: str) -> None:
    source, out = good / "composition", tmp_path / "out"
    record = export(
        source, out, to=to, registry=toy_registry("sight"), text_stream=to == "transformers"
    )
    card = {"transformers": plain_card, "peft": adapters_card}[to]
    _, elements = read((out / "README.md").read_text(encoding="utf-8"))
    head, found = read(card(spoil(record) | {"modalloy": "1"}))
    assert "base_model" not in head
    assert [kind for kind, _ in found] == [kind for kind, _ in elements]
    assert [text for kind, text in found if kind == "cell"][-3:] == [ON_ONE_LINE] * 3
    record["base"]["id"] = "org/name"
    head, _ = read(card(record))
    assert (head["base_model"], head["base_model_relation"]) == ("org/name", "merge")


def test_a_merge(box: MakeBox) -> None:
    inside = box("base")
    other = inside.root / "a`<script>`|b"
    inside.model.rename(other)
    rule = [{"filter": "x\n\n```\n# Free\n<script>", "value": 1}, {"value": 1}]
    recipe = {
        "merge_method": "linear",
        "base_model": str(other),
        "models": [{"model": str(other), "parameters": {"weight": rule}}],
    }
    modalloy.merge(recipe, inside.out, workers=1, registry=toy_registry("sight"))
    head, found = read((inside.out / "README.md").read_text(encoding="utf-8"))
    assert head == {"library_name": "transformers", "tags": ["merge", "modalloy"]}
    kinds = ["heading", "paragraph", "paragraph", "block", "paragraph"]
    assert [kind for kind, _ in found] == kinds
    assert found[2][1].startswith(other.name)
    assert yaml.safe_load(found[3][1])["models"] == json.loads(json.dumps(recipe))["models"]
