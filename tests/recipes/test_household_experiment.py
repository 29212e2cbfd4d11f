"""The experiment: which cells there are, in which order, and that a broken run goes on."""

import itertools
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from recipes.household import asking, experiment, rows
from recipes.household.asking import Settings, Task, is_done, run_task
from recipes.household.cells import Cell, cell_file, claimed, read_cell, write_cell
from recipes.household.columns import COLUMNS, MANY, fused, place, well_formed
from recipes.household.experiment import available, choose, plan
from recipes.household.rows import ALL, ROWS, Sources, searched
from recipes.household.text_ability import foretell

import modalloy
from modalloy.cli.search import read_table, write_table
from modalloy.composition.coefficients import Coefficients, make_coefficients
from modalloy.errors import FormatError, MissingComponentError
from modalloy.evaluation.answers import model_fingerprint
from modalloy.evaluation.questions import Question
from tiny import tiny_base
from toy import toy_parent, toy_registry


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    data = tmp_path / "data"
    data.mkdir()
    for column in COLUMNS.values():
        if column.group not in ("questions", "perplexity"):
            (data / f"{column.file}.png").write_bytes(b"seen")
            write_question(data, column.file)
    sources = Sources(joint=tmp_path / "joint", coefficients=tmp_path / "found.json")
    return Settings(data=data, work=tmp_path / "work", sources=sources)


def write_question(data: Path, name: str, words: str = "what?") -> None:
    content = [{"type": "image", "path": f"{name}.png"}, {"type": "text", "text": words}]
    question = {
        "id": "1",
        "kind": name,
        "messages": [{"role": "user", "content": content}],
        "reference": "this",
    }
    (data / f"test-{name}.jsonl").write_text(json.dumps(question) + "\n")


def done(settings: Settings, row: str, column: str, n: int, identity: str = "same") -> None:
    digest = asking.questions_digest(COLUMNS[column], settings.data)
    write_cell(
        settings.work, Cell(row=row, column=column, n=n, identity=identity, questions=digest)
    )


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ("joint", fused("object", ALL, noisy=True), (1, 500)),
        ("damc-presence", fused("attribute", ALL[:3], noisy=True), (2, 500)),
        ("mmer", fused("object", ALL, noisy=True), (1, 500)),
        ("mmer", fused("object", ALL[:3], noisy=True), (2, 100)),
        ("mmer", "vision-mc", (3, 100)),
        ("damc-uniform", "format-object", (3, 100)),
        ("mmer", "format-object", None),
        ("ties", fused("object", ("audio", "video"), noisy=True), (4, 500)),
        ("swudi", fused("object", ("audio", "video"), noisy=True), (4, 100)),
        ("swudi", "single-object-audio-noisy", (4, 100)),
        ("ties", "single-object-audio-noisy", (4, 100)),
        ("joint", fused("object", ALL, noisy=False), (5, 50)),
        ("audio-naive", "audio-caption", (3, 100)),
        ("audio-naive", "video-caption", None),
        ("joint-layers", "video-caption", None),
        ("joint-layers", fused("object", ALL, noisy=True), (1, 500)),
        ("audio-naive", "single-object-audio-noisy", None),
        ("base", "text-questions", (3, 500)),
        ("base", "vision-mc", None),
    ],
)
def test_every_cell_has_its_stage_and_its_number_of_questions(
    row: str, column: str, expected: tuple[int, int] | None
) -> None:
    assert place(ROWS[row], COLUMNS[column]) == expected


def test_every_file_of_test_questions_is_a_column() -> None:
    noisy = [name for name in COLUMNS if name.startswith("mcub-") and name.endswith("-noisy")]
    assert len(noisy) == 22
    assert len([name for name in COLUMNS if name.startswith("mcub-")]) == 44
    assert [name for name in COLUMNS if name.endswith("-mc")] == [f"{name}-mc" for name in ALL]


def test_what_is_wanted_most_comes_first_and_what_is_there_is_left_out(settings: Settings) -> None:
    marks = dict.fromkeys(("mmer", "damc-presence", "joint"), "same")
    tasks = plan(marks, list(COLUMNS), settings)
    assert [(task.stage, task.row) for task in tasks[:3]] == [
        (1, "joint"),
        (1, "damc-presence"),
        (1, "mmer"),
    ]
    first = tasks[3].columns
    assert {COLUMNS[name].modalities for name, _ in tasks[0].columns} == {ALL}
    assert (tasks[3].stage, tasks[3].row) == (2, "joint")
    assert {len(COLUMNS[name].modalities) for name, _ in first} == {3}
    assert {count for _, count in first} == {MANY}
    whole, fewer, other = (name for name, _ in first[:3])

    def left() -> dict[str, int]:
        found = {(t.stage, t.row): t.columns for t in plan(marks, list(COLUMNS), settings)}
        return dict(found[2, "joint"])

    done(settings, "joint", whole, MANY)
    done(settings, "joint", fewer, 200)
    done(settings, "joint", other, MANY, identity="before it was trained anew")
    assert whole not in left()
    assert {fewer, other} <= set(left())
    write_question(settings.data, whole, "what else?")
    assert whole in left()
    done(settings, "joint", whole, MANY)
    assert whole not in left()
    (settings.data / f"{whole}.png").write_bytes(b"drawn anew")
    assert whole in left()


def test_stages_and_questions_can_be_limited(settings: Settings) -> None:
    tasks = plan({"joint": "x"}, list(COLUMNS), settings, last=3, limit=7)
    assert {task.stage for task in tasks} == {1, 2, 3}
    assert {count for task in tasks for _, count in task.columns} == {7}


def test_rows_that_cannot_be_opened_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    sources = Sources(joint=tmp_path, coefficients=tmp_path / "no", parents=tmp_path)
    with pytest.raises(ValueError, match=r"--row joint: no model directory of recipes.household"):
        available(["joint", "ties"], ["joint"], sources)
    with pytest.raises(ValueError, match=r"no row can be measured: .*no naive parent of audio, "):
        available(["joint", "ties"], None, sources)
    with pytest.raises(ValueError, match=r"there is no row 'damc-present'.*Did you mean"):
        choose("row", ["damc-present"], ROWS)


def test_a_parent_without_its_weights_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Path:
        raise MissingComponentError("no weights", component="video")

    class Offered:
        strategy = "naive"
        directory = fail

    class Holder:
        def parents(self, **_: Any) -> tuple[Offered, ...]:
            return (Offered(),)

    row = attrs.evolve(ROWS["ties"], modalities=("video",))
    sources = Sources(joint=Path("no"), coefficients=Path("no"))
    why = rows.lacking(row, sources, Holder())  # type: ignore[arg-type]
    assert why == "no naive parent of video over smollm2 is at hand"


def test_searched_coefficients_come_with_their_method(tmp_path: Path) -> None:
    names = ("audio", "vision")
    start = make_coefficients("presence", names, ("presence",))
    whole = attrs.evolve(start, table={**start.table, frozenset(names): (0.75, 0.25)})
    file = tmp_path / "found.json"
    record = {"method": "damc-ties", "method_options": {"density": 0.3}}
    write_table(file, {**record, "coefficients": whole.to_dict()})
    method, options, spec = searched(file)
    assert (method, options) == ("damc-ties", {"density": 0.3})
    made = make_coefficients(spec, names, ("presence",))
    for present in (frozenset(), frozenset({"audio"}), frozenset(names)):
        assert made.row(present) == whole.row(present)
    for other in (("swudi", {}), ("damc-ties", {"density": 0.2})):
        with pytest.raises(FormatError, match="were found for method 'damc-ties' with options"):
            read_table(file, *other)
    write_table(file, {"strategy": "grid"})
    with pytest.raises(FormatError, match="is no table of coefficients"):
        searched(file)


def test_the_coefficients_at_hand_are_for_the_shipped_parents() -> None:
    file = Path(rows.__file__).with_name("coefficients.json")
    method, options, spec = searched(file)
    assert (method, options) == ("damc", {})
    several = {present for present in spec if len(present) > 1}
    assert len(several) == 11
    for present in several:
        assert {name: len(values) for name, values in spec[present].items()} == dict.fromkeys(
            ALL, 30
        )
    for name in ALL:
        assert spec[frozenset({name})] == {one: float(one == name) for one in ALL}


def test_the_joint_model_is_opened_with_what_was_learned_for_it(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    parents = [toy_parent(tmp_path / n, base, n, strategy="naive") for n in ("sight", "sound")]
    model, processor = modalloy.compose(
        base, parents=parents, method="ties", registry=toy_registry()
    )
    model.save_pretrained(tmp_path / "joint")
    processor.save_pretrained(tmp_path / "joint")
    sources = Sources(joint=tmp_path / "joint", coefficients=tmp_path)
    row = ROWS["joint-layers"]
    why = rows.lacking(row, sources, toy_registry())
    assert why == f"there is no {tmp_path / 'joint.json'} of recipes.household.adjusting"
    learned = Coefficients(("merged",), ((0.25, 0.75),))
    found = {"model": "another", "coefficients": learned.to_dict()}
    (tmp_path / "joint.json").write_text(json.dumps(found))
    assert rows.lacking(row, sources, toy_registry()) is None
    with pytest.raises(ValueError, match=r"joint\.json was learned for another joint model than"):
        rows.open_row(row, sources, toy_registry())
    opened = modalloy.load(tmp_path / "joint", registry=toy_registry())
    found["model"] = model_fingerprint(*opened)
    (tmp_path / "joint.json").write_text(json.dumps(found))
    assert rows.open_row(row, sources, toy_registry()).model.coefficients == learned
    plain = rows.open_row(ROWS["joint"], sources, toy_registry())
    assert plain.model.coefficients.default == (1.0,)
    marks = {rows.identity(ROWS[name], sources, toy_registry()) for name in rows.JOINT}
    assert len(marks) == 2


def test_a_free_answer_has_a_trained_form_or_not() -> None:
    bare = Question(id="1", kind="k", messages=[], options=["bed", "lamp"], answer=0)
    about = COLUMNS["format-object"]
    for answer in ("bed", "Lamp.", "It is a bed.", 'i hear "LAMP"', "Shape: bed", "a turning bed"):
        assert well_formed(about, bare, answer, ()), answer
    for answer in ("", "It is", "It is a chair.", "bed lamp", "Trait: bed"):
        assert not well_formed(about, bare, answer, ()), answer
    told = Question(id="1", kind="k", messages=[], options=["is furniture"], answer=0)
    assert well_formed(COLUMNS["format-attribute"], told, "Trait: is furniture", ())
    own = Question(id="1", kind="k", messages=[], options=["It is a bed."], answer=0)
    known = {"It is a bed.", "It is a lamp."}
    for answer in known:
        assert well_formed(COLUMNS["vision-mc"], own, answer, known)
    for answer in ("it is a bed", "It is a", "bed"):
        assert not well_formed(COLUMNS["vision-mc"], own, answer, known)


@pytest.mark.parametrize(("length", "window", "stride"), [(2, 8, 4), (8, 8, 4), (23, 8, 3)])
def test_every_token_is_foretold_once_from_enough_before_it(
    length: int, window: int, stride: int
) -> None:
    ids = torch.randint(50, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    table = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    seen = []

    def bigram(row: torch.Tensor) -> torch.Tensor:
        seen.append(row[0].tolist())
        return table[row]

    score = foretell(bigram, ids, window, stride)
    losses = [-table[a].log_softmax(-1)[b].item() for a, b in itertools.pairwise(ids)]
    assert score.tokens == length - 1
    assert score.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert all(len(row) <= window for row in seen)
    ends = [stride * number + len(row) for number, row in enumerate(seen)]
    assert ends[-1] == length
    # The first token that a further window foretells has this many before it.
    assert all(end - stride * (n + 1) >= window - stride for n, end in enumerate(ends[:-1]))


@pytest.mark.parametrize(("length", "stride"), [(1, 4), (5, 8), (5, 0)])
def test_a_text_that_cannot_be_foretold_is_refused(length: int, stride: int) -> None:
    with pytest.raises(ValueError, match=f"found {length} tokens, stride {stride}, window 8"):
        foretell(lambda row: row.float(), [1] * length, 8, stride)


def test_a_directory_is_claimed_by_one_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path) as first:
        assert first
        with claimed(tmp_path) as second:
            assert not second
    with claimed(tmp_path) as third:
        assert third


def test_a_row_is_measured_once(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base(tmp_path / "base")
    parents = [toy_parent(tmp_path / name, base, name) for name in ("sight", "sound")]
    opened: list[str] = []

    def open_row(row: Any, *_: Any) -> Any:
        opened.append(row.name)
        return rows.modalloy.compose(
            base, parents=parents, registry=toy_registry(), coefficients=row.coefficients
        )

    monkeypatch.setattr(asking, "open_row", open_row)
    task = Task(
        stage=3, row="damc-presence", identity="x", columns=(("text-questions", 3),)
    )  # fmt: skip
    (line,) = run_task(task, settings)
    assert "(n = 3, 3 new answers" in line
    file = cell_file(settings.work, "damc-presence", "text-questions")
    cell = read_cell(file)
    assert [record.id for record in cell.records] == ["text-00", "text-01", "text-02"]
    assert is_done("x", "damc-presence", "text-questions", 3, settings)
    assert run_task(task, settings) == []
    assert opened == ["damc-presence"]
    more = attrs.evolve(task, columns=(("text-questions", 5),))
    assert "(n = 5, 2 new answers" in run_task(more, settings)[0]
    with claimed(settings.work / "answers" / "damc-presence" / "text-questions"):
        most = attrs.evolve(task, columns=(("text-questions", 6),))
        assert run_task(most, settings) == [
            "damc-presence: text-questions: another process is at it"
        ]
    assert len(experiment.plan({"damc-presence": "x"}, ["text-questions"], settings)) == 1
