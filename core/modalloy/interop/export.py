"""Compositions written for others: as a plain language model, or as a base's PEFT adapters.

A composition whose tokens all run on one set of weights (NaiveMC) is a plain language model, with
encoders before it. One whose tokens run on the weights of their stream (DAMC) is not: it becomes
one adapter per stream, or, where that is asked for, its text stream alone.
"""

import json
from pathlib import Path
from typing import Any

import modalloy
from modalloy.checkpoints.new_directory import check_free, new_directory
from modalloy.composition.coefficients import Coefficients, Spec, Value
from modalloy.composition.compose import Composition, load
from modalloy.composition.streams import Routing
from modalloy.deltas.lowrank import LowRankDelta, write_adapter
from modalloy.errors import SpecError
from modalloy.interop.export_accounting import account
from modalloy.interop.export_adapters import modality_delta, text_delta, write_connector
from modalloy.interop.export_cards import adapters_card, plain_card
from modalloy.interop.export_plain import fold_model, strip_tokenizer, text_routing
from modalloy.interop.writing import check_apart
from modalloy.registry import Registry

FORMATS = ("transformers", "peft")
RECORD_FILE = "export.json"
CONNECTOR_FILE = "connector.safetensors"
TEXT = "text"
"""Folder of the text stream's adapter."""

_KEPT = (
    *("content_type", "encoder", "connector", "tokens", "prefix_tokens", "suffix_tokens"),
    "requires",
)
"""What the record says of a modality, of its entry in the configuration."""


def export(
    source: str | Path,
    out: str | Path,
    *,
    to: str = "transformers",
    text_stream: bool = False,
    coefficients: Spec | None = None,
    registry: Registry | None = None,
) -> dict[str, Any]:
    """Write a composition for other tools.

    Args:
        source: A composition's directory or Hub id; it is only read.
        out: Directory to write; must be empty or not exist.
        to: ``"transformers"``: a plain language model under the base's own architecture, text
            deltas folded into its weights. ``"peft"``: one adapter per stream over the base.
        text_stream: With ``"transformers"``, take the text stream of a composition whose other
            tokens run on weights of their own.
        coefficients: Of the text deltas, as in :func:`modalloy.compose`; the composition's own if
            left out. Where they depend on what is in the prompt, those of several kinds count.
        registry: Supplies plugins; what is installed if left out.

    Returns:
        What ``export.json`` holds: where the composition came from, the coefficients, and what
        became of every tensor.

    Raises:
        FormatError: ``source`` is no composition, or ``out`` is in the way or cannot be written.
        SpecError: The composition cannot be written so, or the coefficients are not its own.
        DeltaError: A stream changes what a PEFT adapter cannot hold.
    """
    if to not in FORMATS:
        raise SpecError(
            f"a composition is exported to {' or '.join(FORMATS)}; got {to!r}", subject="format"
        )
    place = Path(out)
    check_free(place)
    check_apart(place, Path(source) if Path(source).is_dir() else None)
    made = load(source, registry=registry)
    if coefficients is not None:
        made.model.coefficients = coefficients
    values = made.model.coefficients
    _check_possible(made, to, values, text_stream=text_stream)
    routing = text_routing(made.model, values.default)
    record = _record(made, source, to, values)
    record["accounting"], record["tensors"] = account(made.model, routing, to)
    with new_directory(place) as partial:
        write = _write_plain if to == "transformers" else _write_adapters
        card = write(made, routing, record, partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        text = json.dumps(record, indent=2) + "\n"
        (partial / RECORD_FILE).write_text(text, encoding="utf-8")
    return record


def _check_possible(made: Composition, to: str, values: Coefficients, *, text_stream: bool) -> None:
    """Check that the composition can be written in a format.

    Raises:
        SpecError: It cannot.
    """
    config = made.model.config
    if to == "peft":
        if text_stream:
            raise SpecError(
                "the text stream is one of the adapters anyway; --text-stream belongs to --format "
                "transformers",
                subject="text_stream",
            )
        if TEXT in config.modalities:
            raise SpecError(
                f"a modality is called {TEXT!r}, which is the folder of the text stream's adapter; "
                "such a composition cannot be exported as adapters",
                subject=TEXT,
            )
    elif config.decoupled and not text_stream:
        raise SpecError(
            f"a composition by {config.method!r} is no single set of weights: tokens of "
            f"{', '.join(config.modalities)} inputs run on deltas of their own, text tokens on "
            "another. --text-stream writes the text stream alone, at fixed coefficients; --format "
            "peft writes one adapter per stream",
            subject="format",
        )
    elif values.by_presence and not text_stream:
        raise SpecError(
            "the coefficients of this composition depend on what is in the prompt, so it is no "
            "single set of weights; give fixed ones under --coefficients, or --text-stream",
            subject="coefficients",
        )


def _record(made: Composition, source: str | Path, to: str, values: Coefficients) -> dict[str, Any]:
    """Return what is known before anything is written."""
    model, known = made.model, made.model.provenance
    return {
        "modalloy": modalloy.__version__,
        "source": Path(source).name if Path(source).is_dir() else str(source),
        "format": to,
        "exact": not model.config.decoupled and not values.by_presence,
        "base": known["base"],
        "method": model.config.method,
        "method_options": model.config.method_options,
        "coefficients": _by_group(values.groups, values.default),
        "parents": known["parents"],
        "modalities": {
            name: {key: entry[key] for key in _KEPT}
            for name, entry in model.config.modalities.items()
        },
    }


def _by_group(groups: tuple[str, ...], row: tuple[Value, ...]) -> dict[str, Any]:
    plain = (list(value) if isinstance(value, tuple) else value for value in row)
    return dict(zip(groups, plain, strict=True))


def _write_plain(
    made: Composition, routing: Routing, record: dict[str, Any], directory: Path
) -> str:
    """Write a plain language model with its tokenizer; return its card."""
    fold_model(made.model, routing).save_pretrained(directory)
    made.processor.tokenizer.save_pretrained(directory)
    names = [entry["placeholder"] for entry in made.model.config.modalities.values()]
    record["placeholders_dropped"] = strip_tokenizer(directory, names)
    return plain_card(record)


def _write_adapters(
    made: Composition, routing: Routing, record: dict[str, Any], directory: Path
) -> str:
    """Write an adapter per stream, and the connectors; return their description."""
    model, base = made.model, record["base"]["id"]
    streams = {TEXT: text_delta(model, routing)}
    if model.config.decoupled:
        streams |= {name: modality_delta(model, name) for name in model.config.modalities}
    held = {name: delta for name, delta in streams.items() if delta.pairs}
    for name, delta in held.items():
        write_adapter(directory / name, delta, base_id=base)
    for name in model.config.modalities:
        write_connector(model.connectors[name], directory / name / CONNECTOR_FILE)
    if not held:
        raise SpecError(
            "no stream of this composition differs from the base, so there is no adapter to write",
            subject="format",
        )
    record["adapters"] = list(held)
    record["contents"] = {name: _describe(name, held) for name in (TEXT, *model.config.modalities)}
    return adapters_card(record)


def _describe(name: str, held: dict[str, LowRankDelta]) -> str:
    """Say what a folder of the export holds."""
    if name == TEXT:
        if TEXT not in held:
            return "not written: at these coefficients text tokens run on the base itself"
        return "adapter of the text stream: the parents' text deltas, their ranks side by side"
    connector = f"`{CONNECTOR_FILE}`, from its encoder's features to embeddings"
    return (
        f"adapter that tokens of {name} inputs run on, and {connector}"
        if name in held
        else connector
    )
