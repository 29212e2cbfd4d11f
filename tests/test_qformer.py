"""The Q-Former connector: against transformers' own, in a composition, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Blip2QFormerConfig, Blip2QFormerModel

import modalloy
from composing import HEAR, SEE, compose, embeds, logits
from modalloy import Registry
from modalloy.connectors.qformer import build
from modalloy.connectors.qformer_options import output_tokens
from modalloy.errors import FormatError, InputError, SpecError
from modalloy.parent import (
    CONNECTOR_FILE,
    MANIFEST,
    ComponentConfig,
    read_manifest,
    write_manifest,
)
from tiny import tiny_base
from toy import FEATURES, TOKENS, toy_parent, toy_registry

SMALL = {"queries": 4, "layers": 2, "width": 24, "heads": 3, "positions": 9}
F, D = 7, 10


def random_qformer(config: dict[str, int], features: int = F, hidden: int = D) -> Any:
    """A Q-Former of random weights, norms and biases included, so that none can be left out."""
    module = build(config, features, hidden)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in sorted(module.named_parameters()):
        with torch.no_grad():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def in_their_words(module: Any) -> dict[str, torch.Tensor]:
    """The weights between queries and output, under the names of BLIP-2."""
    state = module.state_dict()
    found = {f"layernorm.{kind}": state[f"norm.{kind}"] for kind in ("weight", "bias")}
    pairs = {"up": "intermediate_query.dense", "down": "output_query.dense"}
    pairs |= {"norm": "output_query.LayerNorm"}
    for ours, theirs in (("self_attention", "attention"), ("cross_attention", "crossattention")):
        inner = {name: f"attention.{name}" for name in ("query", "key", "value")}
        inner |= {"output": "output.dense", "norm": "output.LayerNorm"}
        pairs |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in inner.items()}
    for index in range(len(module.layers)):
        for ours, theirs in pairs.items():
            for kind in ("weight", "bias"):
                name = f"encoder.layer.{index}.{theirs}.{kind}"
                found[name] = state[f"layers.{index}.{ours}.{kind}"]
    return found


@pytest.mark.parametrize("tokens", [1, 5, 9])
def test_it_computes_what_transformers_does(tokens: int) -> None:
    module = random_qformer({**SMALL, "intermediate": 50})
    with torch.no_grad():
        module.query_tokens.mul_(1e-4)  # so that the norm's epsilon counts
    config = Blip2QFormerConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=50,
        encoder_hidden_size=F,
        cross_attention_frequency=1,
        attn_implementation="eager",
    )
    other: Any = Blip2QFormerModel(config).eval()
    other.load_state_dict(in_their_words(module), strict=True)
    features = torch.randn(3, tokens, F, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = module(features)
        hidden = other(
            query_embeds=module.query_tokens.expand(3, -1, -1),
            encoder_hidden_states=features + module.position_embedding.weight[:tokens],
        ).last_hidden_state
        expected = hidden @ module.output.weight.T + module.output.bias
    assert ours.shape == (3, 4, D)
    assert ours.std() > 0.1
    # float32 sums of up to 50 terms in another order, through six norms.
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6)


def test_its_tensors_have_the_names_and_shapes_that_stand_in_files() -> None:
    module = build({**SMALL, "layers": 1}, F, D)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {
        "query_tokens": (1, 4, 24),
        "position_embedding.weight": (9, F),
        "norm.weight": (24,),
        "norm.bias": (24,),
        "output.weight": (D, 24),
        "output.bias": (D,),
        "layers.0.up.weight": (96, 24),
        "layers.0.up.bias": (96,),
        "layers.0.down.weight": (24, 96),
        "layers.0.down.bias": (24,),
        "layers.0.norm.weight": (24,),
        "layers.0.norm.bias": (24,),
    }
    for kind, source in (("self_attention", 24), ("cross_attention", F)):
        for name, wide in (("query", 24), ("key", source), ("value", source), ("output", 24)):
            expected[f"layers.0.{kind}.{name}.weight"] = (24, wide)
            expected[f"layers.0.{kind}.{name}.bias"] = (24,)
        expected |= {f"layers.0.{kind}.norm.{part}": (24,) for part in ("weight", "bias")}
    assert shapes == expected


def test_the_released_size_by_default() -> None:
    with torch.device("meta"):
        state: Any = build({}, 768, 4096).state_dict()
    assert state["query_tokens"].shape == (1, 32, 768)
    assert state["position_embedding.weight"].shape == (1024, 768)
    assert state["layers.1.up.weight"].shape == (3072, 768)
    assert "layers.2.up.weight" not in state
    assert state["output.weight"].shape == (4096, 768)


def test_positions_tell_the_order_of_tokens() -> None:
    module = random_qformer(SMALL)
    features = torch.randn(1, 5, F, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        there, back = module(features), module(features.flip(1))
        assert not torch.allclose(there, back, atol=1e-3)
        module.position_embedding.weight.zero_()
        there, back = module(features), module(features.flip(1))
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-5)


def test_every_weight_is_trained() -> None:
    module = build({**SMALL, "positions": 5}, F, D)
    features = torch.randn(2, 5, F, generator=torch.Generator().manual_seed(3))
    module(features).square().sum().backward()
    # A key's bias moves all scores of a query alike, which a softmax does not see.
    still = [n for n, p in module.named_parameters() if not p.grad.any() and "key.bias" not in n]
    assert still == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"querys": 3}, r"no option 'querys' .*Did you mean 'queries'"),
        ({"queries": "3"}, "option 'queries' must be int, found '3'"),
        ({"layers": 2.0}, r"option 'layers' must be int, found 2\.0"),
        ({"queries": 0}, "queries must be from 1 to 4096, found 0"),
        ({"layers": 10**9}, "layers must be from 1 to 48, found 1000000000"),
        ({"width": -768}, "width must be from 1 to 8192, found -768"),
        ({"heads": 0}, "heads must be from 1 to 256, found 0"),
        ({"positions": 2**40}, "positions must be from 1 to 65536"),
        ({"intermediate": -1}, "intermediate must be from 1 to 32768, found -1"),
        ({"width": 100, "heads": 12}, "width 100 does not divide into 12 heads"),
    ],
)
def test_options_that_cannot_be(config: dict[str, Any], message: str) -> None:
    for call in (lambda: build(config, F, D), lambda: output_tokens(config, 3)):
        with pytest.raises(SpecError, match=message):
            call()


def test_more_tokens_than_positions() -> None:
    with pytest.raises(InputError, match="has 9 positions, it was given 10 tokens an input"):
        build(SMALL, F, D)(torch.zeros(1, 10, F))
    with pytest.raises(SpecError, match=r"9 positions, its encoder gives 10 tokens .*'positions'"):
        output_tokens(SMALL, 10)


def test_it_is_registered_and_counts_its_tokens_without_torch() -> None:
    kind = Registry().connector("qformer")
    assert modalloy.modality.resolve(kind.build) is build
    assert kind.output_tokens == "modalloy.connectors.qformer_options:output_tokens"
    assert [output_tokens(SMALL, tokens) for tokens in (1, 9)] == [4, 4]
    assert output_tokens({}, 1024) == 32
    code = (
        "import sys; from modalloy import Registry; from modalloy.modality import resolve; "
        "print(resolve(Registry().connector('qformer').output_tokens)({'queries': 5}, 7), "
        "'torch' in sys.modules)"
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["5", "False"]


OPTIONS = {"queries": 2, "layers": 1, "width": 12, "heads": 2, "positions": TOKENS}


def qformer_parent(directory: Path, base: Path, options: dict[str, int] = OPTIONS) -> Path:
    """A toy parent whose connector is a Q-Former, with a learned prefix."""
    toy_parent(directory, base, "sight", seed=4, prefix=1)
    file = directory / CONNECTOR_FILE
    prefix = load_file(file)["prefix"]
    state = random_qformer(options, FEATURES, prefix.shape[1]).state_dict()
    tensors = {f"projection.{name}": tensor for name, tensor in state.items()}
    save_file({**tensors, "prefix": prefix}, file)
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["connector"] = {"type": "qformer", "config": options, "shape": None}
    (directory / MANIFEST).write_text(json.dumps(manifest))
    write_manifest(directory, read_manifest(directory))
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("qformer") / "base", seed=3)


def test_a_composition_with_one_saves_and_loads(base: Path, tmp_path: Path) -> None:
    parents = [
        qformer_parent(tmp_path / "p1", base),
        toy_parent(tmp_path / "p2", base, "sound", seed=2),
    ]
    model, processor = compose(base, parents)
    entry = model.config.modalities["sight"]
    assert entry["tokens"] == 1 + OPTIONS["queries"]
    assert model.config.modalities["sound"]["tokens"] == TOKENS
    batch = processor.apply_chat_template(SEE, add_generation_prompt=True)
    assert int((batch["mm_token_type_ids"] == entry["token_type_id"]).sum()) == entry["tokens"]

    # What stands in the placeholders' rows is what the parent's own connector makes.
    written = load_file(tmp_path / "p1" / CONNECTOR_FILE)
    alone = build(OPTIONS, FEATURES, model.config.get_text_config().hidden_size)
    names = {n.removeprefix("projection."): t for n, t in written.items() if n != "prefix"}
    alone.load_state_dict(names, strict=True)
    with torch.no_grad():
        features = model.encoders.run("sight", {"values": batch["sight_values"]}, model.device)
        expected = torch.cat([written["prefix"], alone(features)[0]])
    rows = embeds(model, batch)[batch["mm_token_type_ids"] == entry["token_type_id"]]
    torch.testing.assert_close(rows, expected)

    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, reader = modalloy.load(tmp_path / "out", registry=toy_registry())
    for prompt in (SEE, HEAR):
        batch = processor.apply_chat_template(prompt, add_generation_prompt=True)
        same = reader.apply_chat_template(prompt, add_generation_prompt=True)
        assert torch.equal(batch["input_ids"], same["input_ids"])
        assert torch.equal(logits(model, batch), logits(again, same))
        settings = {"max_new_tokens": 6, "do_sample": False}
        assert torch.equal(model.generate(**batch, **settings), again.generate(**same, **settings))


def test_a_parent_whose_connector_does_not_fit(base: Path, tmp_path: Path) -> None:
    parent = qformer_parent(tmp_path / "p", base)
    for options, message in (
        ({**OPTIONS, "positions": TOKENS - 1}, "has 2 positions, its encoder gives 3 tokens"),
        ({**OPTIONS, "depth": 2}, "has no option 'depth'"),
    ):
        manifest = read_manifest(parent)
        write_manifest(parent, modified(manifest, options))
        with pytest.raises(SpecError, match=message):
            compose(base, [parent], registry=toy_registry("sight"))
    write_manifest(parent, modified(read_manifest(parent), {**OPTIONS, "queries": 3}))
    with pytest.raises(FormatError, match=r"does not hold the connector (?s:.*)query_tokens"):
        compose(base, [parent], registry=toy_registry("sight"))


def modified(manifest: Any, options: dict[str, int]) -> Any:
    return attrs.evolve(manifest, connector=ComponentConfig(type="qformer", config=options))
