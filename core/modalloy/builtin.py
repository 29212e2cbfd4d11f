"""What the core itself offers, through the same hooks as any plugin."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from modalloy.benchmark import Benchmark
from modalloy.hookspecs import hookimpl
from modalloy.modality import API_VERSION, Connector, MergeMethod


@hookimpl
def register_connectors(register: Callable[[Connector], None]) -> None:
    """Offer the connectors that need nothing but torch."""
    for name in ("linear", "mlp"):
        register(
            Connector(
                name=name,
                api_version=API_VERSION,
                build=f"modalloy.connectors.{name}:build",
            )
        )


@hookimpl
def register_merge_methods(register: Callable[[MergeMethod], None]) -> None:
    """Offer DAMC and NaiveMC, and methods that merge the deltas themselves."""
    for method in (*_COEFFICIENTS_ALONE, *_MERGING):
        register(method)


_COEFFICIENTS_ALONE = (
    MergeMethod(
        name="damc",
        api_version=API_VERSION,
        summary="Text tokens run on the merged text deltas, a modality's tokens on its own.",
        strategies=("decoupled", "naive"),
        decoupled=True,
        rules=("presence", "uniform"),
    ),
    MergeMethod(
        name="naive",
        api_version=API_VERSION,
        summary="Every token runs on one merged delta.",
        strategies=("naive",),
        decoupled=False,
        rules=("mean", "sum", "zero"),
    ),
)

_TIES: Mapping[str, float] = MappingProxyType({"density": 0.2, "scale": 1.0, "rank": 0})

_MERGING = (
    MergeMethod(
        name="ties",
        api_version=API_VERSION,
        summary="Every token runs on one delta, merged by TIES.",
        strategies=("naive",),
        decoupled=False,
        rules=("merged",),
        merge="modalloy.merging.functions:merge_ties",
        options=_TIES,
    ),
    MergeMethod(
        name="factor-mean",
        api_version=API_VERSION,
        summary="Every token runs on the product of the mean factors, as released for NaiveMC.",
        strategies=("naive",),
        decoupled=False,
        rules=("merged",),
        merge="modalloy.merging.functions:merge_factor_means",
    ),
    MergeMethod(
        name="damc-ties",
        api_version=API_VERSION,
        summary="DAMC whose text tokens run on a TIES merge where several modalities are present.",
        strategies=("decoupled", "naive"),
        decoupled=True,
        rules=("presence", "merged"),
        merge="modalloy.merging.functions:merge_ties",
        options=_TIES,
    ),
    MergeMethod(
        name="swudi",
        api_version=API_VERSION,
        summary="DAMC whose text tokens run on a SWUDI merge where several modalities are present.",
        strategies=("decoupled", "naive"),
        decoupled=True,
        rules=("presence", "merged"),
        merge="modalloy.merging.functions:merge_swudi",
        options={"share": 0.85, "time": 300.0, "scale": 1.0},
    ),
    MergeMethod(
        name="mmer",
        api_version=API_VERSION,
        summary="Text tokens run on a TIES merge, a modality's tokens on the part that serves it.",
        strategies=("naive",),
        decoupled=True,
        rules=("merged", "presence"),
        merge="modalloy.merging.functions:merge_mmer",
        options={"density": 0.2, "strictness": 1.0, "rank": 0},
    ),
)


@hookimpl
def register_benchmarks(register: Callable[[Benchmark], None]) -> None:
    """Offer the household sets, and readers of the files that ModelCompose's authors published."""
    for name, scoring, retention, summary in _BENCHMARKS:
        module = "household" if name.startswith("household") or retention else "modelcompose"
        register(
            Benchmark(
                name=name,
                api_version=API_VERSION,
                summary=summary,
                questions=f"modalloy.evaluation.benchmarks.{module}:{name.replace('-', '_')}",
                scoring=scoring,
                against_parents=retention,
            )
        )


_BENCHMARKS: tuple[tuple[str, tuple[str, ...], bool, str], ...] = (
    ("avqa", ("letter",), False, "AVQA over each subset of picture, video and sound."),
    ("household", ("options", "exact"), False, "Household questions on one modality each."),
    ("household-mcub", ("options",), False, "What household inputs of several kinds share."),
    ("mcub", ("letter",), False, "MCUB: what three or four inputs share; official files."),
    ("music-avqa", ("evalai",), False, "MUSIC-AVQA over each subset of picture, video and sound."),
    ("retention", ("options", "exact"), True, "What a composition keeps of each parent's skill."),
)
