"""evaluate: what is asked, left out, kept and judged, in Python and on the command line."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import modalloy
from fakes import HEADER, Site
from modalloy import API_VERSION, Modality, Registry, hookimpl
from modalloy.cli.main import run as run_cli
from modalloy.composition.features import FeatureStore
from modalloy.errors import FormatError, InputError, MissingComponentError, SpecError
from modalloy.evaluation import run
from modalloy.evaluation.answers import Answer, AnswerLog, model_fingerprint
from modalloy.evaluation.questions import Question
from modalloy.evaluation.results import Record, Results
from modalloy.evaluation.retention import of_type, open_alone, parents_alone, retained
from tiny import tiny_base
from toy import TYPES, ToyPlugin, ask, toy_parent


def read_number(source: Any, limits: Mapping[str, int]) -> torch.Tensor:
    return torch.tensor([float(Path(source).read_text())])


class NumberPlugin(ToyPlugin):
    """A toy modality whose inputs are files of one number."""

    @hookimpl
    def register_modalities(self, register: Any) -> None:
        register(
            Modality(
                name=self.name, api_version=API_VERSION, content_type=TYPES[self.name],
                placeholder=f"<|{self.name}|>", read=read_number, limits={"bytes": 1000},
            )
        )  # fmt: skip


def number_registry() -> Registry:
    registry = Registry()
    for name in ("sight", "sound"):
        registry.register(NumberPlugin(name), name=f"toy-{name}")
    return registry


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    base = tiny_base(root / "base", seed=3)
    for seed, name in enumerate(("sight", "sound")):
        toy_parent(root / name, base, name, seed=seed + 1, prefix=1)
    return root


@pytest.fixture
def composed(root: Path) -> Any:
    parents = [root / "sight", root / "sound"]
    return modalloy.compose(root / "base", parents=parents, registry=number_registry())


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    found = []
    for index in range(6):
        file = tmp_path / f"{index}.txt"
        file.write_text(str(0.3 * index + 0.1))
        kind = TYPES["sight" if index % 2 else "sound"]
        messages = ask("what is it")
        messages[0]["content"].insert(0, {"type": kind, "path": file})
        found.append(
            Question(id=str(index), kind=kind, messages=messages, options=["a", "the time", "is"],
                     answer=index % 3, reference="is", objects=[str(index // 4)])
        )  # fmt: skip
    return found


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of inputs that encoders were given."""
    counts: list[int] = []
    plain = modalloy.composition.encoders.EncoderStore.run

    def count(self: Any, modality: str, inputs: Any, device: Any) -> Any:
        counts.append(len(inputs["values"]))
        return plain(self, modality, inputs, device)

    monkeypatch.setattr(modalloy.composition.encoders.EncoderStore, "run", count)
    return counts


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("asked again")


def test_every_answer_is_judged_and_counted(composed: Any, questions: list[Question]) -> None:
    results = modalloy.evaluate(
        *composed, questions, scoring=("options", "letter", "evalai", "letter")
    )
    assert [r.id for r in results.records] == [q.id for q in questions] * 3
    for record, question in zip(results.records, questions, strict=False):
        best = max(range(3), key=record.scores.__getitem__)
        assert record.answer == question.options[best]
        assert record.right is (best == question.answer)
        assert record.objects == tuple(question.objects)
    letters = {r.id: r.gold for r in results.records if r.scoring == "letter"}
    assert letters == {q.id: "ABC"[q.answer or 0] for q in questions}
    rows = [(row.kind, row.scoring, row.n) for row in results.table()]
    assert rows[:3] == [("audio", "options", 3), ("image", "options", 3), ("average", "options", 6)]
    assert len(rows) == 9
    data = json.loads(json.dumps(results.to_dict()))
    assert data["table"][0]["right"].keys() == {"value", "low", "high"}
    assert data["answers"][0]["id"] == "0"


def test_a_second_run_asks_nothing_and_encodes_nothing(
    composed: Any, questions: list[Question], tmp_path: Path, encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    work = tmp_path / "work"
    names = ("options", "exact")
    first = modalloy.evaluate(*composed, questions, scoring=names, work=work, benchmark="b")
    assert sum(encoded) == 6, "each input once, all scorings together"
    assert (first.reused, len(list((work / "features").glob("*/*.safetensors")))) == (0, 2)
    # Features are there for other models, too.
    composed[0].coefficients = attrs.evolve(composed[0].coefficients, default=(0.3, 0.3))
    other = modalloy.evaluate(*composed, questions, work=work, benchmark="other")
    assert (other.reused, sum(encoded)) == (0, 6)
    composed[0].coefficients = attrs.evolve(composed[0].coefficients, default=(0.5, 0.5))
    monkeypatch.setattr(run, "score_options", refuse)
    monkeypatch.setattr(run, "answer_freely", refuse)
    again = modalloy.evaluate(*composed, questions, scoring=names, work=work, benchmark="b")
    assert again == attrs.evolve(first, reused=12)


@pytest.mark.parametrize("change", ["medium", "text", "option", "weight", "benchmark"])
def test_what_has_changed_is_asked_again(
    composed: Any, questions: list[Question], tmp_path: Path, change: str
) -> None:
    modalloy.evaluate(*composed, questions, work=tmp_path / "work", benchmark="b")
    expected, name = 5, "b"
    if change == "medium":
        (tmp_path / "0.txt").write_text("0.75")
    elif change == "text":
        questions[0].messages[0]["content"][1]["text"] = "what is"
    elif change == "option":
        questions[0].options[0] = "aa"
    elif change == "weight":
        with torch.no_grad():
            next(composed[0].connectors.parameters()).add_(1)
        expected = 0
    else:
        expected, name = 0, "other"
    again = modalloy.evaluate(*composed, questions, work=tmp_path / "work", benchmark=name)
    assert again.reused == expected


def test_a_broken_run_goes_on(
    composed: Any, questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = modalloy.evaluate(*composed, questions)
    work = tmp_path / "work"

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        modalloy.evaluate(*composed, questions, work=work, batch_size=2, progress=stop)
    log = work / "answers.jsonl"
    assert log.read_text().count("\n") == 3  # two batches of audio: 2 and 1 questions; then image
    with log.open("a") as handle:
        handle.write('{"model": "unfin')
    found = modalloy.evaluate(*composed, questions, work=work)
    assert found.reused == 3
    assert [r.answer for r in found.records] == [r.answer for r in whole.records]
    assert len([json.loads(one) for one in log.read_text().splitlines()]) == 6


def test_a_damaged_log_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    key = dict.fromkeys(("model", "benchmark", "scoring", "kind", "id", "question"), "x")
    AnswerLog(file).add(key, Answer("yes", (1.0,)))
    assert AnswerLog(file).get(key) == Answer("yes", (1.0,))
    file.write_text("oops\n" + file.read_text())
    with pytest.raises(FormatError, match=r"answers\.jsonl, line 1 is no answer of an evaluation"):
        AnswerLog(file)


def test_kinds_without_their_modality_are_left_out_with_the_reason(
    root: Path, questions: list[Question]
) -> None:
    alone = modalloy.compose(
        root / "base", modalities=["sight"], parents=[root / "sight"], registry=number_registry()
    )
    touch = attrs.evolve(questions[0], kind="t", messages=ask(("pressure", [1.0]), "?"))
    bare = attrs.evolve(questions[1], id="9", kind="bare", reference=None)
    asked = [*questions, touch, bare]
    results = modalloy.evaluate(*alone, asked, scoring=("options", "exact"))
    assert {record.kind for record in results.records} == {"image", "bare"}
    assert results.skipped == {
        "audio": "this composition takes no audio inputs; compose with --modality sound",
        "t": "this composition takes no pressure inputs; install the plugin that reads 'pressure' "
        "inputs (see `modalloy plugins`)",
        "bare (exact)": "they have no reference",
    }


def test_evaluate_refuses(composed: Any, questions: list[Question]) -> None:
    with pytest.raises(SpecError, match=r"evaluate: scoring must be one or more of .*'best'"):
        modalloy.evaluate(*composed, questions, scoring="best")
    with pytest.raises(InputError, match="two questions of kind 'audio' have the id '0'"):
        modalloy.evaluate(*composed, [questions[0], questions[0]])
    assert modalloy.evaluate(*composed, []).table() == []


def test_features_are_those_of_the_encoder_whatever_the_way(
    composed: Any, questions: list[Question], tmp_path: Path
) -> None:
    model, processor = composed
    inputs = [("sight", Path(q.messages[0]["content"][0]["path"])) for q in questions]
    tensors = processor.preprocess(inputs)
    goal = model.encoders.run("sight", {"values": tensors["sight_values"]}, model.device)
    store = FeatureStore(tmp_path / "f", memory=1)
    for _ in range(2):
        found = store.batch(model, processor, [*inputs, inputs[0]])["sight_features"]
        assert torch.equal(found, torch.cat([goal, goal[:1]]))
        store.flush()
    (shard,) = (tmp_path / "f").rglob("*.safetensors")
    shard.write_bytes(b"broken")
    with pytest.raises(FormatError, match=r"is no shard of features: .*; remove it"):
        FeatureStore(tmp_path / "f").batch(model, processor, inputs)
    with pytest.raises(InputError, match=r"gone\.txt cannot be read"):
        store.batch(model, processor, [("sight", tmp_path / "gone.txt")])


def test_a_fingerprint_follows_coefficients(composed: Any) -> None:
    model, processor = composed
    before = model_fingerprint(model, processor)
    assert model_fingerprint(model, processor) == before
    model.coefficients = attrs.evolve(model.coefficients, default=(0.25, 0.5))
    assert model_fingerprint(model, processor) != before


def test_a_retrained_encoder_is_asked_again(
    composed: Any, questions: list[Question], tmp_path: Path
) -> None:
    model = composed[0]
    work = tmp_path / "work"
    modalloy.evaluate(*composed, questions, work=work)
    assert modalloy.evaluate(*composed, questions, work=work).reused == len(questions)
    stores = sorted((work / "features").iterdir())
    encoder, known = model.encoders.opened("sight"), dict(model.encoders._digests)
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.register_buffer("retrained", torch.ones(1))
    model.encoders._digests.clear()
    try:
        again = modalloy.evaluate(*composed, questions, work=work)
    finally:
        del encoder.retrained
        model.encoders._digests.update(known)
    assert encoder.state_dict().keys() == state.keys()
    assert again.reused == sum(q.content_types == ("audio",) for q in questions)
    assert len(sorted((work / "features").iterdir())) == len(stores) + 1


def test_another_template_is_another_model(composed: Any) -> None:
    model, processor = composed
    before, template = model_fingerprint(model, processor), processor.chat_template
    processor.chat_template = f"{template} "
    try:
        assert model_fingerprint(model, processor) != before
    finally:
        processor.chat_template = template


def test_retention_is_over_what_both_were_asked() -> None:
    def record(name: str, *, right: bool) -> Record:
        return Record(id=name, kind="mc", scoring="options", answer="", gold="", right=right)

    alone = Results(records=(record("image", right=True),))
    whole = Results(records=(record("image", right=True), record("sound", right=False)))
    (row,) = retained([alone], whole)
    assert (row.n, row.alone, row.composed, row.ratio) == (1, 1.0, 1.0, 1.0)


def test_retention_compares_with_each_parent(
    root: Path, composed: Any, questions: list[Question]
) -> None:
    registry = number_registry()
    given = [root / "sound", root / "sight"]
    alone = parents_alone(composed, given, registry, base=root / "base")
    assert sorted(alone) == ["audio", "image"]
    results = [
        modalloy.evaluate(*open_alone(options), of_type(questions, kind))
        for kind, options in alone.items()
    ]
    whole = modalloy.evaluate(*composed, questions)
    rows = retained(results, whole)
    assert [(row.kind, row.n) for row in rows] == [("audio", 3), ("image", 3)]
    # Coefficients by presence: with one modality, the composition is its parent.
    assert all(row.alone == row.composed for row in rows)
    for one in results:
        for record in one.records:
            (same,) = [r for r in whole.records if (r.kind, r.id) == (record.kind, record.id)]
            assert record.scores == pytest.approx(same.scores, abs=1e-4)
    assert attrs.evolve(rows[0], alone=0.5, composed=0.25).ratio == 0.5
    assert attrs.evolve(rows[0], alone=0.0).ratio is None
    with pytest.raises(MissingComponentError, match=r"'sound-toy' \(sound\) is not at hand, so it"):
        parents_alone(composed, [root / "sight"], registry)


PLUGIN = """
from modalloy import Benchmark
from modalloy.evaluation.benchmarks.household import household
from test_evaluate_toys import read_number

@hookimpl
def register_modalities(register):
    register(Modality(
        name="sight", api_version=API_VERSION, content_type="image",
        placeholder="<|sight|>", read=read_number, limits={{"bytes": 1000}},
    ))

@hookimpl
def register_encoders(register):
    register(Encoder(
        name="toy-sight", api_version=API_VERSION, modality="sight", build="toy:build",
        preprocess="toy:preprocess", output_shape="toy:output_shape",
    ))

@hookimpl
def register_parents(register):
    from pathlib import Path
    register(Parent(
        name="sight-toy", api_version=API_VERSION, modality="sight", base="base",
        strategy="decoupled", source=Path({parent!r}),
    ))

@hookimpl
def register_benchmarks(register):
    register(Benchmark(
        name="numbers", api_version=API_VERSION, summary="Numbers.", questions=household,
        scoring=("options",), against_parents=True,
    ))
"""


@pytest.fixture
def shell(
    site: Site, root: Path, tmp_path: Path, questions: list[Question], capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str, str]]:  # fmt: skip
    (site.path / "test_evaluate_toys.py").write_text(
        "from pathlib import Path\nimport torch\n"
        "def read_number(source, limits):\n"
        "    return torch.tensor([float(Path(source).read_text())])\n"
    )
    site.install("toys-sight", HEADER + PLUGIN.format(parent=str(root / "sight")))
    for kind in ("image", "audio"):
        own = [attrs.asdict(q) for q in questions if q.kind == kind]
        lines = [json.dumps({**one, "kind": f"{kind}-mc"}, default=lambda p: p.name) for one in own]
        (tmp_path / f"test-{kind}-mc.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def shell(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["modalloy", "evaluate", *map(str, words)])
        capsys.readouterr()
        code: Any = 0
        try:
            run_cli()
        except SystemExit as end:
            code = end.code or 0
        done = capsys.readouterr()
        return int(code), done.out, done.err

    return shell


def test_the_command_prints_and_writes_results(shell: Any, root: Path, tmp_path: Path) -> None:
    words = ("--benchmark", "numbers", "--data", ".", "--base", root / "base", "--limit", 2)
    code, out, err = shell(*words, "--out", "r.json", "--work", "w", "--threads", 1)
    assert code == 0, err
    assert ["image-mc", "options", "2"] in [line.split()[:3] for line in out.splitlines()]
    assert "left out: audio-mc: this composition takes no audio inputs; install the plugin" in out
    assert "parent alone %" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["model"], report["benchmark"], report["reused"]) == (None, "numbers", 0)
    assert [row["n"] for row in report["table"]] == [2]
    (row,) = report["retention"]
    assert row["ratio"] in (1.0, None)
    code, out, err = shell(*words, "--work", "w")
    assert code == 0, err
    assert "2 answers were kept from an earlier run" in out
    code, out, err = shell(*words, "--work", "w", "--json", "--out", "again.json")
    assert code == 0, err
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "again.json").read_text())
    assert printed == {**report, "reused": 2}
    assert "asking the " in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--benchmark", "number"], 1, "Did you mean 'numbers'?"),
        (["--benchmark", "numbers"], 1, "benchmark 'household' needs --data DIR"),
        (["--benchmark", "numbers", "--data", "gone"], 1, "--data: gone is no directory"),
        (["--benchmark", "numbers", "--data", ".", "--kind", "imagemc"], 1,
         "no questions of kind 'imagemc'; there are audio-mc, image-mc. Did you mean 'image-mc'?"),
        (["--benchmark", "numbers", "--scoring", "exakt"], 1, "--scoring: scoring must be one"),
        (["model", "--benchmark", "numbers", "--method", "damc"], 1,
         "--method say how to compose a model, and MODEL is one already"),
        (["--benchmark", "numbers", "--out", "no/r.json"], 1, "--out: no is no directory"),
        (["--benchmark", "numbers", "--data", ".", "--revision", "v1"], 1,
         "revision 'v1' is given, and 'smollm2' is not fetched from the Hub"),
        ([".", "--benchmark", "numbers", "--data", ".", "--revision", "v1"], 1,
         "revision 'v1' is given, and '.' is not fetched from the Hub"),
        (["gone", "--benchmark", "numbers", "--data", "."], 1, "gone"),
        ([], 2, "Missing option"),
    ],
)  # fmt: skip
def test_the_command_refuses(shell: Any, words: list[str], code: int, message: str) -> None:
    found, _, err = shell(*words)
    assert found == code
    assert message in err


def test_a_missing_medium_is_told_before_a_model_is_opened(shell: Any, tmp_path: Path) -> None:
    for name in ("1.txt", "3.txt"):
        (tmp_path / name).unlink()
    code, _, err = shell("no-model", "--benchmark", "numbers", "--data", ".")
    assert code == 1
    assert "2 of 6 media files are missing: 1.txt, 3.txt; fetch them" in err
