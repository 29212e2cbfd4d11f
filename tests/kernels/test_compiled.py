from pathlib import Path

import pytest

from kernels.subprocesses import needs_triton, run_script


@needs_triton
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_kernels_are_wide_and_neither_spill_nor_fuse(target: str, tmp_path: Path) -> None:
    run_script("compiled.py", target, folder=tmp_path, TRITON_INTERPRET="0")
