"""Time, memory and agreement of ``modalloy merge`` and mergekit on the same recipes.

Run ``python benchmarks/merge_vs_mergekit.py --work DIR [--json FILE]``; DIR needs 15 GB for the
1.1B models. mergekit is installed into an environment of its own in DIR and is run at arm's length:
in-process times are taken by a script in its environment, whole-process ones around its command.
Before each run all dirty pages are written back, and outputs are removed. ``--scaling`` measures
how our time and memory grow with parents and size.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from merge_agreement import disagreements
from merge_models import make_models

from modalloy.cli.output import print_note, print_table

PEER = "mergekit==0.1.5"
METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp", "breadcrumbs")
EXACT = ("linear", "task_arithmetic", "ties", "slerp", "breadcrumbs")
"""Methods whose every element must agree to one step of bfloat16."""

_OURS = """
import json, sys, time
from modalloy import merge
begin = time.perf_counter()
merge(sys.argv[1], sys.argv[2])
print(json.dumps(time.perf_counter() - begin))
"""
_THEIRS = """
import json, sys, time, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
begin = time.perf_counter()
run_merge(config, sys.argv[2], MergeOptions(quiet=True, random_seed=0))
print(json.dumps(time.perf_counter() - begin))
"""


def recipe(method: str, base: Path, parents: Sequence[Path]) -> dict[str, Any]:
    """Return a recipe that both tools read."""
    models: list[dict[str, Any]] = []
    if method == "linear":
        models.append({"model": str(base), "parameters": {"weight": 0.4}})
    for number, parent in enumerate(parents[:1] if method == "slerp" else parents):
        parameters: dict[str, float] = (
            {} if method == "slerp" else {"weight": round(0.3 + 0.1 * number, 1)}
        )
        if method in ("ties", "dare_ties", "breadcrumbs"):
            parameters["density"] = 0.2
        models.append({"model": str(parent), "parameters": parameters})
    found: dict[str, Any] = {"merge_method": method, "models": models}
    found |= {"dtype": "float32", "out_dtype": "bfloat16"}
    if method != "linear":
        found["base_model"] = str(base)
    if method == "slerp":
        found["parameters"] = {"t": 0.3}
    return found


def run(words: Sequence[str], out: Path) -> dict[str, float]:
    """Run a command that writes ``out``; return its seconds and its peak anonymous memory."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        peaks = [0]
        watch = threading.Thread(target=_watch, args=(process, peaks))
        watch.start()
        code = process.wait()
        seconds = time.perf_counter() - begin
        watch.join()
        output.seek(0)
        text = output.read()
    if code:
        raise SystemExit(f"{' '.join(words[:3])} failed:\n{text[-2000:]}")
    found = {"whole": seconds, "anonymous MB": peaks[0] / 1e3}
    last = text.strip().splitlines()[-1:] or [""]
    with contextlib.suppress(ValueError):  # a command line prints no time of its own
        found["inside"] = float(json.loads(last[0]))
    return found


def _watch(process: "subprocess.Popen[bytes]", peaks: list[int]) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        peaks[0] = max([peaks[0], *(int(x.split()[1]) for x in lines if x.startswith("RssAnon"))])
        time.sleep(0.005)


def floor(inputs: Sequence[Path], out: Path) -> float:
    """Return the seconds of reading all inputs once and writing one of them, on all cores."""
    from concurrent.futures import ThreadPoolExecutor

    out.unlink(missing_ok=True)
    os.sync()
    maps = [np.memmap(path, np.uint8, "r") for path in inputs]
    size = len(maps[0])
    handle = os.open(out, os.O_RDWR | os.O_CREAT)
    os.ftruncate(handle, size)
    step = 1 << 21

    def work(start: int) -> None:
        for data in maps:
            part = data[start : start + step]
            part[: len(part) // 8 * 8].view(np.uint64).max(initial=0)
        os.pwrite(handle, maps[0][start : start + step].data, start)

    begin = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(0, size, step)))
    seconds = time.perf_counter() - begin
    os.close(handle)
    out.unlink()
    return seconds


def peer_environment(work: Path) -> Path:
    """Return the Python of an environment with mergekit, made when first needed."""
    python = work / "mergekit" / "bin" / "python"
    if not (python.parent / "mergekit-yaml").is_file():
        print_note(f"installing {PEER} into {work / 'mergekit'}")
        subprocess.run([sys.executable, "-m", "venv", work / "mergekit"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", PEER], check=True)
    return python


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measure both tools, method by method."""
    base, parents = make_models(args.work, args.size, 3)
    python = peer_environment(args.work)
    ours, theirs = args.work / "ours", args.work / "theirs"
    command = [sys.executable, "-c", "from modalloy.cli.main import run; run()", "merge"]
    rows: dict[str, Any] = {}
    for method in args.method or METHODS:
        path = args.work / f"{method}.yml"
        path.write_text(yaml.safe_dump(recipe(method, base, parents)), encoding="utf-8")
        us, peer = [], []
        rounds = 1 if method in args.once else args.rounds
        for number in range(args.rounds):
            inside = run([sys.executable, "-c", _OURS, str(path), str(ours)], ours)
            whole = run([*command, str(path), str(ours)], ours)
            us.append(inside | {"whole": whole["whole"]})
            if number < rounds:
                inside = run([str(python), "-c", _THEIRS, str(path), str(theirs)], theirs)
                cli = [str(python.parent / "mergekit-yaml"), str(path), str(theirs), "--quiet"]
                whole = run(cli, theirs)
                peer.append(inside | {"whole": whole["whole"]})
            print_note(f"{method} {number + 1}: {us[-1]} {peer[-1]}")
        rows[method] = {
            "ours": _median(us),
            "mergekit": _median(peer),
            "rounds": [len(us), len(peer)],
        }
        if method in EXACT:
            rows[method]["agreement"] = disagreements(
                ours,
                theirs,
                base,
                parents,
                density=0.2 if method in ("ties", "breadcrumbs") else None,
                outliers=0.01 if method == "breadcrumbs" else None,
            )
    inputs = [directory / "model.safetensors" for directory in (base, *parents)]
    times = [floor(inputs, args.work / "floor.bin") for _ in range(args.rounds)]
    return {"size": args.size, "methods": rows, "read and write": statistics.median(times)}


def scale(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure how our time and memory grow."""
    rows = []
    for size, count in [("0.1B", 3), ("1.1B", 2), ("1.1B", 4), ("1.1B", 8), ("3B", 3)]:
        base, parents = make_models(args.work, size, count, kinds=1 if size == "3B" else 3)
        for method in ("linear", "ties"):
            path = args.work / "scaling.yml"
            path.write_text(yaml.safe_dump(recipe(method, base, parents)), encoding="utf-8")
            out = args.work / "ours"
            words = [sys.executable, "-c", _OURS, str(path), str(out)]
            found = _median([run(words, out) for _ in range(3)])
            rows.append({"size": size, "parents": count, "method": method} | found)
            print_note(str(rows[-1]))
    return rows


def _median(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="models, environment, outputs")
    parser.add_argument("--size", default="1.1B")
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", nargs="*", default=[], help="methods that mergekit runs once")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.scaling:
        grown = scale(args)
        print_table(
            "modalloy merge: growth",
            ("size", "parents", "method", "seconds inside", "anonymous MB"),
            [
                (
                    r["size"],
                    r["parents"],
                    r["method"],
                    f"{r['inside']:.2f}",
                    f"{r['anonymous MB']:.0f}",
                )
                for r in grown
            ],
        )
        found: Any = grown
    else:
        found = compare(args)
        print_table(
            f"{args.size}, base and 3 parents, bfloat16; seconds, mergekit / modalloy",
            (
                "method",
                "inside",
                "ratio",
                "whole",
                "ratio",
                "anonymous MB",
                "off by more than a step (tied, cancelled)",
            ),
            [_row(method, row) for method, row in found["methods"].items()],
        )
        print_table(
            "reading all and writing one", ("seconds",), [(f"{found['read and write']:.2f}",)]
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _row(method: str, row: dict[str, Any]) -> tuple[str, ...]:
    ours, theirs = row["ours"], row["mergekit"]
    off = row.get("agreement")
    return (
        method,
        f"{theirs['inside']:.2f} / {ours['inside']:.2f}",
        f"{theirs['inside'] / ours['inside']:.1f}",
        f"{theirs['whole']:.2f} / {ours['whole']:.2f}",
        f"{theirs['whole'] / ours['whole']:.1f}",
        f"{theirs['anonymous MB']:.0f} / {ours['anonymous MB']:.0f}",
        "random" if off is None else f"{off['off']} ({off['tied']}, {off['cancelled']})",
    )


if __name__ == "__main__":
    main()
