"""``modalloy new-plugin``: the distribution of a plugin, written from the template or updated."""

import warnings
from pathlib import Path
from typing import Annotated

import attrs
import typer
from typer.main import get_command

from modalloy.authoring import Written, questions, update_plugin, write_plugin
from modalloy.cli import ask
from modalloy.cli.output import plugins_apart, print_json, print_line
from modalloy.errors import ModalloyWarning, SpecError
from modalloy.modality import MERGED, is_name
from modalloy.registry import Registry


def command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Name of the plugin and its modality: lower-case words."
        ),
    ] = None,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to make the directory NAME.")
    ] = Path(),
    *,
    defaults: Annotated[
        bool,
        typer.Option("--defaults", help="Ask nothing: take defaults, or earlier answers."),
    ] = False,
    answer: Annotated[
        list[str] | None,
        typer.Option(metavar="QUESTION=ANSWER", help="Answer a question beforehand; repeatable."),
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Bring a plugin to this version's template instead."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Write a plugin's distribution: reader, encoder, connector, recipe, tests, all working.

    It goes to DIR/NAME. Questions: content_type, description, author, licence, connector.
    """
    if update is not None:
        if name is not None or answer:
            raise typer.BadParameter("--update DIR takes no NAME and no --answer")
        _tell_updated(update_plugin(update, defaults=defaults), as_json=as_json)
        return
    if name is None:
        raise typer.BadParameter("give the plugin's NAME, or --update DIR")
    answers = {**_pairs(answer or []), "name": name}
    taken = check_free(name, answers.get("content_type", name.replace("-", "_")))
    written = write_plugin(directory / name, answers, defaults=defaults, taken=taken)
    _tell_written(written, as_json=as_json)


def check_free(name: str, content_type: str) -> dict[str, str]:
    """Check that nothing installed has the name or the content type of a new plugin.

    Returns:
        The content types that are taken, and by what.

    Raises:
        SpecError: The name is not well-formed, or one of the two is taken.
    """
    if not is_name(name) or "." in name:
        raise SpecError(
            f"a plugin's name must be lower-case words joined by '-' or '_', such as 'tilt' "
            f"or 'heart-rate'; got {name!r}",
            subject=f"plugin {name!r}",
        )
    with warnings.catch_warnings(), plugins_apart():
        warnings.simplefilter("ignore", ModalloyWarning)  # broken plugins do not matter here
        registry = Registry.discover(strict=False)
    # Where a modality stands in messages and in options, other words have a meaning already.
    names = {MERGED: "what a merge method makes"}
    types = {
        option[2:].replace("-", "_"): "an option of `modalloy ask`"
        for parameter in get_command(ask.command).params
        for option in ("--help", *parameter.opts)
        if option.startswith("--")
    }
    for report in registry.reports:
        names |= dict.fromkeys((report.name, *report.modalities), report.subject)
        owned = [registry.modality(one).content_type for one in report.modalities]
        types |= dict.fromkeys(owned, report.subject)
    if name in names:
        raise SpecError(
            f"the name {name!r} is taken by {names[name]}; choose another, as two of one name "
            "cannot be used together",
            subject=f"plugin {name!r}",
        )
    if content_type in types:
        raise SpecError(
            f"content type {content_type!r} is taken by {types[content_type]}; choose another with "
            "--answer content_type=WORD",
            subject=f"plugin {name!r}",
        )
    return types


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = [one.partition("=") for one in given]
    for question, equals, _ in pairs:
        if not equals or question == "name":
            known = ", ".join(one for one in questions() if one != "name")
            raise typer.BadParameter(
                f"--answer takes QUESTION=ANSWER; questions: {known}; got {question!r}"
            )
    twice = {question for question, *_ in pairs if [one[0] for one in pairs].count(question) > 1}
    if twice:
        raise typer.BadParameter(f"--answer answers {', '.join(sorted(twice))} more than once")
    return {question: text for question, _, text in pairs}


def _tell_written(written: Written, *, as_json: bool) -> None:
    if as_json:
        print_json({**attrs.asdict(written), "directory": str(written.directory)})
        return
    name, place = written.answers["name"], written.directory
    package = f"src/modalloy_{name.replace('-', '_')}"
    option = written.answers["content_type"].replace("_", "-")
    print_line(f"{place}: plugin {name}, from the template of modalloy {written.template}. Next:")
    parent, media = f"{package}/parents/smollm2-decoupled", "recipe/data/signals/test-000.txt"
    for line in (
        f"cd {place} && git init && pip install -e . pytest",
        "python -m pytest",
        "python recipe/make_data.py",
        f"modalloy train recipe/train.yml {parent} --data recipe/data --work recipe/work",
        "modalloy compose my-model",
        f'modalloy ask my-model "What does the signal do?" --{option} {media}',
    ):
        print_line(f"  {line}")


def _tell_updated(written: Written, *, as_json: bool) -> None:
    if as_json:
        print_json({**attrs.asdict(written), "directory": str(written.directory)})
    else:
        print_line(
            f"{written.directory}: template of modalloy {written.earlier} -> {written.template}; "
            "look at `git diff` and commit"
        )
        for file in written.conflicts:
            print_line(f"  conflict in {file}: choose between the marks <<<<<<< and >>>>>>>")
    if written.conflicts:
        raise typer.Exit(1)
