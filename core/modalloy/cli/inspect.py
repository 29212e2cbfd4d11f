"""``modalloy inspect``: what is in a parent, a composition or a merge, every hash checked."""

import math
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from modalloy.checkpoints.safe_files import check_file
from modalloy.checkpoints.safe_index import scan
from modalloy.cli.merge import show_merge
from modalloy.cli.output import print_json, print_line, print_table
from modalloy.cli.recorded import check_merge, check_search
from modalloy.errors import UnknownNameError
from modalloy.merging.output import RECORD, is_merge, read_record
from modalloy.parent import (
    ENCODER_FILE,
    MANIFEST,
    MODALITY_ADAPTER,
    MODALITY_WEIGHTS,
    TEXT_ADAPTER,
    TEXT_WEIGHTS,
    read_manifest,
    verify_files,
)

_MEBI = 1024**2


def command(
    what: Annotated[
        str,
        typer.Argument(
            help="Parent directory, installed parent, or composed or merged model directory."
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a parent, composition or merge holds: sizes, norms, coefficients, provenance."""
    path = Path(what)
    check_file(path, RECORD)
    if is_merge(path):
        data = read_record(path)
        check_merge(data, path / RECORD)
        show: Any = show_merge
    elif (path / RECORD).is_file():
        from modalloy.composition.directory import read_provenance

        data = read_provenance(path)
        check_search(data.get("search"), path / RECORD)
        show = _show_composition
    else:
        data = describe_parent(_parent_directory(what))
        show = _show_parent
    if as_json:
        print_json(data)
    else:
        show(data)


def _parent_directory(what: str) -> Path:
    path = Path(what)
    if (path / MANIFEST).is_file() or path.is_dir():
        return path
    from modalloy.registry import Registry

    registry = Registry.discover()
    try:
        return registry.parent(what).directory()
    except UnknownNameError as error:
        raise UnknownNameError(
            "parent", what, error.known, hint="It is not a directory either."
        ) from error


def describe_parent(directory: Path) -> dict[str, Any]:
    """Return what a parent directory holds, after checking every hash.

    Raises:
        FormatError: The directory is no parent, or a file is damaged.
        DeltaError: An adapter is not a plain low-rank delta.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    from modalloy.deltas.lowrank import read_adapter

    deltas = {}
    for folder in (TEXT_ADAPTER, MODALITY_ADAPTER):
        if (directory / folder).is_dir():
            delta = read_adapter(directory / folder)
            deltas[folder] = {
                "modules": len(delta.pairs),
                "ranks": sorted({pair.rank for pair in delta.pairs.values()}),
                "scales": sorted({pair.scale for pair in delta.pairs.values()}),
                "parameters": delta.parameters,
                "dtype": str(next(iter(delta.pairs.values())).A.dtype).removeprefix("torch."),
                "norm": delta.norm(),
            }
    for folder in (TEXT_WEIGHTS, MODALITY_WEIGHTS):
        if (directory / folder).is_dir():
            deltas[folder] = _describe_whole(directory / folder)
    sizes = {name: (directory / name).stat().st_size for name in sorted(manifest.files)}
    return {
        **attrs.asdict(manifest),
        "encoder_weights": "in the parent" if ENCODER_FILE in sizes else "from the encoder type",
        "deltas": deltas,
        "bytes": {**sizes, "total": sum(sizes.values())},
        "hashes": "all match",
    }


def _describe_whole(directory: Path) -> dict[str, Any]:
    """Return what tensors were tuned whole; how far, only the base can tell."""
    entries = scan(directory).values()
    return {
        "modules": len(entries),
        "ranks": [],
        "scales": [],
        "parameters": sum(math.prod(one.shape) for one in entries),
        "dtype": ", ".join(sorted({one.dtype for one in entries})),
        "norm": None,
    }


def _show_parent(data: dict[str, Any]) -> None:
    fingerprint = data["base"]["fingerprint"]
    rows = [
        ("parent", data["name"]),
        ("modality", data["modality"]),
        ("strategy", data["strategy"]),
        ("base", data["base"]["id"]),
        ("fingerprint", "/".join(value[:12] for value in fingerprint.values())),
        ("encoder", f"{data['encoder']['type']} {data['encoder']['config']}"),
        ("encoder weights", data["encoder_weights"]),
        ("connector", f"{data['connector']['type']} {data['connector']['config']}"),
        ("prefix, suffix", f"{data['prefix_tokens']}, {data['suffix_tokens']} tokens"),
        ("licence", data["licence"]),
        ("requires", data["requires"] or ""),
        ("hashes", f"{len(data['files'])} files, {data['hashes']}"),
    ]
    print_table("Parent", ("", ""), rows)
    print_table(
        "Deltas",
        ("delta", "modules", "rank", "scale", "parameters", "dtype", "norm"),
        [
            (
                name,
                one["modules"],
                ", ".join(map(str, one["ranks"])) or "whole",
                ", ".join(f"{value:g}" for value in one["scales"]),
                f"{one['parameters']:,}",
                one["dtype"],
                "" if one["norm"] is None else f"{one['norm']:.3f}",
            )
            for name, one in data["deltas"].items()
        ],
    )
    print_table(
        "Files", ("file", "MiB"), [(k, f"{v / _MEBI:.2f}") for k, v in data["bytes"].items()]
    )
    results = data["training"].get("results", {})
    for stage, result in results.items() if isinstance(results, dict) else [("results", results)]:
        print_line(f"{stage.replace('_', ' ')}: {_show_result(result)}")
    for name, value in data["scores"].items():
        print_line(f"{name}: {value}")


def _show_result(result: Any) -> str:
    """Return what a stage of training came to; whoever trained a parent wrote that freely."""
    if not isinstance(result, dict):
        return str(result)
    known = {name: value for name, value in result.items() if value is not None}
    return ", ".join(
        f"{name} {value:.3f}" if isinstance(value, int | float) else f"{name} {value}"
        for name, value in known.items()
    )


def _show_composition(data: dict[str, Any]) -> None:
    from modalloy.cli.compose import show_coefficients, show_merge
    from modalloy.cli.search import show_search

    base = data["base"]
    shown = "/".join(value[:12] for value in base["fingerprint"].values())
    print_line(f"{data['method']} over {base['id']} ({shown}), by modalloy {data['modalloy']}")
    print_table(
        "Parents",
        ("modality", "parent", "strategy", "licence", "plugin"),
        [
            (
                p["modality"],
                p["name"],
                p["strategy"],
                p["licence"],
                f"{p['plugin']['distribution']} {p['plugin']['version']}",
            )
            for p in data["parents"]
        ],
    )
    show_merge(data)
    show_coefficients(data["coefficients"])
    if data.get("search") is not None:
        show_search(data["search"])
        if data["search"]["coefficients"] != data["coefficients"]:
            print_line("the coefficients were set anew after the search")
    print_table(
        "Every tensor",
        ("from", "part", "tensors", "fate"),
        [(r["source"], r["part"], r["tensors"] or "", r["fate"]) for r in data["accounting"]],
    )
