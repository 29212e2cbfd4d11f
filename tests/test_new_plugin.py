"""``modalloy new-plugin``: what it writes, what it refuses, and that updates keep one's own."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from copier.errors import CopierAnswersInterrupt
from packaging.requirements import Requirement

import modalloy
from modalloy import authoring
from modalloy.authoring import REPOSITORY, keep_template, update_plugin, write_plugin
from modalloy.cli import main
from modalloy.cli.new_plugin import check_free
from modalloy.errors import FormatError, MissingComponentError, ModalloyError, SpecError

HOUSE = Path(__file__).parents[1]
NAME = "tilt-sensor"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep templates in a home of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "someone")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "someone@example.org")
    return tmp_path / "home"


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the template, used in its place, to change."""
    copy = tmp_path / "template"
    shutil.copytree(authoring.TEMPLATE, copy)
    monkeypatch.setattr(authoring, "TEMPLATE", copy)
    return copy


@pytest.fixture
def plugin(template: Path, tmp_path: Path) -> Path:
    """Return a plugin that was written from the copy and committed."""
    del template
    directory = tmp_path / "plugins" / NAME
    write_plugin(directory, {"name": NAME}, defaults=True)
    git(directory, "init", "--quiet")
    commit(directory)
    return directory


def git(directory: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)  # noqa: S603
    return done.stdout


def commit(directory: Path) -> None:
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", "Changes")


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


def files(directory: Path) -> set[str]:
    found = {f.relative_to(directory).as_posix() for f in directory.rglob("*") if f.is_file()}
    return {name for name in found if not name.startswith(".git/")}


EXPECTED = {
    ".copier-answers.yml",
    ".github/workflows/test.yml",
    ".gitignore",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "recipe/make_data.py",
    "recipe/measure.py",
    "recipe/probe.py",
    "recipe/train.yml",
    "src/modalloy_tilt_sensor/__init__.py",
    "src/modalloy_tilt_sensor/configuration.py",
    "src/modalloy_tilt_sensor/connector.py",
    "src/modalloy_tilt_sensor/encoder.py",
    "src/modalloy_tilt_sensor/plugin.py",
    "src/modalloy_tilt_sensor/py.typed",
    "src/modalloy_tilt_sensor/reading.py",
    "tests/test_contract.py",
    "tests/test_encoder.py",
    "tests/test_plugin.py",
    "tests/test_reading.py",
    "tests/test_recipe.py",
}


@pytest.mark.parametrize(
    ("connector", "used"), [("own", "tilt-sensor-mlp"), ("mlp", "mlp"), ("linear", "linear")]
)
@pytest.mark.parametrize("licence", ["Apache-2.0", "BSD-3-Clause", "MIT"])
def test_what_is_written(tmp_path: Path, connector: str, used: str, licence: str) -> None:
    answers = {"name": NAME, "connector": connector, "licence": licence, "author": "Zoë X."}
    written = write_plugin(tmp_path / "new", answers, defaults=True)
    own = {"src/modalloy_tilt_sensor/connector.py"}
    assert files(tmp_path / "new") == (EXPECTED if connector == "own" else EXPECTED - own)
    assert written.template == modalloy.__version__
    assert written.answers["content_type"] == "tilt_sensor"
    project = tomllib.loads((tmp_path / "new/pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == "modalloy-tilt-sensor"
    assert project["license"] == licence
    assert project["authors"] == [{"name": "Zoë X."}]
    assert project["entry-points"]["modalloy"] == {NAME: "modalloy_tilt_sensor.plugin"}
    needed = {one.name: one for one in map(Requirement, project["dependencies"])}
    assert modalloy.__version__ in needed["modalloy"].specifier
    assert len(needed["modalloy"].specifier) == 2  # it has an upper bound
    training = yaml.safe_load((tmp_path / "new/recipe/train.yml").read_text("utf-8"))
    assert training["connector"]["type"] == used
    assert training["licence"] == licence
    text = (tmp_path / "new/LICENSE").read_text("utf-8")
    assert ("Apache License" in text) == (licence == "Apache-2.0")
    assert ("Zoë X." in text) == (licence != "Apache-2.0")
    plugin = (tmp_path / "new/src/modalloy_tilt_sensor/plugin.py").read_text("utf-8")
    assert ("Connector" in plugin) == (connector == "own")
    check_style(tmp_path / "new")


def check_style(directory: Path) -> None:
    """Check that nothing of the template is left in a plugin, and its style."""
    for name in files(directory):
        text = (directory / name).read_text("utf-8")
        assert not re.search(r"(?<!\$){{|{%", text), name
        assert text.endswith("\n") or not text, name
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
        done = subprocess.run(ruff, cwd=directory, capture_output=True, text=True, check=False)  # noqa: S603
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_template_asks_six_questions_and_has_a_default_for_all_but_the_name() -> None:
    asked = yaml.safe_load((authoring.TEMPLATE / "copier.yml").read_text("utf-8"))
    assert len(authoring.questions()) == 6
    assert [name for name in authoring.questions() if "default" not in asked[name]] == ["name"]


def test_nothing_of_the_machine_is_in_the_answers(tmp_path: Path, home: Path) -> None:
    write_plugin(tmp_path / "new", {"name": NAME}, defaults=True)
    text = (tmp_path / "new" / authoring.ANSWERS).read_text("utf-8")
    assert f"_src_path: {REPOSITORY}\n" in text
    assert f"_commit: {modalloy.__version__}\n" in text
    for name in files(tmp_path / "new"):
        content = (tmp_path / "new" / name).read_text("utf-8")
        assert str(home) not in content
        assert str(tmp_path) not in content


def test_the_wheel_carries_the_template(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=HOUSE, check=True, capture_output=True)  # noqa: S603
    with zipfile.ZipFile(next(tmp_path.glob("modalloy-*.whl"))) as wheel:
        carried = {n for n in wheel.namelist() if n.startswith("modalloy/template/")}
    assert carried == {f"modalloy/template/{name}" for name in files(authoring.TEMPLATE)}


def test_a_template_is_kept_once_and_a_changed_one_apart(template: Path, home: Path) -> None:
    first = keep_template()
    (template / "copier.yml").chmod(0o755)  # as installers leave files is none of its content
    assert (first, keep_template()) == ("0.1.0", "0.1.0")
    replace(template / "project/README.md.jinja", "## What it reads", "## What this reads")
    assert (keep_template(), keep_template()) == ("0.1.0.post1", "0.1.0.post1")
    repository = home / ".local/share/modalloy/plugin-template"
    assert git(repository, "tag").split() == ["0.1.0", "0.1.0.post1"]
    assert git(repository, "rev-list", "--count", "main").strip() == "2"


def test_an_update_brings_what_is_new_and_keeps_ones_own(plugin: Path, template: Path) -> None:
    mine = plugin / "src/modalloy_tilt_sensor/reading.py"
    replace(mine, "Read one input:", "Read one tilt:")
    (plugin / "mine.txt").write_text("mine\n", encoding="utf-8")
    (plugin / "recipe/measure.py").unlink()
    commit(plugin)
    project = template / "project"
    replace(project / "README.md.jinja", "## What it reads", "## What this reads")
    (project / "new.txt.jinja").write_text("new in {{ name }}\n", encoding="utf-8")
    updated = update_plugin(plugin, defaults=False)  # and no terminal: nothing is asked again
    assert (updated.earlier, updated.template) == ("0.1.0", "0.1.0.post1")
    assert updated.conflicts == ()
    assert "## What this reads" in (plugin / "README.md").read_text("utf-8")
    assert (plugin / "new.txt").read_text("utf-8") == "new in tilt-sensor\n"
    assert "Read one tilt:" in mine.read_text("utf-8")
    assert (plugin / "mine.txt").is_file()
    assert not (plugin / "recipe/measure.py").exists()
    assert "_commit: 0.1.0.post1\n" in (plugin / authoring.ANSWERS).read_text("utf-8")


def test_a_conflict_is_marked_and_told(
    plugin: Path, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(plugin / "README.md", "## What it reads", "## Tilts that it reads")
    commit(plugin)
    replace(template / "project/README.md.jinja", "## What it reads", "## What this reads")
    assert command("--update", str(plugin), "--defaults") == 1
    shown = capsys.readouterr().out
    assert f"{plugin}: template of modalloy 0.1.0 -> 0.1.0.post1" in shown
    assert "conflict in README.md" in shown
    text = (plugin / "README.md").read_text("utf-8")
    assert "<<<<<<<" in text
    assert "## Tilts that it reads" in text
    assert "## What this reads" in text


def test_copier_itself_updates(plugin: Path, template: Path) -> None:
    replace(template / "project/README.md.jinja", "## What it reads", "## What this reads")
    keep_template()
    copier = [sys.executable, "-m", "copier", "update", "--defaults", "--quiet"]
    subprocess.run(copier, cwd=plugin, check=True, capture_output=True)  # noqa: S603
    assert "## What this reads" in (plugin / "README.md").read_text("utf-8")


def test_a_plugin_inside_a_larger_repository_is_updated(template: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    git(tmp_path / "whole", "init", "--quiet")
    directory = tmp_path / "whole/examples" / NAME
    write_plugin(directory, {"name": NAME}, defaults=True)
    commit(tmp_path / "whole")
    replace(template / "project/README.md.jinja", "## What it reads", "## What this reads")
    assert update_plugin(directory, defaults=True).conflicts == ()
    assert "## What this reads" in (directory / "README.md").read_text("utf-8")


def test_uncommitted_changes_stop_an_update(plugin: Path) -> None:
    (plugin / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(FormatError, match=r"has uncommitted changes, README\.md among them"):
        update_plugin(plugin, defaults=True)
    assert (plugin / "README.md").read_text("utf-8") == "mine"


def test_an_update_needs_a_repository(plugin: Path) -> None:
    shutil.rmtree(plugin / ".git")
    with pytest.raises(FormatError, match="is in no git repository"):
        update_plugin(plugin, defaults=True)


def test_an_update_needs_the_earlier_template(plugin: Path, home: Path) -> None:
    replace(plugin / authoring.ANSWERS, "_commit: 0.1.0\n", "_commit: 0.0.7.post2\n")
    shutil.rmtree(home)
    with pytest.raises(MissingComponentError, match=r"'modalloy\[author\]==0\.0\.7' and run"):
        update_plugin(plugin, defaults=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("- a\n", "_src_path is None"),
        ("_src_path: gh:other/template\n", "_src_path is 'gh:other/template', expected"),
        ("_src_path: [\n", "cannot be read"),
    ],
)
def test_what_was_not_written_by_it_is_not_updated(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / authoring.ANSWERS).write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=re.escape(message)):
        update_plugin(tmp_path, defaults=True)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"conector": "own"}, "asks no 'conector'.*Did you mean 'connector'"),
        ({"connector": "huge"}, "'huge' is not in"),
        ({"content_type": "Tilt"}, "lower-case words joined by _"),
        ({"content_type": "text"}, "every model's own"),
        ({"author": 'A "B" C'}, "one line without quotes"),
        ({"description": "a\nb"}, "one line without quotes"),
        ({"licence": "WTFPL"}, "'WTFPL' is not in"),
    ],
)
def test_wrong_answers_write_nothing(tmp_path: Path, answers: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        write_plugin(tmp_path / "new", {"name": NAME, **answers}, defaults=True)
    assert not (tmp_path / "new").exists()


def test_a_directory_in_use_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FormatError, match="exists; choose another place"):
        write_plugin(tmp_path, {"name": NAME}, defaults=True)
    assert files(tmp_path) == {"mine.txt"}


@pytest.mark.parametrize(
    ("name", "content_type", "message"),
    [
        ("vision", "sight", "the name 'vision' is taken by plugin 'vision'"),
        ("sight", "image", "content type 'image' is taken by plugin 'vision'"),
        ("Sight", "sight", "lower-case words joined by '-' or '_'.*got 'Sight'"),
        ("a.b", "sight", "lower-case words joined by '-' or '_'"),
        ("../x", "sight", "lower-case words joined by '-' or '_'"),
    ],
)
def test_names_that_are_taken_or_malformed(name: str, content_type: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_free(name, content_type)


def test_what_it_needs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        with pytest.raises(MissingComponentError, match="new-plugin needs git"):
            write_plugin(tmp_path / "new", {"name": NAME}, defaults=True)
    monkeypatch.setitem(sys.modules, "copier", None)
    with pytest.raises(MissingComponentError, match=r"pip install 'modalloy\[author\]'"):
        write_plugin(tmp_path / "new", {"name": NAME}, defaults=True)
    assert not (tmp_path / "new").exists()


def test_without_a_terminal_questions_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", (tmp_path / "empty").open("w+"))
    with pytest.raises(ModalloyError, match="--defaults asks nothing"):
        write_plugin(tmp_path / "new", {"name": NAME}, defaults=False)
    assert not (tmp_path / "new").exists()


def test_questions_may_be_left_by_the_keyboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(*_: object, **__: object) -> None:
        raise CopierAnswersInterrupt(*[None] * 3)  # type: ignore[arg-type]

    monkeypatch.setattr("copier.run_copy", leave)
    assert command("tilt", str(tmp_path)) == 130
    assert "stopped by the keyboard" in capsys.readouterr().err
    assert not (tmp_path / "tilt").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--defaults", "--answer", "author=Someone Else")
    assert command("tilt", str(tmp_path), *options) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{tmp_path}/tilt: plugin tilt, from the template of modalloy 0.1.0. Next:"
    assert shown[-1].endswith("--tilt recipe/data/signals/test-000.txt")
    assert 'name = "Someone Else"' in (tmp_path / "tilt/pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the plugin's NAME, or --update DIR"),
        (["a", "--update", "b"], "--update DIR takes no NAME"),
        (["a", "--answer", "licence"], "--answer takes QUESTION=ANSWER"),
        (["a", "--answer", "name=b"], "questions: content_type, description"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def command(*arguments: str) -> object:
    """Run ``modalloy new-plugin`` in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["modalloy", "new-plugin", *arguments])
        with pytest.raises(SystemExit) as left:
            main.run()
    return left.value.code or 0
