"""What was looked at, and the error that lists all that is not as it should be."""

from collections.abc import Callable

import attrs

from modalloy.errors import ModalloyError
from modalloy.quarantine import named


@attrs.frozen
class Check:
    """One thing that was looked at.

    Attributes:
        subject: What it belongs to, such as ``"encoder 'timm'"``.
        check: What was looked at, such as ``"build"``.
        ok: Whether it is as it should be; ``None`` where it was not looked into.
        detail: What was found.
    """

    subject: str
    check: str
    ok: bool | None
    detail: str


class CheckFailed(AssertionError):  # noqa: N818 - a failed assertion is no malfunction
    """Something is not as it should be; the message lists every failure.

    Attributes:
        checks: All that was looked at, failed or not.
    """

    def __init__(self, title: str, checks: tuple[Check, ...]) -> None:
        failed = [check for check in checks if check.ok is False]
        lines = [f"  {one.subject}, {one.check}: {one.detail}" for one in failed]
        head = f"{title}: {len(failed)} of {len(checks)} checks failed"
        super().__init__("\n".join([head, *lines]))
        self.checks = checks


def expect(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    """Fail the check that is running, unless a condition holds.

    Raises:
        AssertionError: It does not.
    """
    if not condition:
        raise AssertionError(message)


def attempt(subject: str, what: str, function: Callable[[], str]) -> Check:
    """Return the outcome of one check.

    Args:
        subject: What it belongs to.
        what: What is looked at.
        function: Looks at it, returns what it found, and raises where that is not right.
    """
    try:
        return Check(subject, what, ok=True, detail=function())
    except KeyboardInterrupt:
        raise
    # Not Exception alone: a factory that leaves by sys.exit(0) must not pass for a success.
    except BaseException as error:  # noqa: BLE001 - a plugin's code may raise anything; it is shown
        ours = isinstance(error, ModalloyError | AssertionError) and str(error).strip()
        return Check(subject, what, ok=False, detail=str(error) if ours else named(error))


class Checks:
    """Gathers outcomes, so that all failures are told at once.

    Attributes:
        title: What is checked, as the failure's message begins.
        found: The outcomes so far.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.found: list[Check] = []

    def run(self, subject: str, what: str, function: Callable[[], str]) -> bool:
        """Run one check, see :func:`attempt`, and return whether it passed."""
        check = attempt(subject, what, function)
        self.found.append(check)
        return bool(check.ok)

    def skip(self, subject: str, what: str, why: str) -> None:
        """Note that something was not looked into."""
        self.found.append(Check(subject, what, ok=None, detail=why))

    def finish(self) -> tuple[Check, ...]:
        """Return all outcomes.

        Raises:
            CheckFailed: One of them is a failure.
        """
        checks = tuple(self.found)
        if any(check.ok is False for check in checks):
            raise CheckFailed(self.title, checks)
        return checks
