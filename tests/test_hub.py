"""Pushing a composition to the Hub and loading it from there, against a local stand-in."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import modalloy
from hub import Hub
from modalloy.composition.extras import model_card
from tiny import tiny_base
from toy import ask, toy_parent
from weighed import weighed_parent, weighed_registry

ASKED = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
BOTH = ask(("audio", [0.2]), "and", ("image", [0.9]), "the same?")
FILES = {
    "README.md", "chat_template.jinja", "config.json", "encoders/sight.safetensors",
    "generation_config.json", "modalloy.json", "model.safetensors", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
MODEL_FILES = FILES - {
    "chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"
}  # fmt: skip

PUSH = """
import sys, modalloy
from weighed import weighed_registry
model, processor = modalloy.load(sys.argv[1], registry=weighed_registry())
processor.push_to_hub("me/other-order")
model.push_to_hub("me/other-order")
model.push_to_hub("me/it", tags=["household"], commit_message="first")
processor.push_to_hub("me/it")
model.save_pretrained(sys.argv[1], push_to_hub=True, repo_id="me/saved")
model.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="me/saved-anew")
processor.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="me/saved-anew")
"""

LOAD = """
import json, sys, modalloy, torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
from modalloy.registry import Registry
from toy import ask
from weighed import weighed_registry
Registry.discover = classmethod(lambda cls, **_: weighed_registry())  # as if installed
asked = json.loads(sys.argv[1])
found = {}
for name in ("me/it", "me/other-order", "me/saved-anew"):
    model, processor = modalloy.load(name)
    batch = processor.apply_chat_template(asked["chat"], add_generation_prompt=True)
    found[name] = model.generate(**batch, **asked["options"]).tolist()
model = AutoModelForMultimodalLM.from_pretrained("me/it")
batch = AutoProcessor.from_pretrained("me/it").apply_chat_template(
    asked["chat"], add_generation_prompt=True
)
found["auto"] = model.generate(**batch, **asked["options"]).tolist()
found["record"] = model.provenance["base"]["id"]
print(json.dumps(found))
"""


def run(script: str, hub: Hub, home: Path, *arguments: str) -> str:
    """Run a script in a process whose Hub is the stand-in and whose cache is new."""
    here = str(Path(__file__).parent)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment = {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "stand-in",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", here)]),
    }
    done = subprocess.run(  # noqa: S603 - this interpreter, our own script
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Path, Any]]:
    root = tmp_path_factory.mktemp("hub")
    base = tiny_base(root / "base", seed=3)
    parents = [
        weighed_parent(root / "p1", base, seed=1),
        toy_parent(root / "p2", base, "sound", seed=2, suffix=1),
    ]
    model, processor = modalloy.compose(base, parents=parents, registry=weighed_registry())
    model.save_pretrained(root / "it")
    processor.save_pretrained(root / "it")
    with Hub() as hub:
        run(PUSH, hub, root / "home-1", str(root / "it"), str(root / "anew"))
        yield hub, root, (model, processor)


def test_every_file_is_pushed(pushed: tuple[Hub, Path, Any]) -> None:
    hub, root, _ = pushed
    assert set(hub.files("me/it")) == FILES
    assert set(hub.files("me/other-order")) == FILES
    assert set(hub.files("me/saved")) == MODEL_FILES
    assert set(hub.files("me/saved-anew")) == FILES
    for name in sorted(MODEL_FILES - {"README.md"}):
        content = (root / "it" / name).read_bytes()
        for repo in ("me/it", "me/saved", "me/saved-anew"):
            assert hub.files(repo)[name] == content, f"{repo}: {name}"
    assert hub.messages["me/it"] == ["first", "Upload processor"]
    assert any(path.endswith(".git/info/lfs/objects/batch") for _, path in hub.requests)


def test_the_card_is_the_compositions_own(pushed: tuple[Hub, Path, Any]) -> None:
    hub, _, (model, _) = pushed
    plain = model_card(model)
    assert 'tags: ["merge", "modalloy"]' in plain
    assert hub.files("me/saved")["README.md"].decode() == plain
    assert hub.files("me/other-order")["README.md"].decode() == plain
    card = hub.files("me/it")["README.md"].decode()
    assert "household" in card.partition("# base")[0]
    assert card.partition("# base")[2].strip() == plain.partition("# base")[2].strip()


def test_loaded_from_the_hub_it_says_the_same(pushed: tuple[Hub, Path, Any]) -> None:
    hub, root, (model, processor) = pushed
    batch = processor.apply_chat_template(BOTH, add_generation_prompt=True)
    expected = model.generate(**batch, **ASKED).tolist()
    asked = json.dumps({"chat": BOTH, "options": ASKED})
    found = json.loads(run(LOAD, hub, root / "home-2", asked).splitlines()[-1])
    assert found.pop("record") == "base"
    assert found == dict.fromkeys(("me/it", "me/other-order", "me/saved-anew", "auto"), expected)
    # What is told apart by it: with the encoder's table left at zero another answer comes out.
    plain, _ = modalloy.load(root / "it", registry=weighed_registry())
    plain.encoders.opened("sight").table.data.zero_()
    assert plain.generate(**batch, **ASKED).tolist() != expected
