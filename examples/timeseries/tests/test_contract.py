"""What modalloy asks of every modality and every parent, checked by modalloy itself."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from modalloy import Registry
from modalloy.parent import ComponentConfig
from modalloy.testing import check_modality, check_parent, tiny_base, tiny_parent
from modalloy.training.config import read_config
from pyarrow import parquet

RECIPE = read_config(Path(__file__).parents[1] / "recipe" / "train.yml")


def parquet_file() -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table({"time": [0.0, 1.0, 3.5], "a": [1.0, None, 2.0]}), sink)
    return sink.getvalue()


SAMPLES = (
    b"time,temperature,vibration\n0,20.5,0.1\n1.5,21,\n2.75,-2.25e1,0.3\n4,20,0.2\n",
    b"2026-03-01;3\n2026-03-02;4\n2026-03-05;5\n",
    parquet_file(),
    np.sin(np.arange(50.0)),
)


def test_the_modality() -> None:
    configs = {RECIPE.encoder.type: RECIPE.encoder.config}
    checks = check_modality("timeseries", samples=SAMPLES, configs=configs)
    assert [check for check in checks if not check.ok] == []


def test_a_parent_of_random_weights(tmp_path: Path) -> None:
    encoder = ComponentConfig(type=RECIPE.encoder.type, config=RECIPE.encoder.config)
    base = tiny_base(tmp_path / "base")
    parent = tiny_parent(
        tmp_path / "parent", base, "timeseries", encoder=encoder, connector=RECIPE.connector
    )
    checks = check_parent(parent, base, samples=SAMPLES)
    assert [check for check in checks if not check.ok] == []


def test_the_packaged_parents() -> None:
    registry = Registry.discover(strict=False)
    own = [parent.name for parent in registry.parents() if parent.modality == "timeseries"]
    for name in own:
        checks = check_parent(name, registry=registry, samples=SAMPLES)
        # Its own base is not opened: what it goes with is checked over a tiny one.
        assert [check.check for check in checks if not check.ok] == ["fingerprint"]
