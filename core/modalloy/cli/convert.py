"""``modalloy convert``: others' checkpoints and adapters become parents."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from modalloy.cli.output import print_json, print_line, print_note, print_table

if TYPE_CHECKING:
    from modalloy.interop.writing import Converted


def command(  # noqa: PLR0913 - one for each option
    source: Annotated[
        Path,
        typer.Argument(help="ModelCompose checkpoint, PEFT adapter, fine-tuned model, or parent."),
    ],
    out: Annotated[
        Path, typer.Argument(help="Parent directory to write; must not exist, or be empty.")
    ],
    *,
    base: Annotated[
        str | None, typer.Option(help="The LLM it was tuned from: smollm2, a directory, or Hub id.")
    ] = None,
    components: Annotated[
        Path | None, typer.Option(help="Parent directory whose encoder and connector it takes.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="Its modality, or the one of several to convert.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Compress whole matrices to pairs of at most this rank.")
    ] = None,
    energy: Annotated[
        float | None, typer.Option(help="Compress them to pairs that hold this share, 0 to 1.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side of pictures, for towers that take any.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Length of sounds, for towers that take any.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin files, in a process of their own.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Make a parent, or one for each modality, of another project's checkpoint."""
    from modalloy.interop.convert import convert

    made = convert(
        source,
        out,
        base=base,
        allow_pickle=allow_pickle,
        components=components,
        modality=modality,
        rank=rank,
        energy=energy,
        image_size=image_size,
        seconds=seconds,
        progress=print_note,
    )
    following = next_command(made, base)
    if as_json:
        print_json(_record(source, made, following))
        return
    _show(source, out, made, following)


def next_command(made: "Converted", base: str | None) -> str:
    """Return the command line that composes what was converted.

    Args:
        made: What was written.
        base: As it was given; ``None`` takes the base's name from a parent.
    """
    words = ["modalloy", "compose", "MODEL"]
    words += ["--base", base or made.parents[0].manifest.base.id]
    for parent in made.parents:
        words += ["--modality", parent.manifest.modality, "--parent", str(parent.directory)]
    if made.method != "damc":
        words += ["--method", made.method]
    if made.coefficients_file is not None:
        words += ["--coefficients", str(made.coefficients_file)]
    elif made.coefficients is not None:
        values = ",".join(f"{name}={value!r}" for name, value in made.coefficients.items())
        words += ["--coefficients", values]
    return shlex.join(words)


def _record(source: Path, made: "Converted", following: str) -> dict[str, Any]:
    from modalloy.interop.accounting import to_json, totals

    return {
        "source": str(source),
        "kind": made.kind,
        "parents": [
            {
                "directory": str(parent.directory),
                "name": parent.manifest.name,
                "modality": parent.manifest.modality,
                "strategy": parent.manifest.strategy,
                "encoder": parent.manifest.encoder.type,
                "connector": parent.manifest.connector.type,
            }
            for parent in made.parents
        ],
        "tensors": dict(totals(made.accounting)),
        "accounting": to_json(made.accounting),
        "compression": [attrs.asdict(one) for one in made.matrices],
        "notes": list(made.notes),
        "method": made.method,
        "coefficients": None if made.coefficients is None else dict(made.coefficients),
        "next": following,
    }


def _show(source: Path, out: Path, made: "Converted", following: str) -> None:
    from modalloy.interop.accounting import group_rows, totals

    parents = [
        (
            parent.manifest.modality,
            parent.manifest.strategy,
            parent.manifest.encoder.type,
            parent.manifest.connector.type,
            parent.directory,
        )
        for parent in made.parents
    ]
    columns = ("modality", "strategy", "encoder", "connector", "directory")
    print_table(f"{made.kind} {source}", columns, parents)
    rows = [(row.tensor, row.tensors, row.fate, row.reason) for row in group_rows(made.accounting)]
    print_table("Every tensor", ("tensor", "tensors", "fate", "why"), rows)
    print_line(", ".join(f"{count} {fate}" for fate, count in totals(made.accounting).items()))
    if made.matrices:
        _show_compression(made)
    for note in made.notes:
        print_line(f"note: {note}")
    print_line(f"{out}: written")
    print_line(f"next: {following}")


def _show_compression(made: "Converted") -> None:
    from modalloy.interop.matrices import by_layer, total_error

    rows = []
    for layer, found in by_layer(made.matrices).items():
        worst = max(found, key=lambda one: one.error)
        ranks = sorted({one.rank for one in found})
        rows.append(
            (
                "-" if layer is None else layer,
                len(found),
                "-".join(map(str, dict.fromkeys((ranks[0], ranks[-1])))),
                f"{total_error(found):.2%}",
                f"{worst.error:.2%} {worst.tensor}",
            )
        )
    print_table("Compression", ("layer", "matrices", "rank", "relative error", "worst"), rows)
