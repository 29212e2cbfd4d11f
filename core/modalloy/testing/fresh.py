"""Asking a new process, where nothing else was imported."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from modalloy.hookspecs import GROUP
from modalloy.testing.report import expect

_SHAPE = """
before = "torch" in sys.modules
module, _, name = sys.argv[1].partition(":")
shape = getattr(importlib.import_module(module), name)(given)
answer = [list(shape), "torch" in sys.modules and not before]
"""

_PLUGIN = """
from modalloy.registry import Registry
before = set(sys.modules)
module, _, name = sys.argv[1].partition(":")
plugin = importlib.import_module(module)
for part in filter(None, name.split(".")):
    plugin = getattr(plugin, part)
Registry().register(plugin, name=given)
answer = sorted({"torch", "transformers"} & set(sys.modules) - before)
"""


def shape_in_fresh_process(target: str, config: Mapping[str, Any]) -> tuple[list[int], bool]:
    """Return what a shape's target gives where nothing is imported, and if it imports torch."""
    (shape, heavy), _ = _ask(_SHAPE, target, dict(config))
    return shape, heavy


def check_declaring(plugin: str) -> str:
    """Check that loading a plugin costs those nothing who do not use it.

    Args:
        plugin: Name of its entry point, which is to be the only one of that name.

    Returns:
        What was found.

    Raises:
        AssertionError: It imports what is heavy, prints, or fails where nothing else is imported.
    """
    (point,) = importlib.metadata.entry_points(group=GROUP, name=plugin)
    heavy, printed = _ask(_PLUGIN, point.value, plugin)
    expect(
        not heavy,
        f"loading {point.value} imports {', '.join(heavy)}, for which every command waits; name "
        "what needs it as 'package.module:attribute', or import it in functions",
    )
    expect(not printed, f"loading {point.value} prints {printed[:40]!r}")
    return f"{point.value} imports nothing heavy and prints nothing"


def _ask(code: str, target: str, given: Any) -> tuple[Any, str]:
    """Return an answer as JSON, and what was printed before it."""
    start = "import importlib, json, sys\ngiven = json.load(sys.stdin)"
    code = f"{start}\n{code}\nprint()\nprint(json.dumps(answer))"
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-W", "ignore", "-c", code, target],
        input=json.dumps(given),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    expect(done.returncode == 0, f"{target} fails in a new process: {done.stderr[-500:]}")
    *printed, answer = done.stdout.splitlines()
    return json.loads(answer), "\n".join(printed).strip()
