"""What the plugin declares, asked of modalloy itself."""

import subprocess
import sys

from modalloy import Registry
from modalloy.modality import resolve


def test_modalloy_finds_it() -> None:
    registry = Registry.discover(strict=False)
    report = next(one for one in registry.reports if one.name == "timeseries")
    assert report.status == "loaded", str(report)
    assert report.distribution == "modalloy-timeseries"
    assert report.modalities == ("timeseries",)
    assert report.encoders == ("timeseries-patches",)
    assert report.connectors == ("timeseries-mlp",)
    modality = registry.modality("timeseries")
    assert (modality.content_type, modality.placeholder) == ("time_series", "<|time_series|>")


def test_all_that_it_names_exists() -> None:
    registry = Registry.discover(strict=False)
    encoder = registry.encoder("timeseries-patches")
    targets = [registry.modality("timeseries").read, encoder.build, encoder.preprocess]
    targets.append(registry.connector("timeseries-mlp").build)
    assert all(callable(resolve(target)) for target in [*targets, encoder.output_shape])


def test_declaring_and_shapes_import_nothing_heavy() -> None:
    code = """
import sys
from modalloy_timeseries import configuration, plugin
plugin.register_modalities(lambda value: None)
plugin.register_encoders(lambda value: None)
assert configuration.output_shape({}) == (4, 108)
heavy = {"torch", "numpy", "transformers", "pyarrow"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
