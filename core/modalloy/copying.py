"""Running git and copier, their errors as ours, whatever repository they are called in."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modalloy.errors import MissingComponentError, ModalloyError, SpecError


def check_tools() -> None:
    """Check that copier and git are installed.

    Raises:
        MissingComponentError: One of them is not.
    """
    try:
        import copier  # noqa: F401
    except ImportError as error:
        raise MissingComponentError(
            "new-plugin needs copier; pip install 'modalloy[author]'", component="copier"
        ) from error
    if shutil.which("git") is None:
        raise MissingComponentError(
            "new-plugin needs git, by which templates are kept and updates merged; install it",
            component="git",
        )


def run_copier(function: str, *arguments: str, **options: Any) -> None:
    """Call a function of copier.

    Raises:
        SpecError: An answer is not valid.
        ModalloyError: It fails, or nobody is there to answer.
        KeyboardInterrupt: Whoever should answer left.
    """
    import copier
    from copier.errors import CopierAnswersInterrupt, CopierError, InteractiveSessionError

    # It forwards what git fails with as it is.
    from plumbum import CommandNotFound, ProcessExecutionError, local

    try:
        with local.env():  # which is restored
            for name in _OF_A_REPOSITORY:
                local.env.pop(name, "")
            getattr(copier, function)(*arguments, **options)
    except CopierAnswersInterrupt as error:
        raise KeyboardInterrupt from error  # which it is, but a CopierError as well
    except InteractiveSessionError as error:
        raise ModalloyError(
            "the questions need a terminal; --defaults asks nothing, and --answer QUESTION=ANSWER "
            "answers one"
        ) from error
    except (CopierError, ValueError) as error:
        raise SpecError(f"the plugin cannot be written: {error}", subject="template") from error
    except (CommandNotFound, ProcessExecutionError, OSError) as error:
        raise ModalloyError(f"the plugin cannot be written: {error}") from error


def run_git(*arguments: str, at: Path, **variables: str) -> str:
    """Run git and return what it prints.

    Raises:
        ModalloyError: It fails.
    """
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "modalloy"), ("EMAIL", "modalloy@localhost"))
    }
    # Not what a hook or a caller set for a repository of its own.
    plain = {k: v for k, v in os.environ.items() if k not in _OF_A_REPOSITORY}
    done = subprocess.run(  # noqa: S603 - git, with arguments of ours
        ["git", *arguments],  # noqa: S607 - the user's git
        cwd=at,
        env=plain | identity | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        command = next(word for word in arguments if word[0] != "-" and "=" not in word)
        raise ModalloyError(f"git {command} fails in {at}: {done.stderr.strip()}")
    return done.stdout.strip()


_OF_A_REPOSITORY: Sequence[str] = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
)
