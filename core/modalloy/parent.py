"""A parent: one modality's tuned model over a base, as declared and as stored on disk.

A parent directory holds::

    parent.json                 the manifest, see :class:`ParentManifest`
    text_adapter/               PEFT format; a naive parent has only this one
    text_weights/               tensors of the base that were tuned whole, under their own names
    modality_adapter/           PEFT format; the modality stream of a decoupled parent
    modality_weights/           the same, for the modality stream
    connector.safetensors       connector.*, and prefix / suffix embeddings where used
    encoder.safetensors         only where the encoder type does not fetch its own weights

A stream that has neither an adapter nor weights of its own runs on the base as it is.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from modalloy.checkpoints.new_directory import write_whole
from modalloy.checkpoints.safe_files import check_file, read_object
from modalloy.checkpoints.safe_index import check_inside
from modalloy.errors import (
    DeltaError,
    FormatError,
    IntegrityError,
    MissingComponentError,
    SpecError,
    UnsafePathError,
)
from modalloy.modality import check_api_version, check_name
from modalloy.structured import structure

FORMAT_VERSION = 1
MANIFEST = "parent.json"
TEXT_ADAPTER = "text_adapter"
TEXT_WEIGHTS = "text_weights"
MODALITY_ADAPTER = "modality_adapter"
MODALITY_WEIGHTS = "modality_weights"
CONNECTOR_FILE = "connector.safetensors"
ENCODER_FILE = "encoder.safetensors"
_REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w,.-]+\])?( ?[<>=!~]=?=? ?[\w.*+-]+,?)*")
_READ_SUFFIXES = (".json", ".safetensors")
STRATEGIES = ("decoupled", "naive")

_check_strategy = attrs.validators.in_(STRATEGIES)
# A damaged or hostile number must not become an allocation.
_check_count = attrs.validators.and_(attrs.validators.ge(0), attrs.validators.le(1 << 16))


def check_requirement(_: object, attribute: "attrs.Attribute[Any]", value: str | None) -> None:
    """Attrs validator: a plain requirement such as ``modalloy-vision>=0.1``, or ``None``.

    It is shown to users as something to install, so nothing else may hide in it.
    """
    if value is not None and not _REQUIREMENT.fullmatch(value):
        raise ValueError(
            f"of {attribute.name!r} must be a requirement such as 'modalloy-vision>=0.1,<0.2', "
            f"found {value!r}"
        )


def check_line(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Attrs validator: text that can stand on one line of a card or a terminal.

    Raises:
        SpecError: It holds a line break, a control character, or another that is not shown.
    """
    if isinstance(value, str) and not value.isprintable():
        raise SpecError(
            f"of {attribute.name!r} must be one line of printable characters, found {value!r}; "
            "write it without the others",
            subject=attribute.name,
        )


@attrs.frozen(kw_only=True)
class Fingerprint:
    """What identifies a base, whatever its directory is called.

    Attributes:
        architecture: Class name, such as ``"LlamaForCausalLM"``.
        structure: SHA-256 over the sorted names and shapes of its tensors.
        content: SHA-256 over a sample of every tensor's values, rounded to bfloat16.
    """

    architecture: str
    structure: str
    content: str

    def __str__(self) -> str:
        return f"{self.architecture}/{self.structure[:12]}/{self.content[:12]}"


@attrs.frozen(kw_only=True)
class BaseReference:
    """The base a parent was tuned from.

    Attributes:
        id: Name or Hub id under which the base was opened; for messages, not for identity.
        fingerprint: What the base must match.
    """

    id: str
    fingerprint: Fingerprint


@attrs.frozen(kw_only=True)
class ComponentConfig:
    """An encoder or a connector of a parent.

    Attributes:
        type: Name of a registered :class:`~modalloy.modality.Encoder` or ``Connector``.
        config: Plain JSON data for its factory.
        shape: Of an encoder: [K, F], tokens of an input and features of a token, for a parent
            that outlives the plugin of its encoder type; ``None`` leaves it to the plugin.
    """

    type: str
    config: dict[str, Any] = attrs.Factory(dict)
    shape: list[int] | None = None


@attrs.frozen(kw_only=True)
class ParentManifest:
    """The content of ``parent.json``.

    Attributes:
        format_version: :data:`FORMAT_VERSION` that it was written by.
        name: The parent's name.
        modality: Name of its modality.
        base: The base it was tuned from.
        strategy: ``"decoupled"`` or ``"naive"``.
        encoder: Its encoder.
        connector: Its connector.
        prefix_tokens: Learned embeddings before the features of an input.
        suffix_tokens: Learned embeddings after them.
        files: SHA-256 of every other file of the directory, by relative name.
        licence: SPDX expression of the weights.
        requires: Requirement of the distribution that supplies modality and encoder.
        training: Record of how it was trained.
        scores: Measured scores, by name.
    """

    format_version: int
    name: str = attrs.field(validator=check_line)
    modality: str
    base: BaseReference
    strategy: str = attrs.field(validator=_check_strategy)
    encoder: ComponentConfig
    connector: ComponentConfig
    prefix_tokens: int = attrs.field(default=0, validator=_check_count)
    suffix_tokens: int = attrs.field(default=0, validator=_check_count)
    files: dict[str, str] = attrs.Factory(dict)
    licence: str = attrs.field(default="unknown", validator=check_line)
    requires: str | None = attrs.field(default=None, validator=check_requirement)
    training: dict[str, Any] = attrs.Factory(dict)
    scores: dict[str, Any] = attrs.Factory(dict)


@attrs.frozen(kw_only=True)
class Parent:
    """A parent that a plugin offers or a caller names.

    Attributes:
        name: Unique name, such as ``"vision-smollm2-decoupled"``.
        api_version: Plugin API version that the declaration was written for.
        modality: Name of its modality.
        base: Name or Hub id of its base; its fingerprint stands in the manifest.
        strategy: ``"decoupled"`` (one delta per stream) or ``"naive"`` (one for both).
        source: The parent directory, or a Hub repository id.
        revision: Commit or tag, for a Hub repository.
        licence: SPDX expression of the weights.
    """

    name: str = attrs.field(validator=check_name)
    api_version: int = attrs.field(validator=check_api_version)
    modality: str = attrs.field(validator=check_name)
    base: str
    strategy: str = attrs.field()
    source: Path | str
    revision: str | None = None
    licence: str = "unknown"

    @strategy.validator
    def _check_strategy(self, _: "attrs.Attribute[str]", value: str) -> None:
        if value not in STRATEGIES:
            raise SpecError(
                f"Parent {self.name!r}: strategy must be 'decoupled' or 'naive'; got {value!r}",
                subject=f"Parent {self.name!r}",
            )

    def directory(self) -> Path:
        """Return the local directory, fetching a Hub repository on first use.

        Raises:
            MissingComponentError: The directory does not exist or cannot be fetched.
        """
        if isinstance(self.source, Path):
            if not (self.source / MANIFEST).is_file():
                raise MissingComponentError(
                    f"parent {self.name!r}: {self.source} holds no {MANIFEST}; was its weight "
                    "data installed with the plugin?",
                    component=self.name,
                )
            return self.source
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        patterns = ["*.json", "*.safetensors"]
        try:
            return Path(
                snapshot_download(self.source, revision=self.revision, allow_patterns=patterns)
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise MissingComponentError(
                f"parent {self.name!r}: the Hub repository {self.source!r} cannot be fetched "
                f"({error})",
                component=self.name,
            ) from error


def read_manifest(directory: Path) -> ParentManifest:
    """Read and validate ``directory/parent.json``.

    Raises:
        FormatError: The file is missing, is not JSON, or does not hold what a manifest holds.
        UnsafePathError: It is a link that leads outside.
    """
    path = directory / MANIFEST
    check_file(directory, MANIFEST)
    try:
        data = read_object(path)
    except FileNotFoundError as error:
        raise FormatError(
            f"{directory} is not a parent directory: it has no {MANIFEST}", path=path
        ) from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}", path=path) from error
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{path}: format_version must be {FORMAT_VERSION}, found {version!r}; "
            "upgrade modalloy or write the parent anew",
            path=path,
        )
    return structure(data, ParentManifest, path)


def write_manifest(directory: Path, manifest: ParentManifest) -> ParentManifest:
    """Hash the files of ``directory``, write its ``parent.json``, and return what was written.

    Raises:
        FormatError: It cannot be written; a manifest that was there is as it was.
    """
    files = {
        file.relative_to(directory).as_posix(): sha256(file)
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    manifest = attrs.evolve(manifest, files=files)
    text = json.dumps(attrs.asdict(manifest), indent=2, sort_keys=False) + "\n"
    write_whole(directory / MANIFEST, text)
    return manifest


def check_once(weights: Path, paired: Iterable[str], whole: Iterable[str]) -> None:
    """Check that no tensor of a stream is changed both by a pair and whole.

    Args:
        weights: Directory of the whole tensors, for messages.
        paired: Names of the tensors that pairs change.
        whole: Names of those that were tuned whole.

    Raises:
        DeltaError: One is.
    """
    twice = sorted(set(paired) & set(whole))
    if twice:
        raise DeltaError(
            f"{weights.parent}: {twice[0]!r} is changed by an adapter and by {weights.name}; one "
            "of them must leave it alone",
            tensor=twice[0],
        )


def verify_files(directory: Path, manifest: ParentManifest) -> None:
    """Check that every file is there, is inside ``directory``, and has its recorded hash.

    Raises:
        IntegrityError: A file is missing or changed, or one that would be read is not recorded.
        UnsafePathError: A name or a symbolic link leads outside.
    """
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory).as_posix()
        if file.is_symlink() and file.is_dir():
            raise UnsafePathError(
                f"{file} is a symbolic link to a directory, whose files are not checked; put a "
                "copy in its place",
                path=file,
            )
        if file.suffix in _READ_SUFFIXES and name != MANIFEST and name not in manifest.files:
            raise IntegrityError(
                f"{file} is not recorded in {MANIFEST}; remove it or write the parent anew",
                path=file,
            )
    for name, expected in sorted(manifest.files.items()):
        file = check_inside(directory, name, directory / MANIFEST, suffix="")
        if not file.is_file():
            raise IntegrityError(
                f"{file} is missing, {MANIFEST} names it; fetch the parent again",
                path=file,
            )
        found = sha256(file)
        if found != expected:
            raise IntegrityError(
                f"{file}: SHA-256 is {found}, {MANIFEST} says {expected}; the file is damaged "
                "or was changed, fetch the parent again",
                path=file,
            )


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
