"""What the tests of snippets do not run, and why; it is still checked that it could be run.

An entry that no page has any more fails.
"""

_DEMO = "installs; docs/quickstart.md runs `modalloy demo` itself"
_TUTORIAL = "docs/tutorials/write-a-modality.md"
_EXAMPLE = "examples/timeseries/README.md"
_GPUS = "needs four GPUs"
_LAUNCH = "accelerate launch --multi_gpu --num_processes 4"
_TRAIN = "modalloy train recipe/train.yml"
_PLACES = "--data recipe/data --work recipe/work"
_MINUTES = "minutes; test_new_plugin_way.py goes the whole way"
_MEASURE = "python recipe/measure.py my-model"

COMMANDS = {
    ("README.md", "make demo"): _DEMO,
    ("README.md", "make test"): "runs this",
    ("docs/install.md", "make demo"): _DEMO,
    ("docs/install.md", "make test"): "runs this",
    ("docs/install.md", "make docs"): "test_docs.py builds the site",
    (
        "docs/training.md",
        f"{_LAUNCH} -m modalloy train CONFIG OUTPUT --data DIR",
    ): _GPUS,
    (
        _TUTORIAL,
        f"{_TRAIN} src/modalloy_timeseries/parents/smollm2-decoupled {_PLACES}",
    ): _MINUTES,
    (_TUTORIAL, "python -m pytest mine/timeseries"): _MINUTES,
    (_TUTORIAL, _MEASURE): _MINUTES,
    (_EXAMPLE, f"{_TRAIN} my-parent {_PLACES}"): _MINUTES,
    (_EXAMPLE, _MEASURE): _MINUTES,
}
"""By page and command line, without its comment: the reason."""
