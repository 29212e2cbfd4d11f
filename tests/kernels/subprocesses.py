"""Running checks in a process of their own, where Triton can be told how to run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def run_script(name: str, *words: str, folder: Path, **variables: str) -> str:
    """Run a script that stands beside this file; fail with what it printed if it fails."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), **variables}
    script = Path(__file__).with_name(name)
    done = subprocess.run(  # noqa: S603 -- our own script
        [sys.executable, str(script), *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout
