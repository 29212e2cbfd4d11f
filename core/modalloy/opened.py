"""Models of transformers that an encoder's configuration names: found, checked, then opened.

The name comes from a stranger's ``parent.json`` or ``config.json``, and what lies where it leads
is a stranger's too. Nothing of it is read before it was checked, as a base is
(:mod:`modalloy.base`), and no key of it chooses which code runs.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import attrs

from modalloy.base_config import configuration_errors, is_quantised, read_config, sanitise
from modalloy.checkpoints.safe_files import check_files, read_object
from modalloy.checkpoints.safe_index import safe_index
from modalloy.errors import FormatError, MissingComponentError, ModalloyError, SpecError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Part = Literal["model", "image processor", "feature extractor"]
"""What of a model is opened; only the first needs its weights."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""What may name a Hub repository; anything else is a path, and is not sent anywhere."""

_CONFIGURATIONS = ("config.json", "preprocessor_config.json", "processor_config.json")
# As transformers names them; repositories hold variants of other precisions beside these.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_FOLDERS = "*/*"

# Where the settings of a processor may stand in processor_config.json, which goes first, and under
# which keys they name their class.
_NESTED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "image processor": ("image_processor",),
        "feature extractor": ("feature_extractor", "audio_processor"),
    }
)
_CLASS = ("image_processor_type", "feature_extractor_type")
_BACKEND = re.compile(r"(Fast|Pil)$")


@attrs.frozen
class NamedModel:
    """A model that a configuration names; its files were checked, none of its code is ever run.

    Attributes:
        subject: Who opens it, such as ``"encoder 'clip'"``, for messages.
        name: As the configuration says.
        path: Its directory.
        part: What of it is opened.
    """

    subject: str
    name: str
    path: Path
    part: Part

    def config(self, kind: type["PretrainedConfig"], types: Sequence[str]) -> "PretrainedConfig":
        """Return what ``config.json`` says, without what would choose the code that runs.

        Args:
            kind: Class of the configuration. Of a whole model's, the part for it is taken.
            types: Model types that will do.

        Raises:
            SpecError: The model is of another type, which transformers would fill up with random
                weights.
            FormatError: The file is missing or damaged, asks for a quantiser, or configures no
                such model.
            UnsafePathError: What stands beside it leads outside its directory.
        """
        settings = read_config(self.path)
        found = settings.get("model_type")
        if found not in types:
            raise SpecError(
                f"{self.subject}: {self.name!r} is a model of type {found!r}, expected "
                f"{' or '.join(map(repr, types))}; name a model of that type",
                subject=self.subject,
            )
        if is_quantised(settings):
            raise FormatError(
                f"{self.subject}: {self.path / 'config.json'} asks for a quantiser, which would be "
                "code of its choice; take the unquantised model that it was made from",
                path=self.path / "config.json",
            )
        with self.telling():
            return kind.from_dict(settings.get(kind.base_config_key, settings))

    def model(
        self, family: Any, config: "PretrainedConfig", keys: Mapping[str, str] | None = None
    ) -> Any:
        """Return the model in float32 on the CPU, as ``config`` says and with its own weights.

        Args:
            family: Class of the model.
            config: From :meth:`config`; ``config.json`` is not read again.
            keys: New names of tensors by the patterns of those that are stored.

        Raises:
            FormatError: The files do not hold what ``config`` describes.
            SpecError: Tensors are missing.
        """
        import torch

        with self.telling():
            model, report = family.from_pretrained(
                self.path,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                key_mapping=dict(keys) if keys else None,
                output_loading_info=True,
            )
        absent = sorted(report["missing_keys"])
        if absent:
            raise SpecError(
                f"{self.subject}: the weights of {self.name!r} lack {len(absent)} tensors, "
                f"{absent[0]!r} first, and random ones would stand in for them; fetch it again",
                subject=self.subject,
            )
        return model

    def processor(self, kind: Any) -> Any:
        """Return the model's own image processor or feature extractor.

        The file may name its class, and some classes of transformers read files and Hub
        repositories that their settings name. So the class is the encoder's own.

        Args:
            kind: Its class.

        Raises:
            FormatError: The file is missing or damaged, or names another class.
        """
        path, settings = self._processor_settings()
        expected = _class_name(kind.__name__)
        for key in _CLASS:
            found = settings.get(key, expected)
            if not isinstance(found, str) or _class_name(found) != expected:
                raise FormatError(
                    f"{self.subject}: {path} names {found!r} as the {self.part}, expected "
                    f"{_BACKEND.sub('', kind.__name__)!r}; restore the model's own file",
                    path=path,
                )
        with self.telling():
            return kind.from_dict(sanitise(settings))

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell in words what goes wrong meanwhile because of the model's configuration.

        Raises:
            FormatError: transformers cannot do with it.
        """
        from safetensors import SafetensorError

        expected: tuple[type[Exception], ...] = (MemoryError, SafetensorError)
        try:
            yield
        except ModalloyError:
            raise
        except expected + configuration_errors() as error:
            raise FormatError(
                f"{self.subject}: the {self.part} of {self.name!r} cannot be used as its "
                f"configuration says: {error!r}; a file of {self.path} is damaged, fetch it again",
                path=self.path,
            ) from error

    def _processor_settings(self) -> tuple[Path, dict[str, Any]]:
        """Return the settings of a processor and their file, as transformers looks for them."""
        own, whole = (self.path / name for name in _CONFIGURATIONS[1:])
        found = self._read(whole) or {}
        for key in _NESTED[self.part]:
            if key in found:
                nested = found[key]
                if not isinstance(nested, dict):
                    raise FormatError(
                        f"{whole}: {key} must be a JSON object, found {type(nested).__name__}",
                        path=whole,
                    )
                return whole, nested
        settings = self._read(own)
        if settings is None:
            raise MissingComponentError(
                f"{self.subject}: the {self.part} of {self.name!r} cannot be opened: there is no "
                f"{own}; fetch the model again",
                component=self.name,
            )
        return own, settings

    def _read(self, path: Path) -> dict[str, Any] | None:
        """Return the JSON object in a file, or ``None`` where there is no such file."""
        try:
            return read_object(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error}", path=path) from error


def find_model(
    subject: str, name: str, revision: str | None = None, part: Part = "model"
) -> NamedModel:
    """Find a model by directory or Hub id, and check its files before any is opened.

    Args:
        subject: Who opens it, such as ``"encoder 'clip'"``, for messages.
        name: Its directory; or a Hub id, ``"org/name"``, which is fetched unless such a directory
            exists: what configures it and, for ``"model"``, its safetensors.
        revision: Commit, tag or branch, for a Hub id.
        part: What of it is to be opened.

    Raises:
        MissingComponentError: It is neither, or cannot be fetched.
        FormatError: A file is damaged or no file at all, an adapter would be put on the model, or
            its weights are not in safetensors.
        UnsafePathError: A file, or a name in one, leads outside the directory.
    """
    where = repr(name) + (f" at revision {revision!r}" if revision else "")
    problem = f"{subject}: the {part} of {where} cannot be opened"
    if os.path.isdir(name):  # noqa: PTH112 - false, where pathlib raises for names that are none
        path = Path(name)
    elif HUB_ID.fullmatch(name):
        wanted = (*_CONFIGURATIONS, *(_WEIGHTS if part == "model" else ()))
        path = fetch(problem, name, revision, wanted)
    else:
        raise MissingComponentError(
            f"{problem}: there is no such directory; name a directory or a Hub id that holds "
            "config.json, preprocessor_config.json and safetensors weights",
            component=name,
        )
    check_files(path)
    if part == "model":
        safe_index(path)
    return NamedModel(subject, name, path, part)


def fetch_weights(problem: str, hub_id: str, revision: str | None) -> Path:
    """Fetch ``model.safetensors`` of a Hub repository, and return its path once it was checked.

    Args:
        problem: Begins the message where that fails.
        hub_id: ``"org/name"``.
        revision: Commit, tag or branch; ``None`` for the default branch.

    Raises:
        MissingComponentError: The repository cannot be reached, or has no such file.
        FormatError: The file is damaged.
        UnsafePathError: It is a link that leads elsewhere.
    """
    file = _WEIGHTS[0]
    directory = fetch(problem, hub_id, revision, [file])
    if not (directory / file).is_file():
        raise MissingComponentError(
            f"{problem}: the Hub repository {hub_id!r} holds no {file}, and pickles are not "
            "opened; choose another model",
            component=hub_id,
        )
    safe_index(directory)
    return directory / file


def fetch(
    problem: str,
    hub_id: str,
    revision: str | None,
    patterns: Iterable[str],
    ignored: Sequence[str] = (_FOLDERS,),
) -> Path:
    """Fetch files of a Hub repository, all of one commit, and return their directory.

    Args:
        problem: Begins the message where that fails.
        hub_id: ``"org/name"``.
        revision: Commit, tag or branch; ``None`` for the default branch.
        patterns: Which files.
        ignored: Which of them are left where they are; those in folders by default.

    Returns:
        The snapshot in the Hub cache; files that match no pattern may be in it from before, and
        what the repository has not is not.

    Raises:
        MissingComponentError: The repository cannot be reached, or there is none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        snapshot = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
        )
    except (HFValidationError, OSError) as error:
        raise MissingComponentError(
            f"{problem}: {hub_id!r} is neither a directory nor in the Hub cache, and cannot be "
            f"fetched from the Hub ({error}); go online, fix the id, or name the directory of a "
            "copy",
            component=hub_id,
        ) from error
    return Path(snapshot)


def _class_name(name: str) -> str:
    """Return a processor's class without its backend; image processors had another name once."""
    return _BACKEND.sub("", name).replace("FeatureExtractor", "ImageProcessor")
