"""Entry of the command line: which commands there are, and how errors are shown.

A command's module is imported when that command runs, so that ``modalloy --help`` imports none.
Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

import codecs
import importlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, TextIO

import attrs
import typer
from typer.core import TyperGroup
from typer.main import get_command

import modalloy
from modalloy.cli.output import plugins_apart, print_error
from modalloy.errors import DuplicateNameError, ModalloyError, ModalloyWarning, nearest
from modalloy.quarantine import named


@attrs.frozen
class LazyCommand:
    """A command of the core that is imported when it runs.

    Attributes:
        target: ``"package.module:attribute"`` of a function that typer takes, or of a Typer.
        help: Line in the listing.
    """

    target: str
    help: str


COMMANDS = {
    "demo": LazyCommand("modalloy.cli.demo:command", "Compose what is installed and ask it."),
    "compose": LazyCommand("modalloy.cli.compose:command", "Make one model of the modalities."),
    "convert": LazyCommand("modalloy.cli.convert:command", "Make parents of others' checkpoints."),
    "merge": LazyCommand("modalloy.cli.merge:command", "Merge whole models by a recipe."),
    "ask": LazyCommand("modalloy.cli.ask:command", "Ask a composed model about inputs."),
    "export": LazyCommand("modalloy.cli.export:command", "Write a composition for other tools."),
    "inspect": LazyCommand("modalloy.cli.inspect:command", "Show a parent or a composition."),
    "evaluate": LazyCommand("modalloy.cli.evaluate:command", "Measure a model on a benchmark."),
    "report": LazyCommand("modalloy.cli.report:command", "Compare results of evaluate."),
    "search": LazyCommand("modalloy.cli.search:command", "Search a model's coefficients."),
    "train": LazyCommand("modalloy.cli.train:command", "Train a parent for a modality."),
    "plugins": LazyCommand("modalloy.cli.plugins:command", "List plugins, or check one."),
    "new-plugin": LazyCommand("modalloy.cli.new_plugin:command", "Write a plugin, or update one."),
}
"""The core's commands, in the order of the listing."""


class CommandGroup(TyperGroup):
    """The root command: the core's commands by name, then those of plugins."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._offered: dict[str, Any] | None = None

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Return the names of all commands."""
        return [*COMMANDS, *self._plugin_commands()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Import and return a command, or ``None`` where there is none of that name.

        Raises:
            DuplicateNameError: Two plugins offer it.
        """
        if cmd_name in COMMANDS:
            return _load_command(cmd_name, COMMANDS[cmd_name].target)
        command = self._plugin_commands().get(cmd_name)
        if isinstance(command, DuplicateNameError):
            raise command
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Refuse unknown commands with the nearest known one; exit code 2."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            hint = nearest(args[0], self.list_commands(ctx))
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the listing, importing none of the core's commands."""
        rows = [(name, command.help) for name, command in COMMANDS.items()]
        for name, command in self._plugin_commands().items():
            if isinstance(command, DuplicateNameError):
                rows.append((name, "(offered by two plugins)"))
            elif not command.hidden:
                rows.append((name, command.get_short_help_str(formatter.width)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _plugin_commands(self) -> dict[str, Any]:
        if self._offered is None:
            self._offered = plugin_commands()
        return self._offered


def plugin_commands() -> dict[str, Any]:
    """Return the commands that plugins add, sorted by name.

    Each plugin's ``register_commands`` gets a Typer of its own: one that fails, or that offers a
    name of the core's, adds nothing, with a warning. A name that two offer maps to the error.
    """
    from modalloy.registry import Registry

    with plugins_apart():
        registry = Registry.discover(strict=False)
        found: dict[str, Any] = {}
        owners: dict[str, Any] = {}
        for report, hook in registry.implementations("register_commands"):
            offered = _commands_of(hook, report.subject)
            for name, command in offered.items():
                if name in owners:
                    found[name] = DuplicateNameError(
                        f"command {name!r} is offered by {owners[name].subject} and by "
                        f"{report.subject}, and neither is preferred; disable one of them with "
                        "MODALLOY_DISABLE",
                        name=name,
                        owners=(owners[name].origin, report.origin),
                    )
                else:
                    owners[name], found[name] = report, command
    return dict(sorted(found.items()))


def _commands_of(hook: Callable[..., object], subject: str) -> dict[str, Any]:
    scratch = typer.Typer(add_completion=False, rich_markup_mode=None)
    # A callback makes it a group even where a single command is added.
    scratch.callback()(lambda: None)
    try:
        hook(cli=scratch)
        commands = dict(getattr(get_command(scratch), "commands", {}))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a plugin's code; told, left out
        problem = f"its register_commands failed: {named(error)}"
        commands = {}
    else:
        taken = sorted(set(commands).intersection(COMMANDS))
        problem = f"it offers {', '.join(taken)}, which belong to the core" if taken else ""
    if problem:
        warnings.warn(f"{subject} adds no commands: {problem}", ModalloyWarning, stacklevel=2)
        return {}
    return commands


def _load_command(name: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
        found.command(name)(function)
    command = get_command(found)
    command.name = name
    return command


INTERRUPTED = 130
"""Exit code after Ctrl-C, which typer leaves with silently."""
_ESCAPED = "modalloy-escaped"
_SHOWN = 200
"""Characters of a file's name."""

app = typer.Typer(
    cls=CommandGroup,
    name="modalloy",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer passes a flag's value so
    if wanted:
        sys.stdout.write(f"modalloy {modalloy.__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Forge one multimodal LLM out of many, without joint training."""


def run() -> None:
    """Run the command line and leave with its exit code."""
    plain = warnings.showwarning
    _write_anything()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, ModalloyWarning):
            print_error(str(message), "warning")
        else:
            plain(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            app()
        except ModalloyError as error:
            print_error(str(error))
            sys.exit(1)
        except BrokenPipeError:
            raise  # nobody reads what is written, so there is nobody to tell
        except (OSError, RecursionError) as error:
            # The last net: whoever knows more about a file says more, and has been here before.
            print_error(_unforeseen(error))
            sys.exit(1)
        except SystemExit as end:
            if end.code == INTERRUPTED:
                print_error(
                    "stopped by the keyboard; no half-written output was left", "interrupted"
                )
            raise


def _write_anything() -> None:
    """Have a character that the terminal's encoding lacks written as its escape, not refused."""
    codecs.register_error(_ESCAPED, _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Write characters as JSON does (``\u00e9``), so that ``--json`` stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _unforeseen(error: OSError | RecursionError) -> str:
    """Return what is said of an error that no command foresaw."""
    if isinstance(error, RecursionError):
        return f"what was given is nested too deeply to be read: {error}"
    if error.strerror is None or error.filename is None:
        return f"the system refused something: {error}"
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
    short = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}... ({len(name)} characters)"
    return f"{short}: {error.strerror}"
