"""Encoders that name a model on the Hub, which is a stand-in here."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from conformance.encoders import SAVED, Config
from hub import Hub
from modalloy import Registry
from modalloy.modality import resolve
from safety.hostile import INDEX, WEIGHTS

PROCESSOR = "preprocessor_config.json"

OPEN = """
import json, sys
from conformance.samples import SAMPLES
from modalloy import Registry
from modalloy.errors import ModalloyError
from modalloy.modality import resolve
registry = Registry.discover(strict=False)

def process(kind, config):
    encoder = registry.encoder(kind)
    modality = registry.modality(encoder.modality)
    heard = resolve(modality.read)(SAMPLES[encoder.modality]()[0], modality.limits)
    resolve(encoder.preprocess)(heard, config)
    return "processed"

def build(kind, config):
    module = resolve(registry.encoder(kind).build)(config)
    return sum(float(p.detach().double().abs().sum()) for p in module.parameters())

said = []
for kind, config in json.loads(sys.argv[1]):
    said.append([])
    for act in (process, build):
        try:
            said[-1].append(act(kind, config))
        except ModalloyError as error:
            said[-1].append(f"{type(error).__name__} {error}")
print(json.dumps(said))
"""


def opened(hub: Hub, home: Path, asked: Sequence[tuple[str, Config]]) -> list[list[Any]]:
    """Return what a process says that opens encoders, and whose Hub is the stand-in."""
    here = str(Path(__file__).parent.parent)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment = {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", here)]),
    }
    done = subprocess.run(  # noqa: S603 - a test's own script
        [sys.executable, "-W", "ignore", "-c", OPEN, json.dumps(asked)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: list[list[Any]] = json.loads(done.stdout)
    return said


def fetched(hub: Hub, repository: str) -> list[str]:
    """Return the files of a repository that were downloaded, sorted."""
    mark = f"/{repository}/resolve/"
    paths = {path for method, path in hub.requests if method == "GET" and path.startswith(mark)}
    return sorted(path.removeprefix(mark).partition("/")[2] for path in paths)


def total(module: torch.nn.Module) -> float:
    return sum(float(p.detach().double().abs().sum()) for p in module.parameters())


def test_hub_repositories(tmp_path: Path) -> None:
    """Only what is read is fetched, and it is checked as a directory is."""
    registry = Registry.discover(strict=False)
    torch.manual_seed(0)
    good = {
        kind: (tmp_path / kind, SAVED[kind][1](tmp_path / kind)) for kind in ("clip", "whisper")
    }
    evil = ("pytorch_model.bin", "adapter_config.json", "foreign.py", "model.fp32.safetensors")
    table = {"metadata": {}, "weight_map": {"x": "../../../secret.safetensors"}}
    asked = [(kind, {**good[kind][1], "model": f"me/{kind}"}) for kind in ("clip", "whisper")]
    clip = good["clip"][1]
    asked += [("clip", {**clip, "model": f"me/{name}"}) for name in ("pickle", "index")]
    asked.append(("clip", {**clip, "model": "me/nothing", "revision": "v1"}))
    with Hub() as hub:
        for kind in ("clip", "whisper"):
            files = {path.name: path.read_bytes() for path in good[kind][0].iterdir()}
            more = {**dict.fromkeys(evil, b"x"), "sub/config.json": b"{}"}
            hub.commits[f"me/{kind}"] = [{**files, **more}]
        files = {path.name: path.read_bytes() for path in good["clip"][0].iterdir()}
        weights = files.pop(WEIGHTS)
        hub.commits["me/pickle"] = [{**files, "pytorch_model.bin": weights}]
        hub.commits["me/index"] = [{**files, INDEX: json.dumps(table).encode()}]
        said = opened(hub, tmp_path / "home", asked)
        for kind in ("clip", "whisper"):
            assert fetched(hub, f"me/{kind}") == ["config.json", WEIGHTS, PROCESSOR]
        assert fetched(hub, "me/pickle") == ["config.json", PROCESSOR]
    for (kind, config), found in zip(asked[:2], said, strict=False):
        build = resolve(registry.encoder(kind).build)
        assert found == ["processed", total(build({**config, "model": str(good[kind][0])}))]
    assert said[2][0] == said[3][0] == "processed"
    assert said[2][1].startswith("FormatError ")
    assert "holds neither model.safetensors nor" in said[2][1]
    assert said[3][1].startswith("UnsafePathError ")
    assert "climbs out of its directory" in said[3][1]
    words = "of 'me/nothing' at revision 'v1' cannot be opened: 'me/nothing' is neither a directory"
    assert said[4][0].startswith(
        f"MissingComponentError encoder 'clip': the image processor {words}"
    )
    assert said[4][1].startswith(f"MissingComponentError encoder 'clip': the model {words}")


def test_weights_of_timms_are_no_pickles(tmp_path: Path) -> None:
    import timm

    from modalloy_video.configuration import DEFAULT_FRAMES
    from modalloy_vision.configuration import DEFAULT_TIMM

    torch.manual_seed(0)
    model: Any = timm.create_model("resnet10t", pretrained=False)
    save_file(model.state_dict(), tmp_path / WEIGHTS)
    own: Config = {"features": 512, "weights": "timm"}
    asked = [
        (kind, {**default, **own, "model": name})
        for kind, default in (("timm", DEFAULT_TIMM), ("frames", DEFAULT_FRAMES))
        for name in ("resnet10t", "resnet14t")
    ]
    with Hub() as hub:
        evil = {"pytorch_model.bin": b"x"}
        hub.commits["timm/resnet10t.c3_in1k"] = [
            {**evil, WEIGHTS: (tmp_path / WEIGHTS).read_bytes()}
        ]
        hub.commits["timm/resnet14t.c3_in1k"] = [evil]
        said = opened(hub, tmp_path / "home", asked)
        assert fetched(hub, "timm/resnet10t.c3_in1k") == [WEIGHTS]
        assert fetched(hub, "timm/resnet14t.c3_in1k") == []
    model.reset_classifier(0)
    for (kind, config), (_, built) in zip(asked, said, strict=True):
        if config["model"] == "resnet10t":
            assert built == total(model)
        else:
            assert built.startswith(f"MissingComponentError encoder {kind!r}: pretrained weights")
            assert "holds no model.safetensors, and pickles are not opened" in built
