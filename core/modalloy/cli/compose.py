"""``modalloy compose``: installed modalities become one model directory."""

import os
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import SafetensorError

from modalloy.cli.output import (
    hush_transformers,
    print_json,
    print_line,
    print_note,
    print_table,
)
from modalloy.errors import FormatError, SpecError


def command(
    out: Annotated[Path, typer.Argument(help="Model directory to write; must not exist.")],
    *,
    base: Annotated[str, typer.Option(help="smollm2, a directory, or a Hub id.")] = "smollm2",
    modality: Annotated[
        list[str] | None, typer.Option(help="Take in this modality (repeatable); all by default.")
    ] = None,
    parent: Annotated[
        list[str] | None,
        typer.Option(help="Parent directory, or name of an installed parent (repeatable)."),
    ] = None,
    method: Annotated[str, typer.Option(help="Merge method: damc, naive, or a plugin's.")] = "damc",
    coefficients: Annotated[
        str | None,
        typer.Option(
            help="Rule (presence, uniform; with naive: mean, sum), or values: vision=0.5,audio=1; "
            "a set of modalities present before a colon: vision+audio:vision=0.5,audio=0.5;..."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Compose the installed modalities over one base and save the model."""
    if out.exists():
        raise FormatError(f"{out} exists; choose another place or remove it", path=out)
    spec = parse_coefficients(coefficients)
    from modalloy.composition.compose import compose

    hush_transformers()
    started = time.perf_counter()
    model, processor = compose(
        base,
        modalities=modality,
        parents=parent or (),
        method=method,
        coefficients=spec,
        dtype=dtype,
        progress=print_note,
    )
    save(model, processor, out)
    seconds = time.perf_counter() - started
    if as_json:
        print_json({"model": str(out), "seconds": round(seconds, 2), **model.provenance})
        return
    rows = [
        (p["modality"], p["name"], p["strategy"], p["licence"]) for p in model.provenance["parents"]
    ]
    print_table(f"{method} over {base}", ("modality", "parent", "strategy", "licence"), rows)
    show_coefficients(model.provenance["coefficients"])
    account = [
        (row["source"], row["part"], row["tensors"] or "", row["fate"])
        for row in model.provenance["accounting"]
    ]
    print_table("Every tensor", ("from", "part", "tensors", "fate"), account)
    print_line(f"{out}: composed and saved in {seconds:.1f} s")


def save(model: Any, processor: Any, out: Path) -> None:
    """Write a model directory beside its place and rename it when it is whole.

    Raises:
        FormatError: It cannot be written; nothing is left behind.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
            for file in partial.rglob("*.safetensors"):
                file.chmod(0o644)  # safetensors writes for its owner alone
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{out} cannot be written: {error}", path=out) from error


def show_coefficients(coefficients: dict[str, Any]) -> None:
    """Print the coefficients of a composition."""
    names = list(coefficients["default"])
    rows = [
        (key or "text alone", *(f"{row[name]:g}" for name in names))
        for key, row in coefficients["table"].items()
    ]
    other = "any prompt" if not rows else "others"
    rows.append((other, *(f"{coefficients['default'][name]:g}" for name in names)))
    title = f"Text-stream coefficients ({coefficients['rule']})"
    print_table(title, ("inputs in the prompt", *names), rows)


def parse_coefficients(text: str | None) -> Any:
    """Read ``--coefficients``: a rule, values by modality, or values by set.

    Raises:
        SpecError: The text is none of these.
    """
    if text is None or "=" not in text:
        return text
    groups = [group for group in text.split(";") if group.strip()]
    if len(groups) == 1 and ":" not in text:
        return _values(text)
    table = {}
    for group in groups:
        key, colon, values = group.partition(":")
        if not colon:
            raise SpecError(
                f"--coefficients: {group!r} names no set; write vision+audio:vision=0.5,audio=1",
                subject="coefficients",
            )
        table[frozenset(filter(None, key.strip().split("+")))] = _values(values)
    return table


def _values(text: str) -> dict[str, float]:
    values = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError as error:
            raise SpecError(
                f"--coefficients: {item.strip()!r} is not NAME=NUMBER", subject="coefficients"
            ) from error
    return values
