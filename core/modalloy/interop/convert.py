"""Converting others' checkpoints and adapters to parents: which is what, and who converts it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs

from modalloy.base import Base, resolve_base
from modalloy.base_config import CONFIG_FILE, read_config
from modalloy.checkpoints.new_directory import check_free
from modalloy.checkpoints.safe_files import check_file
from modalloy.deltas.compress import Compression
from modalloy.errors import FormatError, SpecError
from modalloy.interop.modelcompose_settings import is_modelcompose
from modalloy.interop.towers import Sizes
from modalloy.interop.writing import Converted, check_apart
from modalloy.parent import MANIFEST
from modalloy.registry import Registry

ADAPTER_CONFIG = "adapter_config.json"


@attrs.frozen(kw_only=True)
class Request:
    """What was asked for; see :func:`convert`."""

    source: Path
    out: Path
    base: Base | None
    allow_pickle: bool
    components: Path | None
    modality: str | None
    progress: Callable[[str], None]
    registry: Registry
    limits: Compression | None
    sizes: Sizes | None


def convert(  # noqa: PLR0913 - one for each option of the command
    source: str | Path,
    out: str | Path,
    *,
    base: str | Path | Base | None = None,
    allow_pickle: bool = False,
    components: str | Path | None = None,
    modality: str | None = None,
    progress: Callable[[str], None] | None = None,
    registry: Registry | None = None,
    rank: int | None = None,
    energy: float | None = None,
    image_size: int | None = None,
    seconds: float | None = None,
) -> Converted:
    """Convert a checkpoint or an adapter to a parent, or to several.

    Args:
        source: Directory of a ModelCompose checkpoint, a PEFT adapter, or a fine-tuned model.
        out: Directory to write; must not exist, or be empty.
        base: The LLM that it was tuned from: ``"smollm2"``, a directory, or a Hub id.
        allow_pickle: Whether a pickle (``.bin``) may be read, in a process of its own.
        components: A parent directory that supplies encoder and connector to a source that has
            none.
        modality: Name of the modality, where the source leaves that open or has several.
        progress: Called with a line of text before something slow.
        registry: Supplies plugins; what is installed if left out.
        rank: Of a model that was tuned whole: compress its matrices to pairs of at most this rank.
        energy: Of the same: compress them to pairs that hold this share of the delta's squared
            norm. With neither, they stay whole.
        image_size: Side in pixels of the square that pictures become, for towers that take any.
        seconds: Length of the window that sounds are cut to, for the same.

    Returns:
        The parents that were written, and what became of every tensor of the source.

    Raises:
        FormatError: A file is missing, malformed or not to be read, or ``out`` exists.
        DeltaError: A tensor has no place.
        SpecError: The source cannot become a parent as it is, or an option is missing.
        BaseMismatchError: It was tuned from another base.
    """
    source, out = Path(source), Path(out)
    check_free(out)
    kind = detect(source)
    opened = base if isinstance(base, Base) or base is None else resolve_base(base, None, progress)
    supplier = None if components is None else Path(components)
    check_apart(out, source, supplier, None if opened is None else opened.path)
    request = Request(
        source=source,
        out=out,
        base=opened,
        allow_pickle=allow_pickle,
        components=supplier,
        modality=modality,
        progress=progress or (lambda _: None),
        registry=registry or Registry.discover(),
        limits=None if rank is None and energy is None else Compression(rank=rank, energy=energy),
        sizes=None
        if image_size is None and seconds is None
        else Sizes(image_size=image_size, seconds=seconds),
    )
    return CONVERTERS[kind](request)


def _from_modelcompose(request: Request) -> Converted:
    from modalloy.interop.modelcompose import convert_modelcompose

    _refuse(request, "a ModelCompose checkpoint", components=request.components, **_whole(request))
    return convert_modelcompose(
        request.source,
        request.out,
        base=request.base,
        registry=request.registry,
        allow_pickle=request.allow_pickle,
        modality=request.modality,
        progress=request.progress,
    )


def _from_peft(request: Request) -> Converted:
    from modalloy.interop.peft import convert_peft

    _refuse(request, "a PEFT adapter", modality=request.modality, **_whole(request))
    return convert_peft(
        request.source,
        request.out,
        base=request.base,
        components=request.components,
        allow_pickle=request.allow_pickle,
        progress=request.progress,
    )


def _from_finetuned(request: Request) -> Converted:
    from modalloy.interop.finetuned import convert_finetuned

    _refuse(request, "a fine-tuned model", components=request.components)
    return convert_finetuned(
        request.source,
        request.out,
        base=request.base,
        modality=request.modality,
        allow_pickle=request.allow_pickle,
        progress=request.progress,
        registry=request.registry,
        limits=request.limits,
        sizes=request.sizes,
    )


def _from_parent(request: Request) -> Converted:
    from modalloy.interop.recompressing import compress_parent

    given = {"components": request.components, "modality": request.modality}
    _refuse(request, "a parent", **given, **_given(request.sizes))
    return compress_parent(
        request.source,
        request.out,
        base=request.base,
        limits=request.limits,
        progress=request.progress,
    )


def _whole(request: Request) -> dict[str, Any]:
    """Return options that are for whole models alone."""
    limits = request.limits
    given = {} if limits is None else {"rank": limits.rank, "energy": limits.energy}
    return given | _given(request.sizes)


def _given(sizes: Sizes | None) -> dict[str, Any]:
    return {} if sizes is None else attrs.asdict(sizes)


CONVERTERS: Mapping[str, Callable[[Request], Converted]] = MappingProxyType(
    {
        "modelcompose": _from_modelcompose,
        "peft": _from_peft,
        "finetuned": _from_finetuned,
        "parent": _from_parent,
    }
)
"""By kind of source, see :func:`detect`. Each writes ``out`` whole or not at all."""


def _refuse(request: Request, what: str, **given: Any) -> None:
    """Refuse options that would have no effect.

    Raises:
        SpecError: One was given.
    """
    names = sorted(name for name, value in given.items() if value is not None)
    if names:
        raise SpecError(
            f"{request.source} is {what}, to which {names[0]!r} does not apply; leave it out",
            subject=names[0],
        )


def detect(source: Path) -> str:
    """Return the kind of a source, a key of :data:`CONVERTERS`.

    Raises:
        FormatError: It is no directory, or holds neither configuration, or one that is no file.
        UnsafePathError: A configuration is a link that leads elsewhere.
    """
    if not source.is_dir():
        raise FormatError(
            f"{source} is no directory; give the local copy of a checkpoint or an adapter, such as "
            "`hf download` makes",
            path=source,
        )
    for name in (MANIFEST, ADAPTER_CONFIG, CONFIG_FILE):
        check_file(source, name)
    if (source / MANIFEST).is_file():
        return "parent"
    if (source / ADAPTER_CONFIG).is_file():
        return "peft"
    if not (source / CONFIG_FILE).is_file():
        raise FormatError(
            f"{source} holds neither {CONFIG_FILE} (of a model or a ModelCompose checkpoint) nor "
            f"{ADAPTER_CONFIG} (of a PEFT adapter)",
            path=source,
        )
    return "modelcompose" if is_modelcompose(read_config(source)) else "finetuned"
