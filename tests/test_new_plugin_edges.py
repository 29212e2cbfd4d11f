"""``modalloy new-plugin`` where something is in its way: words, files, repositories, settings."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from modalloy.authoring import REPOSITORY, keep_template, write_plugin
from modalloy.cli.new_plugin import check_free
from modalloy.errors import FormatError, ModalloyError, SpecError
from test_new_plugin import NAME, command, commit, git, home

__all__ = ["home"]  # a fixture for every test


@pytest.mark.parametrize("name", ["null", "true", "on", "yes", "class"])
def test_a_name_that_means_something_to_others_stays_a_name(tmp_path: Path, name: str) -> None:
    write_plugin(tmp_path / name, {"name": name}, defaults=True)
    training = yaml.safe_load((tmp_path / name / "recipe/train.yml").read_text("utf-8"))
    assert training["modality"] == name
    assert yaml.safe_load((tmp_path / name / ".copier-answers.yml").read_text())["name"] == name


@pytest.mark.parametrize(
    ("name", "content_type", "message"),
    [
        ("merged", "merged", "the name 'merged' is taken by what a merge method makes"),
        ("builtin", "x", "the name 'builtin' is taken by plugin 'builtin'"),
        ("x", "json", "content type 'json' is taken by an option of `modalloy ask`"),
        ("x", "help", "content type 'help' is taken by an option of `modalloy ask`"),
        ("x", "max_new_tokens", "'max_new_tokens' is taken by an option of `modalloy ask`"),
    ],
)
def test_words_that_have_a_meaning_are_taken(name: str, content_type: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_free(name, content_type)


def test_a_content_type_that_is_answered_later_is_checked_too(tmp_path: Path) -> None:
    """The command knows it beforehand only where it is given with ``--answer``."""
    taken = check_free("tilt", "tilt")
    assert taken["image"].startswith("plugin 'vision'")
    answers = {"name": "tilt", "content_type": "image"}
    with pytest.raises(SpecError, match="image is taken; choose another"):
        write_plugin(tmp_path / "tilt", answers, defaults=True, taken=taken)
    assert not (tmp_path / "tilt").exists()


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\tb", "\x7f", " ", "back\\slash"])
@pytest.mark.parametrize("question", ["author", "description"])
def test_answers_that_no_toml_could_hold_write_nothing(
    tmp_path: Path, question: str, text: str
) -> None:
    with pytest.raises(SpecError, match="must be one line without quotes or backslashes"):
        write_plugin(tmp_path / "new", {"name": NAME, question: text}, defaults=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["O'Brien", "{{ name }}", "# hash: yes", "${x}", "日本 \u2028"])
def test_answers_that_look_like_code_are_words(tmp_path: Path, text: str) -> None:
    write_plugin(tmp_path / "new", {"name": NAME, "description": text}, defaults=True)
    project = tomllib.loads((tmp_path / "new/pyproject.toml").read_text("utf-8"))["project"]
    assert project["description"] == text


def test_an_answer_twice_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = ("--answer", "author=a", "--answer", "author=b")
    assert command("tilt", str(tmp_path), "--defaults", *twice) == 2
    assert "--answer answers author more than once" in capsys.readouterr().err
    assert not list(tmp_path.glob("tilt"))


def a_file(place: Path) -> None:
    place.write_text("mine")


def a_link(place: Path) -> None:
    place.symlink_to(place.parent / "nowhere")


@pytest.mark.parametrize("make", [a_file, a_link])
def test_what_is_no_directory_is_left_as_it_is(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "place")
    before = os.lstat(tmp_path / "place")
    with pytest.raises(FormatError, match="place is no directory; choose another place"):
        write_plugin(tmp_path / "place" / "deep" / "new", {"name": NAME}, defaults=True)
    with pytest.raises(FormatError, match="place exists; choose another place or remove it"):
        write_plugin(tmp_path / "place", {"name": NAME}, defaults=True)
    assert os.lstat(tmp_path / "place") == before
    assert not (tmp_path / "nowhere").exists()


def test_it_runs_in_a_hook_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git tells its hooks of the repository that they are run for, which is another one."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path / "other"))
    # copier's own way to git took the environment when it was imported.
    from plumbum import local

    with local.env(GIT_DIR=str(tmp_path / "other"), GIT_WORK_TREE=str(tmp_path / "other")):
        write_plugin(tmp_path / "new", {"name": NAME}, defaults=True)
        assert local.env["GIT_DIR"] == str(tmp_path / "other")
    assert (tmp_path / "new/pyproject.toml").is_file()


@pytest.mark.parametrize("spoil", ["a file", "a broken repository", "other files"])
def test_where_the_template_cannot_be_kept_it_says_what_to_remove(
    tmp_path: Path, spoil: str
) -> None:
    repository = Path(REPOSITORY).expanduser()
    if spoil == "a file":
        repository.parent.mkdir(parents=True)
        repository.write_text("mine")
    elif spoil == "a broken repository":
        (repository / ".git").mkdir(parents=True)
    else:
        repository.mkdir(parents=True)
        (repository / "mine.txt").write_text("mine")
    with pytest.raises(ModalloyError, match="remove") as caught:
        write_plugin(tmp_path / "new", {"name": NAME}, defaults=True)
    assert str(repository) in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_settings_of_the_user_do_not_reach_the_kept_template(home: Path) -> None:
    home.mkdir()
    (home / ".gitconfig").write_text(
        "[core]\n autocrlf = true\n quotePath = true\n[color]\n ui = always\n"
        "[commit]\n gpgSign = true\n[tag]\n sort = -version:refname\n"
    )
    assert (keep_template(), keep_template()) == ("0.1.0", "0.1.0")


def test_the_template_of_an_answers_file_is_never_an_option_of_git(tmp_path: Path) -> None:
    write_plugin(tmp_path / NAME, {"name": NAME}, defaults=True)
    git(tmp_path / NAME, "init", "--quiet")
    answers = tmp_path / NAME / ".copier-answers.yml"
    answers.write_text(answers.read_text().replace("_commit: 0.1.0", "_commit: --exec=touch"))
    commit(tmp_path / NAME)
    assert command("--update", str(tmp_path / NAME), "--defaults") == 1
