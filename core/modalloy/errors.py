"""What can go wrong, by name.

Every error is a :class:`ModalloyError` that also is the builtin a caller would expect, and
carries the culprit as attributes. A message says which file, plugin or tensor is wrong, what
was expected, what was found, and what to do.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path


class ModalloyError(Exception):
    """Base of all errors that modalloy raises on purpose."""


class ModalloyWarning(UserWarning):
    """Something was left out or done otherwise than might be expected, and work goes on."""


class SpecError(ModalloyError, ValueError):
    """A declared value (a modality, a parent, a recipe, a configuration) is not valid.

    Attributes:
        subject: What was declared, such as ``"modality 'vision'"``.
    """

    def __init__(self, message: str, *, subject: str | None = None) -> None:
        super().__init__(message)
        self.subject = subject


class PluginError(ModalloyError, RuntimeError):
    """A plugin that was asked for by name could not be used.

    Attributes:
        plugin: Name of its entry point.
        stage: Where it failed, such as ``"import"`` or ``"register"``.
    """

    def __init__(self, message: str, *, plugin: str, stage: str | None = None) -> None:
        super().__init__(message)
        self.plugin = plugin
        self.stage = stage


class DuplicateNameError(ModalloyError, ValueError):
    """Two plugins offer the same name; neither is preferred.

    Attributes:
        name: The name offered twice.
        owners: The two distributions that offer it.
    """

    def __init__(self, message: str, *, name: str, owners: tuple[str, str]) -> None:
        super().__init__(message)
        self.name = name
        self.owners = owners


class UnknownNameError(ModalloyError, LookupError):
    """A name that nothing installed answers to.

    Attributes:
        name: The unknown name.
        known: The names that would have been understood, sorted.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(
            f"unknown {kind} {name!r}; known: {', '.join(self.known) or 'none'}."
            f"{nearest(name, self.known)}{' ' + hint if hint else ''}"
        )


class FormatError(ModalloyError, ValueError):
    """A file or directory is not what its place says it should be.

    Attributes:
        path: The file or directory.
    """

    def __init__(self, message: str, *, path: Path | str) -> None:
        super().__init__(message)
        self.path = Path(path)


class IntegrityError(FormatError):
    """A file's content does not match its recorded hash."""


class UnsafePathError(FormatError):
    """A file names a path outside its own directory."""


class DeltaError(ModalloyError, ValueError):
    """A delta cannot be used as asked: unsupported kind, wrong shape, or no place in the base.

    Attributes:
        tensor: The tensor or module concerned, if one is.
    """

    def __init__(self, message: str, *, tensor: str | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor


class BaseMismatchError(ModalloyError, ValueError):
    """A parent was tuned from another base than the one it is put on.

    Attributes:
        parent: The parent's name.
        expected: Fingerprint of the base that the parent was tuned from.
        found: Fingerprint of the base at hand.
    """

    def __init__(self, message: str, *, parent: str, expected: str, found: str) -> None:
        super().__init__(message)
        self.parent = parent
        self.expected = expected
        self.found = found


class MissingComponentError(ModalloyError, LookupError):
    """An encoder, a connector, a base or a package is needed and not installed.

    Attributes:
        component: What is missing.
    """

    def __init__(self, message: str, *, component: str) -> None:
        super().__init__(message)
        self.component = component


class InputError(ModalloyError, ValueError):
    """A message, a media file or a tensor given by the caller cannot be used."""


class LimitError(InputError):
    """An input is larger than its modality allows.

    Attributes:
        limit: Name of the limit, such as ``"pixels"``.
        allowed: The most that is allowed.
        found: What the input has.
    """

    def __init__(self, message: str, *, limit: str, allowed: int, found: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.allowed = allowed
        self.found = found


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
