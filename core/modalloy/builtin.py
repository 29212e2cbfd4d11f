"""What the core itself offers, through the same hooks as any plugin."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from modalloy.benchmark import Benchmark
from modalloy.hookspecs import hookimpl
from modalloy.modality import API_VERSION, Connector, MergeMethod
from modalloy.tensor_method import Parameter, TensorMethod


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
    register(
        Connector(
            name="qformer",
            api_version=API_VERSION,
            build="modalloy.connectors.qformer:build",
            output_tokens="modalloy.connectors.qformer_options:output_tokens",
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
def register_tensor_methods(register: Callable[[TensorMethod], None]) -> None:
    """Offer the ways to merge whole weights whose names recipes in circulation use."""
    for name, (over, parameters, random, most, summary) in _TENSOR_METHODS.items():
        register(
            TensorMethod(
                name=name,
                api_version=API_VERSION,
                summary=summary,
                over=over,
                rule=f"modalloy.merging.tensor_methods:{name}",
                parameters=parameters,
                random=random,
                most=most,
            )
        )


_WEIGHT = Parameter(name="weight", by_model=True)
_DENSITY = Parameter(name="density", default=1.0, by_model=True, low=0.0, high=1.0)
_GAMMA = Parameter(name="gamma", default=0.01, by_model=True, low=0.0, high=1.0)
_EPSILON = Parameter(name="epsilon", default=0.15, by_model=True, low=0.0, high=1.0)
_SCALE = Parameter(name="lambda", default=1.0, argument="scale")
# Of masks in memory, which there are none of: recipes in circulation say it.
_INT8_MASK = Parameter(name="int8_mask", default=False, argument="")


_WHOLE = Parameter(name="density", default=1.0, by_model=True, argument="", low=1.0, high=1.0)


def _deltas(*more: Parameter, normalize: bool, rescale: bool = False) -> tuple[Parameter, ...]:
    switches = (
        Parameter(name="normalize", default=normalize),
        Parameter(name="rescale", default=rescale, argument="", fixed=True),
    )
    return (_WEIGHT, *more, *switches, _SCALE, _INT8_MASK)


_TENSOR_METHODS: Mapping[str, tuple[str, tuple[Parameter, ...], bool, int, str]] = {
    "breadcrumbs": (
        "deltas",
        _deltas(_DENSITY, _GAMMA, normalize=False),
        False,
        0,
        "Sum of deltas without their smallest and very largest values.",
    ),
    "breadcrumbs_ties": (
        "deltas",
        _deltas(_DENSITY, _GAMMA, normalize=False),
        False,
        0,
        "The same, of values that agree in sign.",
    ),
    "dare_linear": (
        "deltas",
        _deltas(_DENSITY, normalize=False, rescale=True),
        True,
        0,
        "Sum of deltas thinned out at random and rescaled.",
    ),
    "dare_ties": (
        "deltas",
        _deltas(_DENSITY, normalize=False, rescale=True),
        True,
        0,
        "The same, of values that agree in sign.",
    ),
    "della": (
        "deltas",
        _deltas(_DENSITY, _EPSILON, normalize=True, rescale=True),
        True,
        0,
        "Deltas thinned out at random, small values more; mean of what agrees in sign.",
    ),
    "della_linear": (
        "deltas",
        _deltas(_DENSITY, _EPSILON, normalize=False, rescale=True),
        True,
        0,
        "Sum of deltas thinned out at random, small values more.",
    ),
    "linear": (
        "models",
        (_WEIGHT, Parameter(name="normalize", default=True)),
        False,
        0,
        "Weighted mean of models.",
    ),
    "passthrough": (
        "models",
        (Parameter(name="scale", default=1.0, by_model=True),),
        False,
        1,
        "One model as it is, scaled.",
    ),
    "slerp": ("pair", (Parameter(name="t"),), False, 1, "Along the arc from base to model."),
    "swudi": (
        "deltas",
        (
            Parameter(name="share", default=0.85, low=0.0, high=1.0),
            Parameter(name="time", default=300.0, low=0.0),
            _SCALE,
        ),
        False,
        0,
        "The delta with the least interference, in closed form; slow on large matrices.",
    ),
    "task_arithmetic": (
        "deltas",
        _deltas(_WHOLE, normalize=False),
        False,
        0,
        "Weighted sum of deltas.",
    ),
    "ties": (
        "deltas",
        _deltas(_DENSITY, normalize=True),
        False,
        0,
        "Mean of the deltas' largest values that agree in sign.",
    ),
}


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
