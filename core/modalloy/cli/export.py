"""``modalloy export``: a composition, written for other tools."""

from pathlib import Path
from typing import Annotated, Any

import typer

from modalloy.cli.compose import parse_coefficients
from modalloy.cli.output import hush_transformers, print_json, print_line, print_table
from modalloy.composition.coefficients import show_value
from modalloy.errors import SpecError


def command(
    model: Annotated[str, typer.Argument(help="A composition's directory or Hub id.")],
    out: Annotated[Path, typer.Argument(help="Directory to write; must be empty or not exist.")],
    *,
    to: Annotated[
        str,
        typer.Option(
            "--format",
            help="transformers: a plain language model. peft: an adapter per stream of the base.",
        ),
    ] = "transformers",
    text_stream: Annotated[
        bool,
        typer.Option(
            "--text-stream",
            help="With transformers: the text stream alone, of a composition whose other tokens "
            "run on weights of their own (DAMC).",
        ),
    ] = False,
    coefficients: Annotated[
        str | None,
        typer.Option(
            help="Of the text deltas: a rule such as uniform, or values: vision=0.5,audio=1; the "
            "composition's own for several kinds of inputs by default."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Write a composition as a plain language model, or as PEFT adapters over its base."""
    if coefficients is not None and (":" in coefficients or coefficients.endswith(".json")):
        raise SpecError(
            "--coefficients of an export are one value per modality, such as vision=0.5,audio=1: "
            "what is written cannot look at what is in the prompt",
            subject="coefficients",
        )
    spec = parse_coefficients(coefficients, "", {})
    from modalloy.interop.export import export

    hush_transformers()
    record = export(model, out, to=to, text_stream=text_stream, coefficients=spec)
    if as_json:
        print_json({"out": str(out), **record})
        return
    show_export(record)
    print_line(f"{out}: written; README.md says how to open it")


def show_export(record: dict[str, Any]) -> None:
    """Print the coefficients of an export, and what became of every tensor."""
    values = record["coefficients"].items()
    rows = [(name, show_value(value)) for name, value in values]
    print_table("Coefficients of the text deltas", ("of", "value"), rows)
    account = [(row["part"], row["tensors"] or "", row["fate"]) for row in record["accounting"]]
    print_table("Every tensor of the composition", ("part", "tensors", "fate"), account)
