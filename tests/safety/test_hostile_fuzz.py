"""Random damage: whatever stands in a file, the answer is a value or an error by name."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modalloy
from modalloy.base_config import load_config
from modalloy.checkpoints.safe_index import scan
from modalloy.errors import FormatError, ModalloyError
from modalloy.parent import read_manifest
from safety.hostile import INDEX, WEIGHTS

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["../x", "/etc/hostname", "os:system", "org/kernel", "load", "\0", "auto"]),
)  # fmt: skip
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = st.sampled_from([
    "architectures", "attribute_map", "attn_implementation", "dtype", "eos_token_id", "head_dim",
    "hidden_act", "hidden_size", "initializer_range", "is_encoder_decoder", "layer_types",
    "max_position_embeddings", "model_type", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "pad_token_id", "rms_norm_eps", "rope_parameters", "rope_scaling",
    "text_config", "tie_word_embeddings", "to_dict", "torch_dtype", "transformers_weights",
    "vocab_size", "id2label", "__class__", "return_dict", "problem_type", "rope_theta",
])  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def write(file: Path, data: Any) -> None:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(json.dumps(data))


@FUZZ
@given(cuts=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=4)), max_size=4))
def test_bytes_of_weights(good: Path, place: Path, cuts: list[tuple[int, bytes]]) -> None:
    """Merged with themselves, so that all of a file that is taken is read."""
    raw = bytearray((good / "base" / WEIGHTS).read_bytes())
    for where, data in cuts:
        size = 8 + struct.unpack("<Q", raw[:8])[0] % (1 << 16)
        raw[where % size : where % size + len(data)] = data
    model, out = place / "model", place / "out"
    write(model / "config.json", json.loads((good / "base" / "config.json").read_text()))
    (model / WEIGHTS).write_bytes(bytes(raw))
    plan = {
        "merge_method": "linear",
        "models": [{"model": str(model), "parameters": {"weight": 1.0}}],
    }
    try:
        modalloy.merge(plan, out, workers=1)
    except ModalloyError:
        assert not out.exists()
        return
    assert sorted(scan(out)) == sorted(scan(model))
    for file in out.iterdir():
        file.unlink()
    out.rmdir()


@FUZZ
@given(
    weight_map=st.one_of(
        VALUES,
        st.dictionaries(
            st.text(max_size=6),
            st.one_of(
                PLAIN,
                st.text(alphabet="./\\:C~a\0", max_size=9).map(lambda t: f"{t}.safetensors"),
            ),
            max_size=4,
        ),
    ),
    more=st.dictionaries(st.text(max_size=6), VALUES, max_size=2),
)
def test_indexes(place: Path, weight_map: Any, more: dict[str, Any]) -> None:
    directory = place / "index"
    write(directory / INDEX, {**more, "weight_map": weight_map})
    with pytest.raises(FormatError) as caught:
        scan(directory)
    assert str(directory) in str(caught.value)


@FUZZ
@given(changes=st.dictionaries(KEYS, VALUES, min_size=1, max_size=3))
def test_configurations(good: Path, place: Path, changes: dict[str, Any]) -> None:
    directory = place / "config"
    data = json.loads((good / "base" / "config.json").read_text())
    write(directory / "config.json", data | changes)
    try:
        config = load_config(directory)
    except FormatError as error:
        assert str(directory) in str(error)  # noqa: PT017 - a value will do as well
        return
    assert type(config).__module__.startswith("transformers.models.")


@FUZZ
@given(
    changes=st.dictionaries(
        st.sampled_from([
            "base", "connector", "encoder", "files", "format_version", "licence", "modality",
            "name", "prefix_tokens", "requires", "scores", "strategy", "training", "other",
        ]),
        VALUES,
        min_size=1,
        max_size=3,
    )
)  # fmt: skip
def test_manifests(good: Path, place: Path, changes: dict[str, Any]) -> None:
    directory = place / "manifest"
    data = json.loads((good / "parent" / "parent.json").read_text())
    write(directory / "parent.json", data | changes)
    try:
        read_manifest(directory)
    except FormatError as error:
        assert "parent.json" in str(error)  # noqa: PT017 - a value will do as well
