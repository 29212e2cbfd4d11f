"""Finding and reading a directory's safetensors, honest and hostile ones."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from modalloy.checkpoints import safe_index as module
from modalloy.checkpoints.reader import CheckpointReader
from modalloy.checkpoints.safe_index import read_header, safe_index
from modalloy.errors import FormatError, UnsafePathError
from tiny import tiny_base

INDEX = "model.safetensors.index.json"


def write_index(directory: Path, weight_map: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


def write_raw(file: Path, header: bytes, data: bytes = b"", size: int | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    length = len(header) if size is None else size
    file.write_bytes(struct.pack("<Q", length) + header + data)
    return file


def header_of(**tensors: tuple[str, list[int], list[int]]) -> bytes:
    return json.dumps(
        {n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in tensors.items()}
    ).encode()


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards, two tensors each."""
    directory = tmp_path / "sharded"
    directory.mkdir()
    save_file({"a": torch.arange(3.0), "d": torch.zeros(2, 2)}, directory / "one.safetensors")
    save_file({"b": torch.ones(4), "c": torch.tensor(7)}, directory / "two.safetensors")
    one, two = "one.safetensors", "two.safetensors"
    return write_index(directory, {"d": one, "b": two, "c": two, "a": one})


def refused(directory: Path, kind: type[FormatError] = FormatError) -> str:
    with pytest.raises(kind) as caught:
        safe_index(directory)
    return str(caught.value)


class TestIndex:
    def test_shards_are_found_and_names_sorted(self, sharded: Path) -> None:
        one, two = sharded / "one.safetensors", sharded / "two.safetensors"
        assert list(safe_index(sharded).items()) == [("a", one), ("b", two), ("c", two), ("d", one)]

    def test_a_single_file_needs_no_index(self, tmp_path: Path) -> None:
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
        assert safe_index(tmp_path) == {"x": tmp_path / "model.safetensors"}

    def test_an_adapter_has_a_stem_of_its_own(self, tmp_path: Path) -> None:
        file = tmp_path / "adapter_model.safetensors"
        save_file({"x": torch.zeros(1)}, file)
        assert safe_index(tmp_path, "adapter_model") == {"x": file}
        assert "holds neither model.safetensors nor model.saf" in refused(tmp_path)

    def test_the_same_tensors_as_transformers(self, tmp_path: Path) -> None:
        whole = tiny_base(tmp_path / "whole")
        parts = tiny_base(tmp_path / "parts", max_shard_size="10KB")
        assert len(set(safe_index(parts).values())) > 3
        assert list(safe_index(parts)) == sorted(load_file(whole / "model.safetensors"))

    def test_missing_shards_are_listed(self, sharded: Path) -> None:
        (sharded / "two.safetensors").unlink()
        message = refused(sharded)
        assert "1 of 2 shards are missing: 'two.safetensors'; fetch the model again" in message

    def test_a_tensor_that_its_shard_lacks(self, sharded: Path) -> None:
        one, two = "one.safetensors", "two.safetensors"
        write_index(sharded, {"d": one, "b": two, "c": two, "a": one, "e": two})
        assert "shard 'two.safetensors' should hold 'e', which is not in it" in refused(sharded)

    def test_a_tensor_that_the_index_hides(self, sharded: Path) -> None:
        one, two = "one.safetensors", "two.safetensors"
        write_index(sharded, {"d": one, "b": two, "a": one})
        message = refused(sharded)
        assert "shard 'two.safetensors' holds 'c', which the index does not say" in message

    @pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
    def test_no_weight_map(self, tmp_path: Path, weight_map: object) -> None:
        message = refused(write_index(tmp_path, weight_map))
        assert "'weight_map' must map tensor names to files, found" in message

    def test_a_file_that_is_no_string(self, tmp_path: Path) -> None:
        message = refused(write_index(tmp_path, {"a": 3}))
        assert "the file of tensor 'a' must be a string, found 3" in message

    def test_a_name_given_twice(self, sharded: Path) -> None:
        text = '{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}'
        (sharded / INDEX).write_text(text)
        assert "names 'a' more than once" in refused(sharded)

    @pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\xff"])
    def test_damaged_json(self, sharded: Path, text: str) -> None:
        (sharded / INDEX).write_bytes(text.encode("latin-1"))
        message = refused(sharded)
        assert "the JSON in it is damaged" in message or "expected a JSON object" in message

    def test_an_index_too_large(self, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_INDEX_BYTES", 10)
        assert "bytes, at most 10 are read" in refused(sharded)

    def test_too_many_tensors(self, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_TENSORS", 3)
        assert "names 4 tensors, at most 3 are read" in refused(sharded)

    def test_no_directory(self, tmp_path: Path) -> None:
        assert refused(tmp_path / "x").endswith("x is not a directory")


class TestOutside:
    """What an index names outside its directory is not even looked at."""

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("../secret.safetensors", "climbs out of its directory"),
            ("sub/../../secret.safetensors", "climbs out of its directory"),
            ("..\\secret.safetensors", "climbs out of its directory"),
            ("a\0.safetensors", "climbs out of its directory"),
            ("/secret.safetensors", "is not a relative path"),
            ("C:\\secret.safetensors", "is not a relative path"),
            ("C:secret.safetensors", "is not a relative path"),
            ("\\\\host\\secret.safetensors", "is not a relative path"),
            ("pytorch_model.bin", "does not end with '.safetensors'"),
        ],
    )
    def test_names(self, tmp_path: Path, name: str, problem: str) -> None:
        save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
        message = refused(write_index(tmp_path / "model", {"a": name}), UnsafePathError)
        assert f"{INDEX} names {name!r}, which {problem}; nothing was read from it" in message

    def test_an_absolute_path_to_a_real_file(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret.safetensors"
        save_file({"a": torch.zeros(1)}, secret)
        directory = write_index(tmp_path / "model", {"a": str(secret)})
        assert "is not a relative path" in refused(directory, UnsafePathError)

    @pytest.mark.parametrize("link", ["one.safetensors", "model.safetensors", INDEX])
    def test_links_that_lead_outside(self, sharded: Path, tmp_path: Path, link: str) -> None:
        (sharded / "one.safetensors").rename(tmp_path / "outside")
        (sharded / link).unlink(missing_ok=True)
        (sharded / link).symlink_to("../outside")
        assert "a symbolic link that leads outside its directory" in refused(
            sharded, UnsafePathError
        )

    def test_a_link_inside_is_fine(self, sharded: Path) -> None:
        (sharded / "store").mkdir()
        (sharded / "one.safetensors").rename(sharded / "store" / "1")
        (sharded / "one.safetensors").symlink_to("store/1")
        assert len(safe_index(sharded)) == 4

    @pytest.mark.parametrize("store", ["hub/models--o--m/blobs", "hub/blobs/ab"])
    def test_blobs_of_the_hub_cache_are_fine(
        self, sharded: Path, tmp_path: Path, store: str
    ) -> None:
        snapshot = tmp_path / "hub" / "models--o--m" / "snapshots" / "f00"
        shutil.copytree(sharded, snapshot)
        (tmp_path / store).mkdir(parents=True)
        blob = tmp_path / store / "0123"
        (snapshot / "one.safetensors").rename(blob)
        (snapshot / "one.safetensors").symlink_to(blob)
        assert len(safe_index(snapshot)) == 4

    def test_blobs_of_another_place_are_not(self, sharded: Path, tmp_path: Path) -> None:
        (tmp_path / "blobs").mkdir()
        (sharded / "one.safetensors").rename(tmp_path / "blobs" / "0123")
        (sharded / "one.safetensors").symlink_to("../blobs/0123")
        assert "leads outside its directory" in refused(sharded, UnsafePathError)

    def test_a_tensor_name_is_only_a_name(self, tmp_path: Path) -> None:
        save_file({"../../x": torch.zeros(1)}, tmp_path / "model.safetensors")
        assert list(safe_index(tmp_path)) == ["../../x"]


class TestPickles:
    def test_they_are_named_and_not_opened(self, tmp_path: Path) -> None:
        canary = tmp_path / "canary"

        class Payload:
            def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
                return (Path.touch, (canary,))

        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
        message = refused(tmp_path)
        assert "holds no model.safetensors but 'pytorch_model.bin': pickles" in message
        assert "save it with save_pretrained" in message
        assert not canary.exists()


class TestHeader:
    def test_entries(self, sharded: Path) -> None:
        entry = read_header(sharded / "one.safetensors")["d"]
        assert (entry.dtype, entry.shape) == ("F32", (2, 2))

    @pytest.mark.parametrize("size", [0, 3, 2**40, 2**64 - 1])
    def test_lengths_that_cannot_be(self, tmp_path: Path, size: int) -> None:
        file = write_raw(tmp_path / "model.safetensors", b"{", size=size)
        assert "was cut short" in refused(tmp_path) or size == 3
        assert file.stat().st_size == 9

    def test_a_length_above_the_format_s(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_HEADER_BYTES", 5)
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
        assert "is not a safetensors file, or was cut short" in refused(tmp_path)

    def test_a_file_of_seven_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"1234567")
        assert "header should take 0 bytes of 7; fetch it again" in refused(tmp_path)

    def test_a_tensor_given_twice(self, tmp_path: Path) -> None:
        entry = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
        write_raw(tmp_path / "model.safetensors", b"{" + entry + b"," + entry + b"}", b"\0")
        assert "model.safetensors names 'a' more than once" in refused(tmp_path)

    @pytest.mark.parametrize("shape", [[-1], [True], [1.0], "3", None])
    def test_shapes_that_are_none(self, tmp_path: Path, shape: Any) -> None:
        write_raw(tmp_path / "model.safetensors", header_of(a=("U8", shape, [0, 1])), b"\0")
        assert "the header's entry for tensor 'a' is damaged" in refused(tmp_path)

    @settings(max_examples=200, deadline=None)
    @given(header=st.binary(max_size=60), size=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
    def test_garbage_is_refused_by_name(
        self, tmp_path_factory: pytest.TempPathFactory, header: bytes, size: int | None
    ) -> None:
        file = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
        write_raw(file, header, size=size)
        found: Any = None
        try:
            found = read_header(file)
        except FormatError as error:
            problem = str(error)
        if found is None:
            assert str(file) in problem
        else:
            assert set(found) == set(json.loads(header[:size])) - {"__metadata__"}


class TestReader:
    def test_tensors_shapes_and_dtypes(self, tmp_path: Path) -> None:
        base = tiny_base(tmp_path / "base", dtype=torch.bfloat16, max_shard_size="10KB")
        expected = load_file(tiny_base(tmp_path / "w", dtype=torch.bfloat16) / "model.safetensors")
        with CheckpointReader(base) as reader:
            assert reader.names() == tuple(sorted(expected))
            for name, tensor in expected.items():
                assert torch.equal(reader.tensor(name), tensor)
                assert reader.shape(name) == tuple(tensor.shape)
                assert reader.dtype(name) is torch.bfloat16

    def test_a_tensor_outlives_the_reader_and_changes_no_file(self, sharded: Path) -> None:
        before = (sharded / "one.safetensors").read_bytes()
        with CheckpointReader(sharded) as reader:
            tensor = reader.tensor("a")
        tensor += 5
        assert tensor.tolist() == [5, 6, 7]
        assert (sharded / "one.safetensors").read_bytes() == before
        assert reader.tensor("a").tolist() == [0, 1, 2]  # opened anew

    def test_an_unknown_name(self, sharded: Path) -> None:
        save_file({"layers.0.weight": torch.zeros(1)}, sharded / "model.safetensors")
        with (
            CheckpointReader(sharded) as reader,
            pytest.raises(FormatError, match=r"holds no tensor 'layer.0.weight'.*'layers.0.weigh"),
        ):
            reader.tensor("layer.0.weight")

    def test_offsets_beyond_the_file(self, tmp_path: Path) -> None:
        write_raw(tmp_path / "model.safetensors", header_of(a=("U8", [9], [0, 9])), b"\0")
        with (
            CheckpointReader(tmp_path) as reader,
            pytest.raises(FormatError, match=r"tensor 'a' cannot be read .*fetch the file again"),
        ):
            reader.tensor("a")

    def test_an_unknown_dtype(self, tmp_path: Path) -> None:
        write_raw(tmp_path / "model.safetensors", header_of(a=("C64", [1], [0, 8])), b"\0" * 8)
        with pytest.raises(FormatError, match="'a' has dtype C64, which is not read; known: BF16"):
            CheckpointReader(tmp_path).dtype("a")

    @pytest.mark.parametrize(
        ("elements", "expected"),
        [
            (0, []),
            (1, [0]),
            (4, [0, 1, 2, 3]),
            (5, [0, 1, 2, 4]),
            (100, [0, 33, 66, 99]),
        ],
    )
    def test_a_sample_is_even_and_has_both_ends(
        self, tmp_path: Path, elements: int, expected: list[int]
    ) -> None:
        save_file({"x": torch.arange(elements).reshape(1, -1)}, tmp_path / "model.safetensors")
        with CheckpointReader(tmp_path) as reader:
            assert reader.sample("x", 4).tolist() == expected

    def test_a_sample_reads_little(self, tmp_path: Path) -> None:
        size = 2**30
        header = header_of(x=("U8", [size], [0, size]))
        file = write_raw(tmp_path / "model.safetensors", header)
        with file.open("r+b") as handle:
            handle.truncate(8 + len(header) + size)  # a hole: it takes no disk
        status = Path("/proc/self/statm")
        if not status.exists():
            pytest.skip("resident memory is read from /proc")
        before = int(status.read_text().split()[1])
        with CheckpointReader(tmp_path) as reader:
            assert reader.sample("x", 64).tolist() == [0] * 64
            after = int(status.read_text().split()[1])
        assert (after - before) * 4096 < size // 8
