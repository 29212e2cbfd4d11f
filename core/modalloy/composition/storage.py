"""Opening, saving and pushing a composition as transformers does, with what stands beside it."""

from contextvars import ContextVar
from pathlib import Path
from typing import Any

from modalloy.registry import Registry

_OPENING: ContextVar[Registry | None] = ContextVar(
    "registry of the model that is opened", default=None
)


def opening_registry() -> Registry | None:
    """Return what the caller of ``from_pretrained`` said is installed.

    Transformers takes keyword arguments for settings of a model, and would copy a registry.
    """
    return _OPENING.get()


class StoredModel:
    """What a composed model does with directories and the Hub, see the class that mixes this in."""

    @classmethod
    def from_pretrained(
        cls, source: str | Path | None, *args: Any, registry: Registry | None = None, **kwargs: Any
    ) -> Any:
        """Open a model as transformers does, with what stands beside its weights.

        Args:
            source: A model directory or Hub id; ``None`` with ``config`` and ``state_dict``.
            *args: As in transformers.
            registry: Supplies encoders and connectors; what is installed if left out.
            **kwargs: As in transformers.

        Returns:
            The model; with ``output_loading_info``, that too.

        Raises:
            FormatError: The directory is no composition.
            IntegrityError: An encoder in it is not the one that was composed.
            UnsafePathError: Its index, or a file of it, leads outside it.
        """
        from modalloy.composition.extras import check_weights, read_extras

        if source is not None:
            check_weights(str(source), kwargs)
        token = _OPENING.set(registry)
        parent: Any = super()
        try:
            opened = parent.from_pretrained(source, *args, **kwargs)
        finally:
            _OPENING.reset(token)
        if source is not None:
            read_extras(opened[0] if isinstance(opened, tuple) else opened, str(source), kwargs)
        return opened

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,  # noqa: FBT001, FBT002 - as in transformers
        **kwargs: Any,
    ) -> None:
        """Save as transformers does, with ``modalloy.json`` and the encoders' own files.

        Raises:
            FormatError: An encoder's file is not there any more.
        """
        from modalloy.composition.extras import write_extras

        model: Any = self
        parent: Any = super()
        parent.save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            write_extras(model, Path(save_directory))

    def _upload_modified_files(
        self,
        working_dir: str | Path,
        repo_id: str,
        files_timestamps: dict[str, float],
        **kwargs: Any,
    ) -> Any:
        """Upload what transformers saved, and what stands beside it.

        Transformers writes a model card just before this; the composition's own takes its place,
        with the tags that were asked for.
        """
        from modalloy.composition.extras import EXTRAS, card_tags, write_extras

        directory = Path(working_dir)
        model: Any = self
        write_extras(model, directory, tags=card_tags(directory))
        before = {name: time for name, time in files_timestamps.items() if name not in EXTRAS}
        parent: Any = super()
        return parent._upload_modified_files(str(directory), repo_id, before, **kwargs)  # noqa: SLF001
