"""Models that an encoder's configuration names, as an enemy would save them."""

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.encoders import SAVED, Config
from conformance.samples import SAMPLES
from modalloy import Registry
from modalloy.errors import FormatError, MissingComponentError, SpecError, UnsafePathError
from modalloy.modality import resolve
from safety.hostile import INDEX, WEIGHTS, Box, Outside, scaled_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:audio. a sound longer"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
]
KINDS = ("ast", "clip", "siglip", "videomae", "whisper")
LINK = "is a symbolic link that leads outside its directory"
PROCESSOR = "preprocessor_config.json"
QUANTISER = {"quantization_config": {"quant_method": "mxfp4"}}
CODE: Config = {
    "auto_map": dict.fromkeys(
        ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoFeatureExtractor"), "foreign.C"
    ),
    "trust_remote_code": True,
    "_attn_implementation": "evil/kernel",
    "_attn_implementation_internal": "evil/kernel",
    "attn_implementation": "evil/kernel",
    "_experts_implementation": "evil/kernel",
    "use_kernels": True,
    "kernel_config": {"kernel_mapping": {"LayerNorm": "evil/kernel"}},
    "transformers_weights": "../outside/w.safetensors",
    "attribute_map": {"hidden_size": "image_size"},
}

Entry = Callable[[], Any]


@cache
def _sample(modality: str) -> Any:
    kind = Registry.discover(strict=False).modality(modality)
    return resolve(kind.read)(SAMPLES[modality]()[0], kind.limits)


class Named:
    """A model that an encoder names, in a box; and how it is opened and used.

    Attributes:
        box: Around the model.
        kind: The encoder.
    """

    def __init__(self, box: Box, kind: str, config: Config, registry: Registry) -> None:
        self.box = box
        self.kind = kind
        self.config = {**config, "model": str(box.model)}
        encoder = registry.encoder(kind)
        self._build, self._preprocess = resolve(encoder.build), resolve(encoder.preprocess)
        self._input = _sample(encoder.modality)

    def build(self) -> Any:
        return self._build(self.config)

    def preprocess(self) -> Any:
        return self._preprocess(self._input, self.config)

    @property
    def entries(self) -> tuple[Entry, Entry]:
        return self.build, self.preprocess


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover(strict=False)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Config]]:
    """A model of each kind, and its configuration."""
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    return {kind: (root / kind, SAVED[kind][1](root / kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def named(
    request: pytest.FixtureRequest,
    good: dict[str, tuple[Path, Config]],
    registry: Registry,
    tmp_path: Path,
) -> Named:
    source, config = good[request.param]
    root = tmp_path / "box"
    root.mkdir()
    shutil.copytree(source, root / "model")
    box = Box(root, root / "model", Outside(root / "outside"))
    return Named(box, request.param, config, registry)


def test_good_models_are_opened(named: Named) -> None:
    encoder, inputs = named.box.takes(named.build), named.box.takes(named.preprocess)
    features = encoder(**{name: tensor[None] for name, tensor in inputs.items()})
    assert features.shape[0] == 1
    assert features.isfinite().all()


def test_an_index_that_climbs_out(named: Named) -> None:
    named.box.shards(lambda _: "../outside/w.safetensors")
    words = "'../outside/w.safetensors', which climbs out of its directory"
    named.box.refuses(named.build, UnsafePathError, words)


def test_an_index_with_an_absolute_path(named: Named) -> None:
    file = str(named.box.outside.path / "w.safetensors")
    named.box.shards(lambda _: file)
    named.box.refuses(named.build, UnsafePathError, "which is not a relative path")


@pytest.mark.parametrize("name", ["config.json", PROCESSOR, WEIGHTS])
def test_links_to_files_elsewhere(named: Named, name: str) -> None:
    named.box.link(name, name)
    for entry in named.entries:
        named.box.refuses(entry, UnsafePathError, f"{name!r}, which {LINK}")


def test_an_index_that_is_a_link(named: Named) -> None:
    named.box.shards(lambda _: "w.safetensors")
    named.box.link(INDEX, INDEX)
    for entry in named.entries:
        named.box.refuses(entry, UnsafePathError, f"{INDEX!r}, which {LINK}")


def test_an_adapter_beside_the_model(named: Named) -> None:
    (named.box.model / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for entry in named.entries:
        named.box.refuses(entry, FormatError, "an adapter on it that nobody asked for")


def test_pieces_that_would_be_read_first(named: Named) -> None:
    piece = named.box.model / "shard-00001-model-00001-of-00001.safetensors"
    scaled_weights(named.box.model / WEIGHTS, piece)
    named.box.refuses(named.build, FormatError, "read in place of the weights that are checked")


@pytest.mark.parametrize("nested", [False, True])
def test_keys_that_choose_code_are_left_out(named: Named, *, nested: bool) -> None:
    expected = named.build().state_dict()
    named.box.code(body="class C: pass\n")
    change: Config = {"inner": {"deep": [CODE]}, "vision_config_": CODE} if nested else CODE
    named.box.edit("config.json", **change)
    named.box.edit(PROCESSOR, **change)
    encoder = named.box.takes(named.build)
    assert encoder.model.config._attn_implementation == "sdpa"
    named.box.takes(named.preprocess)
    found = encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_keys_in_the_part_of_a_whole_model(
    kind: str, good: dict[str, tuple[Path, Config]], registry: Registry, tmp_path: Path
) -> None:
    source, config = good[kind]
    root = tmp_path / "box"
    shutil.copytree(source, root / "model")
    box = Box(root, root / "model", Outside(root / "outside"))
    one = Named(box, kind, config, registry)
    inner = json.loads((box.model / "config.json").read_text())
    whole = {"model_type": kind, "vision_config": {**inner, **CODE}, "text_config": dict(CODE)}
    (box.model / "config.json").write_text(json.dumps({**whole, **CODE}))
    assert box.takes(one.build).model.config._attn_implementation == "sdpa"
    (box.model / "config.json").write_text(json.dumps({**whole, "vision_config": [1]}))
    box.refuses(one.build, FormatError, f"the model of '{box.model}' cannot be used as its conf")


@pytest.mark.parametrize("change", [QUANTISER, {"x": [QUANTISER]}])
def test_a_quantiser(named: Named, change: Config) -> None:
    named.box.edit("config.json", **change)
    named.box.refuses(named.build, FormatError, "asks for a quantiser, which would be code of its")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"model_type": "foreign"}, SpecError, "is a model of type 'foreign', expected '"),
        ({"model_type": ["clip"]}, SpecError, "is a model of type ['clip'], expected '"),
        ({"dtype": "load"}, FormatError, "dtype must be such as bfloat16 or float32"),
        ({"patch_size": 0, "d_model": "x"}, FormatError, "cannot be used as its configuration"),
        ({"patch_size": [], "d_model": []}, FormatError, "cannot be used as its configuration"),
        (
            {"hidden_act": "os.system", "activation_function": "os.system"},
            FormatError,
            "cannot be used as its configuration says: ",
        ),
        (
            {"intermediate_size": 7, "encoder_ffn_dim": 7},
            FormatError,
            "cannot be used as its configuration says: ",
        ),
    ],
)
def test_configurations_of_no_such_model(
    named: Named, change: Config, kind: type[FormatError], words: str
) -> None:
    named.box.edit("config.json", **change)
    named.box.refuses(named.build, kind, words)


def test_weights_that_are_pickles_alone(named: Named) -> None:
    (named.box.model / WEIGHTS).unlink()
    for name in ("pytorch_model.bin", "model.pt"):
        named.box.pickle(name)
    words = "pickles, which can run any code when opened and are not read"
    named.box.refuses(named.build, FormatError, words)


def test_a_pickle_by_the_name_of_weights(named: Named) -> None:
    named.box.pickle(WEIGHTS)
    named.box.refuses(named.build, FormatError, "is not a safetensors file, or was cut short")


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "[" * 100_000, "[1]", "{", "\udcff"])
@pytest.mark.parametrize("name", ["config.json", PROCESSOR, "processor_config.json"])
def test_json_that_is_none_or_has_no_bottom(named: Named, name: str, text: str) -> None:
    (named.box.model / name).write_bytes(text.encode(errors="surrogateescape"))
    entry = named.build if name == "config.json" else named.preprocess
    named.box.refuses(entry, FormatError, name)


@pytest.mark.parametrize("name", ["config.json", PROCESSOR])
def test_json_without_end(named: Named, name: str) -> None:
    os.truncate(named.box.model / name, 64 * 2**20 + 1)
    entry = named.build if name == "config.json" else named.preprocess
    named.box.refuses(entry, FormatError, "at most 67108864 are read")
    (named.box.model / name).write_text(f'{{"x": {"[" * 200 + "]" * 200}}}')
    named.box.refuses(entry, FormatError, "nested more than 64 deep")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("name", ["config.json", PROCESSOR, "processor_config.json", WEIGHTS])
def test_pipes_are_not_waited_for(named: Named, name: str) -> None:
    (named.box.model / name).unlink(missing_ok=True)
    os.mkfifo(named.box.model / name)
    for entry in named.entries:
        # No hashes of the folder: to read it would be to wait.
        with pytest.raises(FormatError, match=f"{name} is no file but a pipe or a device"):
            entry()


@pytest.mark.parametrize("name", ["config.json", PROCESSOR, WEIGHTS])
def test_folders_in_place_of_files(named: Named, name: str) -> None:
    (named.box.model / name).unlink()
    (named.box.model / name).mkdir()
    entry = named.preprocess if name == PROCESSOR else named.build
    named.box.refuses(entry, FormatError, name)


@pytest.mark.parametrize("name", ["AutoModel", "OneFormerImageProcessor", "AutoTokenizer", 3, [1]])
@pytest.mark.parametrize("key", ["image_processor_type", "feature_extractor_type"])
def test_processors_of_other_classes(named: Named, key: str, name: Any) -> None:
    """One of these reads a file that its settings name, wherever; another opens the model."""
    secret = str(named.box.outside.path / "secret.txt")
    other: Config = {key: name, "repo_path": None, "class_info_file": secret}
    before = (named.box.model / PROCESSOR).read_text()
    named.box.edit(PROCESSOR, **other)
    named.box.refuses(named.preprocess, FormatError, f"{PROCESSOR} names {name!r} as the ")
    (named.box.model / PROCESSOR).write_text(before)
    parts = ("image_processor", "feature_extractor")
    own, foreign = reversed(parts) if named.kind in ("ast", "whisper") else parts
    whole = named.box.model / "processor_config.json"
    whole.write_text(json.dumps({own: other}))
    words = f"processor_config.json names {name!r} as the "
    named.box.refuses(named.preprocess, FormatError, words)
    whole.write_text(json.dumps({foreign: other}))
    named.box.takes(named.preprocess)


@pytest.mark.parametrize(
    "change",
    [
        {"__class__": "x"},
        {"_preprocess": "os.system", "_extract_fbank_features": 1, "fbank": 1},
        {"size": "x", "max_length": "x", "chunk_length": "x", "crop_size": "x"},
        {"image_mean": [], "sampling_rate": [], "mean": "x"},
    ],
)
def test_processors_that_transformers_stumbles_over(named: Named, change: Config) -> None:
    """Settings become attributes, in place of methods too, but only as JSON data."""
    named.box.edit(PROCESSOR, **change)
    told = []
    with named.box.watched():
        try:
            named.preprocess()
        except FormatError as error:
            told.append(str(error))
    words = f"{named.box.model}' cannot be used as its configuration says: "
    assert all(words in message for message in told)


def test_a_processor_without_settings(named: Named) -> None:
    (named.box.model / PROCESSOR).unlink()
    words = f"cannot be opened: there is no {named.box.model / PROCESSOR}"
    named.box.refuses(named.preprocess, MissingComponentError, words)
    (named.box.model / "processor_config.json").write_text(
        '{"image_processor": [1], "feature_extractor": "x"}'
    )
    named.box.refuses(named.preprocess, FormatError, "must be a JSON object, found ")


@pytest.mark.parametrize(
    "name",
    ["../nowhere", "~/x", "~nobody/x", "a\0b", "x" * 9000, "https://evil/x", "a/b/c", ""],
)
def test_names_that_are_no_directory(
    named: Named, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not asked of the Hub either."""
    named.config["model"] = name
    monkeypatch.chdir(named.box.root)
    for entry in named.entries:
        with named.box.watched(), pytest.raises((MissingComponentError, FormatError)) as caught:
            entry()
        if name != ".":
            assert f"of {name!r} cannot be opened: there is no such directory" in str(caught.value)
