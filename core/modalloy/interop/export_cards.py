"""What an exported composition says of itself."""

import json
from collections.abc import Mapping
from typing import Any

from modalloy.composition.coefficients import show_value


def _front(record: Mapping[str, Any], library: str) -> str:
    base = record["base"]["id"]
    lines = [f"library_name: {library}", "pipeline_tag: text-generation"]
    if "/" in base:
        lines += [f"base_model: {json.dumps(base)}", "base_model_relation: merge"]
    return "\n".join(["---", *lines, 'tags: ["merge", "modalloy"]', "---"])


def _parents(record: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {p['modality']} | {p['name']} | {p['strategy']} | {p['licence']} |"
        for p in record["parents"]
    )
    return f"| modality | parent | strategy | licence |\n|---|---|---|---|\n{rows}"


def _coefficients(record: Mapping[str, Any]) -> str:
    values = record["coefficients"]
    return ", ".join(f"{name} {show_value(value)}" for name, value in values.items())


def plain_card(record: Mapping[str, Any]) -> str:
    """Return the model card of an exported language model."""
    base, method = record["base"]["id"], record["method"]
    if record["exact"]:
        what = (
            "Every token of that composition runs on these weights,\nso on text this model gives "
            f"its answers. Inputs of other kinds ({', '.join(record['modalities'])}) need\nthe "
            "composition itself."
        )
    else:
        what = (
            "\n**This is the composition's text stream alone.**\nIn the composition, tokens of "
            f"each kind of input ({', '.join(record['modalities'])}) run on\nweights of their "
            "own, and how much of each parent the text tokens get may depend on what is in\nthe "
            "prompt. Here every token runs on one set of weights, at the coefficients below."
        )
    return f"""{_front(record, "transformers")}
# {base}, merged by {method}

A plain language model, exported by modalloy {record["modalloy"]} from a composition over `{base}`
by method `{method}` of the parents below. {what}

Coefficients of the text deltas: {_coefficients(record)}.

{_parents(record)}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this directory")
tokenizer = AutoTokenizer.from_pretrained("this directory")
```

`export.json` says what became of every tensor of the composition.
"""


def adapters_card(record: Mapping[str, Any]) -> str:
    """Return the description of exported adapters."""
    base = record["base"]
    mark = base["fingerprint"]
    adapters = record["adapters"]
    first = (
        f'model = PeftModel.from_pretrained(base, "{adapters[0]}", adapter_name="{adapters[0]}")'
    )
    more = "\n".join(f'model.load_adapter("{a}", adapter_name="{a}")' for a in adapters[1:])
    rows = "\n".join(f"| `{name}/` | {what} |" for name, what in record["contents"].items())
    return f"""{_front(record, "peft")}
# Adapters over {base["id"]}, of a composition by {record["method"]}

Exported by modalloy {record["modalloy"]}. The base is `{base["id"]}`, a {mark["architecture"]} of
fingerprint `{mark["structure"][:12]}/{mark["content"][:12]}`; over any other the adapters mean
nothing.

| folder | holds |
|---|---|
{rows}

Coefficients of the text deltas in `text/`: {_coefficients(record)}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("the base's directory or id")
{first}
{more}
```

What is exact, and what is not:

* With one adapter active, every token runs on that stream, as its tokens do in the composition.
* PEFT applies one adapter to a whole request, or to a row of a batch; the composition chooses for
  each token. A prompt that holds inputs and text at once is therefore only approximated by either
  adapter.
* The coefficients in `text/` are fixed. In the composition they may depend on what is in the
  prompt.
* Inputs other than text still need their encoder, and the `connector.safetensors` in the folder of
  their modality, which turns its features into embeddings of the base; `export.json` says which
  encoder and connector, and how many embeddings stand for one input.

{_parents(record)}
"""
