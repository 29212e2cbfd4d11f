"""What an exported composition says of itself."""

from collections.abc import Mapping
from typing import Any

from modalloy.cards import cell, code, front
from modalloy.composition.coefficients import show_value


def _parents(record: Mapping[str, Any]) -> str:
    rows = "\n".join(
        "| "
        + " | ".join(cell(p[key]) for key in ("modality", "name", "strategy", "licence"))
        + " |"
        for p in record["parents"]
    )
    return f"| modality | parent | strategy | licence |\n|---|---|---|---|\n{rows}"


def _coefficients(record: Mapping[str, Any]) -> str:
    values = record["coefficients"]
    return ", ".join(f"{cell(name)} {show_value(value)}" for name, value in values.items())


def plain_card(record: Mapping[str, Any]) -> str:
    """Return the model card of an exported language model."""
    base, method = record["base"]["id"], record["method"]
    names = ", ".join(map(cell, record["modalities"]))
    if record["exact"]:
        what = (
            "Every token of that composition runs on these weights,\nso on text this model gives "
            f"its answers. Inputs of other kinds ({names}) need\nthe composition itself."
        )
    else:
        what = (
            "\n**This is the composition's text stream alone.**\nIn the composition, tokens of "
            f"each kind of input ({names}) run on\nweights of their own, and how much of each "
            "parent the text tokens get may depend on what is in\nthe prompt. Here every token "
            "runs on one set of weights, at the coefficients below."
        )
    return f"""{front("transformers", [base], pipeline="text-generation")}
# {cell(base)}, merged by {cell(method)}

A plain language model, exported by modalloy {record["modalloy"]} from a composition over
{code(base)} by method {code(method)} of the parents below. {what}

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
    known = base["fingerprint"]
    mark = f"{known['structure'][:12]}/{known['content'][:12]}"
    adapters = record["adapters"]
    first = (
        f'model = PeftModel.from_pretrained(base, "{adapters[0]}", adapter_name="{adapters[0]}")'
    )
    more = "\n".join(f'model.load_adapter("{a}", adapter_name="{a}")' for a in adapters[1:])
    rows = "\n".join(f"| `{name}/` | {what} |" for name, what in record["contents"].items())
    return f"""{front("peft", [base["id"]], pipeline="text-generation")}
# Adapters over {cell(base["id"])}, of a composition by {cell(record["method"])}

Exported by modalloy {record["modalloy"]}. The base is {code(base["id"])}, a
{cell(known["architecture"])} of fingerprint {code(mark)}; over any other the adapters mean nothing.

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
