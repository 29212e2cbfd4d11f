"""``modalloy train``: a parent from its configuration."""

from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from modalloy.cli.output import print_json, print_line
from modalloy.cli.progress import progress_bar


def command(
    config: Annotated[Path, typer.Argument(help="Training configuration (YAML).")],
    output: Annotated[
        Path, typer.Argument(help="Parent directory to write; must not exist, or be empty.")
    ],
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="Directory of the data files; the configuration's own by default."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Directory for checkpoints; OUTPUT.work by default.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from checkpoints, where there are any.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Seed in place of the configuration's.", min=0)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train a parent: its connector, then connector and low-rank deltas, over a frozen base.

    CONFIG is described in docs/training.md. For several GPUs run it under accelerate:
    accelerate launch -m modalloy train CONFIG OUTPUT.
    """
    from modalloy.training.config import read_config

    settings = read_config(config)
    if seed is not None:
        settings = attrs.evolve(settings, seed=seed)
    import torch

    from modalloy.training.records import is_main_process
    from modalloy.training.train import train

    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar(silent=not is_main_process()) as progress:
        manifest = train(
            settings,
            output,
            data=data or config.parent,
            work=work,
            resume=resume,
            progress=progress,
        )
    if not is_main_process():
        return
    results: dict[str, Any] = manifest.training["results"]
    if as_json:
        print_json({"parent": str(output), "seconds": manifest.training["seconds"], **results})
        return
    print_line(f"{output}: {manifest.strategy} parent {manifest.name} over {manifest.base.id}")
    for stage, result in results.items():
        shown = ", ".join(f"{k} {v:.3f}" for k, v in result.items() if v is not None)
        title = stage.replace("_", " ")
        print_line(f"  {title}: {shown if result['loss'] is not None else 'left out'}")
    print_line(f"  {manifest.training['seconds']:.0f} s in all")
