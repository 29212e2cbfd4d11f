"""Writes what the pages of docs/ take from the code: run it after a change of the latter.

A page says where: ``<!-- from the code: commands -->`` begins what is written here, and
``<!-- end -->`` ends it. ``--check`` writes nothing and fails where a page is out of date.
"""

import ast
import difflib
import importlib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import typer
from docstrings import Docstring, cell, read, table

import modalloy
from modalloy import hookspecs
from modalloy.cli.main import COMMANDS

DOCS = Path(__file__).parents[1]
_BLOCK = re.compile(r"(<!-- from the code: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_WORDS = {str: "TEXT", Path: "PATH", int: "INTEGER", float: "NUMBER"}


def filled(text: str) -> str:
    """Return a page with what it takes from the code written anew."""
    return _BLOCK.sub(lambda m: f"{m[1]}\n{_content(m[2])}\n\n{m[3]}", text)


def _content(what: str) -> str:
    name, _, argument = what.partition(" ")
    writers: dict[str, Callable[[str], str]] = {
        "commands": commands,
        "public": public,
        "named": named,
        "hooks": hooks,
        "class": fields,
    }
    return writers[name](argument)


def load(name: str) -> Any:
    """Return what ``package.module:attribute`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def commands(_: str = "") -> str:
    """Every command of the core with its arguments and options."""
    parts = []
    for name, lazy in COMMANDS.items():
        found = load(lazy.target)
        if not isinstance(found, typer.Typer):
            parts.append(_command(name, found))
            continue
        if found.registered_callback is not None:
            parts.append(_command(name, found.registered_callback.callback))
        for one in found.registered_commands:
            group = found.registered_callback is not None
            parts.append(_command(f"{name} {one.name}" if group else name, one.callback))
    return "\n\n".join(parts)


def _command(name: str, function: Callable[..., Any] | None) -> str:
    doc = read(function)
    arguments, options = [], []
    usage = ["modalloy", name]
    for parameter, kind, info in _parameters(function):
        required = parameter.default in (parameter.empty, ...)
        unset = parameter.default is None or parameter.default is False or required
        shown = "" if unset else f"`{parameter.default}`"
        if isinstance(info, typer.models.ArgumentInfo):
            word = (info.metavar or parameter.name).strip("[]").upper()
            usage.append(word if required else f"[{word}]")
            arguments.append((f"`{word}`", info.help or ""))
            continue
        option = f"--{parameter.name.replace('_', '-')}"
        if isinstance(info.default, str):  # where typer keeps the first name of an annotation
            option = info.default
        value = "" if kind is bool else f" {_word(kind)}"
        if required:
            usage.append(f"{option}{value}")
        options.append((f"`{option}{value}`", "required" if required else shown, info.help or ""))
    usage.append("[OPTIONS]")
    parts = [f"## modalloy {name}", doc.text, f"```text\n{' '.join(usage)}\n```"]
    if arguments:
        parts.append(table(("argument", "what"), arguments))
    if options:
        parts.append(table(("option", "default", "what"), options))
    return "\n\n".join(parts)


def _parameters(function: Any) -> Iterator[tuple[inspect.Parameter, Any, Any]]:
    hints = typing.get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if hint is not typer.Context:
            yield parameter, typing.get_args(hint)[0], hint.__metadata__[0]


def _word(kind: Any) -> str:
    kinds = [one for one in typing.get_args(kind) or (kind,) if one is not type(None)]
    if typing.get_origin(kinds[0]) is list:
        kinds = list(typing.get_args(kinds[0]))
    return _WORDS[kinds[0]]


def hooks(_: str = "") -> str:
    """Every hook, with what it registers."""
    rows = []
    for name, hook in hook_functions().items():
        ((argument, parameter),) = inspect.signature(hook).parameters.items()
        takes = parameter.annotation
        if typing.get_origin(takes) is not None:
            ((registered,), _) = typing.get_args(takes)
            takes = f"call it with each `{registered.__name__}`"
        else:
            takes = "a `typer.Typer` of the plugin's own"
        rows.append((f"`{name}({argument})`", f"`{argument}`: {takes}", read(hook).summary))
    return table(("hook", "argument", "what for"), rows)


def hook_functions() -> dict[str, Callable[..., Any]]:
    """Return the hooks of the contract by name, in the order of its page."""
    marker = f"{hookspecs.GROUP}_spec"
    return {name: f for name, f in vars(hookspecs).items() if hasattr(f, marker)}


def fields(name: str) -> str:
    """A class of attrs: what it is, and its attributes."""
    kind = load(name)
    doc = read(kind)
    told = doc.items("Attributes")
    rows = []
    for field in attrs.fields(kind):
        if field.name not in told:
            raise ValueError(f"{name}: its docstring has no attribute {field.name!r}")
        rows.append((f"`{field.name}`", _default(field), told[field.name]))
    parts = [f"### {kind.__name__}", f"`from {_home(kind)} import {kind.__name__}`. {doc.text}"]
    return "\n\n".join([*parts, table(("attribute", "default", "what"), rows)])


def _home(kind: Any) -> str:
    return "modalloy" if kind.__name__ in modalloy.__all__ else kind.__module__


def _default(field: Any) -> str:
    if field.default is attrs.NOTHING:
        return "required"
    if not isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
        return f"`{field.default!r}`"
    if field.default.takes_self:
        return "as told"
    return f"`{field.default.factory()!r}`"


def public(package: str = "") -> str:
    """Every public name of a package, with its docstring."""
    source = importlib.import_module(package or "modalloy")
    found = _documented({name: getattr(source, name) for name in source.__all__})
    return _deeper(found) if package else found


def named(targets: str) -> str:
    """What ``package.module:attribute`` names, each with its docstring."""
    things = {target.partition(":")[2]: load(target) for target in targets.split()}
    return _deeper(_documented(things))


def _deeper(text: str) -> str:
    """Return a text whose headings are a level below those of the page."""
    return re.sub("^(?=##+ )", "#", text, flags=re.MULTILINE)


def _documented(things: dict[str, Any]) -> str:
    parts = []
    for name, thing in things.items():
        if inspect.isclass(thing):
            parts.append(_class(name, thing))
        elif inspect.isfunction(thing):
            parts.append(f"## {name}\n\n{_function(name, thing)}")
        else:
            parts.append(f"## {name}\n\n{_CONSTANTS[name]}")
    return "\n\n".join(parts)


_CONSTANTS = {
    "API_VERSION": f"Version {modalloy.API_VERSION} of the contract between host and plugins, "
    "which every declared value carries. It is raised when a hook or a declared class changes.",
    "hookimpl": "Decorator that marks a function of a plugin as the hook of its name: "
    "[the plugin contract](contract.md).",
}


def _class(name: str, kind: Any) -> str:
    doc = read(kind)
    if name in _DECLARED:
        link = f"Its attributes: [the plugin contract](contract.md#{name.lower()})."
        return f"## {name}\n\n{doc.summary} {link}"
    parts = [f"## {name}", *_sections(doc)]
    properties = [
        (f"`{key}`", read(value).summary)
        for key, value in vars(kind).items()
        if isinstance(value, property) and not key.startswith("_")
    ]
    if properties:
        parts.append(table(("property", "what"), properties))
    for method, function in vars(kind).items():
        plain = getattr(function, "__func__", function)
        documented = inspect.isfunction(plain) and plain.__doc__
        if documented and not method.startswith("_"):
            shown = f"{name}.{method}" if isinstance(function, classmethod) else method
            parts.append(f"### {name}.{method}\n\n{_function(shown, plain)}")
    return "\n\n".join(parts)


_DECLARED = (
    "Benchmark",
    "Connector",
    "Encoder",
    "MergeMethod",
    "Modality",
    "Parameter",
    "Parent",
    "Question",
    "TensorMethod",
)


def _function(name: str, function: Any) -> str:
    """Signature as it stands in the source, and docstring."""
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if not isinstance(node, ast.FunctionDef):
        raise TypeError(f"{name} is no function")
    if node.args.args and node.args.args[0].arg in ("self", "cls"):
        del node.args.args[0]
    node.name, node.decorator_list, node.body = name.rpartition(".")[2], [], [ast.Pass()]
    line = ast.unparse(node).removesuffix(":\n    pass").removeprefix("def ")
    if len(line) > _LONG:
        line = _broken(node)
    return "\n\n".join([f"```text\n{line}\n```", *_sections(read(function))])


_LONG = 88


def _broken(node: ast.FunctionDef) -> str:
    arguments = node.args
    plain = [ast.unparse(one) for one in arguments.args]
    last = len(plain) - len(arguments.defaults)
    for place, default in enumerate(arguments.defaults, start=last):
        plain[place] += f" = {ast.unparse(default)}"
    if arguments.vararg is not None:
        plain.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        plain.append("*")
    for one, given in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        shown = ast.unparse(one)
        plain.append(shown if given is None else f"{shown} = {ast.unparse(given)}")
    if arguments.kwarg is not None:
        plain.append(f"**{ast.unparse(arguments.kwarg)}")
    returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    return "\n".join([f"{node.name}(", *(f"    {one}," for one in plain), f"){returns}"])


def _sections(doc: Docstring) -> Iterator[str]:
    yield doc.text
    for name, text in doc.sections.items():
        items = doc.items(name)
        if name in ("Args", "Attributes", "Raises", "Warns") and items:
            columns = {"Args": "argument", "Attributes": "attribute"}.get(name, name.lower())
            yield table((columns, "what"), [(f"`{key}`", value) for key, value in items.items()])
        else:
            yield f"{name}: {cell(text)}"


def main(check: bool) -> int:  # noqa: FBT001 - of the command line
    """Write the pages, or say which are out of date."""
    stale = 0
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new == text:
            continue
        if check:
            stale += 1
            names = (str(page.relative_to(DOCS.parent)), "the code")
            changes = difflib.unified_diff(text.splitlines(), new.splitlines(), *names, lineterm="")
            print("\n".join(changes))
        else:
            page.write_text(new, encoding="utf-8")
    if stale:
        print(f"{stale} pages are out of date: python docs/_tools/reference.py")
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
