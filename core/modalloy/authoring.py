"""Writing a plugin's distribution from the template that this package carries, and updating it.

copier renders the template and merges its later versions into what was written. For that it reads
templates from a git repository, so one is kept at :data:`REPOSITORY`, a tag for every version of
modalloy whose template was used on this machine. Its path is the same for everyone, so that a
plugin's answers file holds nothing of the machine that it was written on.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import yaml

import modalloy
from modalloy.copying import check_tools, run_copier, run_git
from modalloy.errors import FormatError, MissingComponentError, ModalloyError, SpecError, nearest

TEMPLATE = Path(__file__).parent / "template"
"""The template of this version."""

REPOSITORY = "~/.local/share/modalloy/plugin-template"
"""Where copier finds the template, as plugins' answers files name it."""

ANSWERS = ".copier-answers.yml"
"""File of a plugin that holds what was answered, and from which template it was written."""

_TRIES = 5


@attrs.frozen
class Written:
    """A distribution that was written or updated.

    Attributes:
        directory: Where it is.
        answers: What was answered, by question.
        template: Version of the template.
        earlier: Version that it was at before an update.
        conflicts: Files that carry marks of a conflict after an update, sorted.
    """

    directory: Path
    answers: dict[str, Any]
    template: str
    earlier: str | None = None
    conflicts: tuple[str, ...] = ()


def questions() -> list[str]:
    """Return the names of the template's questions."""
    asked = yaml.safe_load((TEMPLATE / "copier.yml").read_text(encoding="utf-8"))
    return [name for name, entry in asked.items() if name[0] != "_" and entry.get("when", True)]


def write_plugin(
    directory: Path, answers: Mapping[str, str], *, defaults: bool, taken: Iterable[str] = ()
) -> Written:
    """Write a new distribution.

    Args:
        directory: Where; must not exist, or be empty.
        answers: By question; what is not among them is asked for.
        defaults: Whether the defaults answer the rest, and nothing is asked.
        taken: Content types that are no answer.

    Raises:
        SpecError: An answer is to no question, or not valid.
        FormatError: ``directory`` is in use.
        MissingComponentError: copier or git is not installed.
        ModalloyError: copier fails, or nobody is there to answer.
    """
    unknown = sorted(set(answers).difference(questions()))
    if unknown:
        raise SpecError(
            f"the template asks no {unknown[0]!r} (questions: {', '.join(questions())})."
            f"{nearest(unknown[0], questions())}",
            subject=unknown[0],
        )
    if os.path.lexists(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise FormatError(f"{directory} exists; choose another place or remove it", path=directory)
    above = next(one for one in directory.absolute().parents if os.path.lexists(one))
    if not above.is_dir():
        raise FormatError(f"{above} is no directory; choose another place", path=above)
    check_tools()
    tag = keep_template()
    run_copier(
        "run_copy",
        REPOSITORY,
        str(directory),
        data={**answers, "taken": sorted(taken)},
        vcs_ref=tag,
        defaults=defaults,
        quiet=True,
    )
    return Written(directory, read_answers(directory), tag)


def update_plugin(directory: Path, *, defaults: bool) -> Written:
    """Bring a distribution to this version's template, its own changes kept.

    Args:
        directory: The distribution, in a git repository without uncommitted changes.
        defaults: Whether the defaults answer what the template asks anew; earlier answers stay.

    Raises:
        FormatError: ``directory`` was not written by :func:`write_plugin`, or has uncommitted
            changes.
        MissingComponentError: copier or git is not installed, or the template that the
            distribution was written from is not on this machine.
        ModalloyError: copier fails, or the template is older than the distribution's.
    """
    answers = read_answers(directory)
    earlier = str(answers.get("_commit"))
    check_tools()
    tag = keep_template()
    if earlier not in _tags():
        raise MissingComponentError(
            f"{directory} was written from the template of modalloy {earlier}, which is not on "
            "this machine, so what changed since is not known. In an environment of its own, pip "
            f"install 'modalloy[author]=={earlier.partition('.post')[0]}' and run `modalloy "
            f"new-plugin --update {directory}`, which keeps it; then come back to this one",
            component=f"template {earlier}",
        )
    _check_committed(directory)
    run_copier(
        "run_update",
        str(directory),
        vcs_ref=tag,
        defaults=defaults,
        skip_answered=True,
        overwrite=True,
        quiet=True,
    )
    marked = run_git("diff", "--name-only", "--diff-filter=U", "--relative", at=directory)
    return Written(
        directory,
        read_answers(directory),
        tag,
        earlier,
        tuple(sorted(marked.splitlines())),
    )


def read_answers(directory: Path) -> dict[str, Any]:
    """Return what a distribution was written from.

    Raises:
        FormatError: It has no answers file, or another template's.
    """
    file = directory / ANSWERS
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FormatError(
            f"{file} cannot be read: {error}; `modalloy new-plugin NAME` writes it with the rest "
            "of a plugin",
            path=file,
        ) from error
    source = data.get("_src_path") if isinstance(data, dict) else None
    if source != REPOSITORY:
        raise FormatError(
            f"{file}: _src_path is {source!r}, expected {REPOSITORY!r}; this was not written by "
            "`modalloy new-plugin`, so use copier itself",
            path=file,
        )
    answers: dict[str, Any] = data
    return answers


def keep_template() -> str:
    """Put this version's template into the repository, if it is not there, and return its tag.

    Where an installation from source has changed the template of a version that was kept before,
    the tag is ``VERSION.post1`` and so on.
    """
    repository = Path(REPOSITORY).expanduser()
    if not (repository / ".git").is_dir():
        _make_repository(repository)
    try:
        tree = _write_tree(repository)
    except ModalloyError as error:
        raise ModalloyError(f"{error}. If it is damaged, remove {repository}") from error
    own = modalloy.__version__
    for _ in range(_TRIES):
        kept = [tag for tag in _tags() if tag == own or tag.startswith(f"{own}.post")]
        if kept and run_git("rev-parse", f"{kept[-1]}^{{tree}}", at=repository) == tree:
            return kept[-1]
        tag = f"{own}.post{len(kept)}" if kept else own
        before = [word for one in _tags()[-1:] for word in ("-p", f"refs/tags/{one}")]
        text = f"Template of modalloy {tag}"
        commit = run_git("commit-tree", tree, *before, "-m", text, at=repository)
        try:
            # An all-zero old value: made only if it is not there.
            run_git("update-ref", f"refs/tags/{tag}", commit, "0" * 40, at=repository)
        except ModalloyError:
            continue  # another process was faster; see what it kept
        run_git("update-ref", "refs/heads/main", commit, at=repository)
    raise ModalloyError(f"{repository}: the template could not be kept; is it being written to?")


def _tags() -> list[str]:
    """Return the versions that are kept, the oldest first."""
    repository = Path(REPOSITORY).expanduser()
    return run_git("tag", "--list", "--sort=version:refname", at=repository).splitlines()


def _make_repository(repository: Path) -> None:
    try:
        repository.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=repository.parent) as place:
            made = Path(place) / "made"
            made.mkdir()
            run_git("init", "--quiet", "--initial-branch=main", at=made)
            try:
                made.rename(repository)
            except OSError:
                # Another process may have been faster.
                if not (repository / ".git").is_dir():
                    raise
    except OSError as error:
        raise FormatError(
            f"{repository} cannot be made: {error}; if something else is there, remove it",
            path=repository,
        ) from error


def _write_tree(repository: Path) -> str:
    """Write this version's template to the repository's objects and return its tree."""
    with tempfile.TemporaryDirectory() as place:
        # An index of its own, so that several processes may do this at once.
        index = {"GIT_INDEX_FILE": str(Path(place) / "index"), "GIT_DIR": str(repository / ".git")}
        settings = ("-c", "core.autocrlf=false", "-c", "core.fileMode=false")
        run_git(*settings, f"--work-tree={TEMPLATE}", "add", "--force", ".", at=TEMPLATE, **index)
        return run_git("write-tree", at=TEMPLATE, **index)


def _check_committed(directory: Path) -> None:
    try:
        changed = run_git("status", "--porcelain", "--", ".", at=directory)
    except ModalloyError as error:
        raise FormatError(
            f"{directory} is in no git repository, which tells your changes from the template's; "
            "git init, commit, and update again",
            path=directory,
        ) from error
    if changed:
        raise FormatError(
            f"{directory} has uncommitted changes, {changed.split()[-1]} among them; commit them "
            "first, so that an update can be taken back",
            path=directory,
        )
