"""Interrupted training: what is taken up again, what is taken as it is, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from modalloy.errors import FormatError, ModalloyError
from modalloy.parent import ComponentConfig, ParentManifest
from modalloy.training import train as train_module
from modalloy.training.config import LoraConfig, TrainConfig
from modalloy.training.parameters import restore, trained_state
from modalloy.training.train import train
from tiny import tiny_base, tiny_model
from toy_media import number_config, number_registry, write_data

CONNECTOR, TUNING = "connector stage", "tuning stage"


class Stop(Exception):
    """Stands for a kill: the run ends here."""


def stop_at(stage: str, step: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what.startswith(stage) and done == step:
            raise Stop

    return progress


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base", seed=3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def run(config: TrainConfig, output: Path, data: Path, **options: Any) -> ParentManifest:
    return train(config, output, data=data, registry=number_registry(), **options)


def steps(config: TrainConfig, output: Path, data: Path, **options: Any) -> tuple[int, int]:
    """Train; return how many steps of each stage were done."""
    told: list[str] = []
    run(config, output, data, progress=lambda what, *_: told.append(what), **options)
    found = [
        sum(what.startswith(f"{stage} (loss") for what in told) for stage in (CONNECTOR, TUNING)
    ]
    return found[0], found[1]


def weights(manifest: ParentManifest) -> dict[str, str]:
    return {name: value for name, value in manifest.files.items() if name.endswith("safetensors")}


# 7 chats in batches of 2, two batches to a step: 2 steps an epoch, the second of unequal batches.
# Checkpoints are written after steps 3 and 6: within an epoch, and between two.
ACCUMULATED = {"accumulate": 2, "weight_decay": 0.01, "connector_learning_rate": 0.01}


@pytest.mark.parametrize(
    ("stage", "kill", "left"),
    [(CONNECTOR, 5, (3, 8)), (TUNING, 2, (0, 8)), (TUNING, 5, (0, 5)), (TUNING, 8, (0, 2))],
)
def test_an_interrupted_run_ends_with_the_same_weights(
    stage: str, kill: int, left: tuple[int, int], base: Path, data: Path, tmp_path: Path
) -> None:
    config = number_config(base, tuning_stage=ACCUMULATED)
    whole = run(config, tmp_path / "whole", data)
    with pytest.raises(Stop):
        run(config, tmp_path / "parent", data, progress=stop_at(stage, kill))
    assert not (tmp_path / "parent").exists()
    assert steps(config, tmp_path / "parent", data, resume=True) == left
    resumed = train_module.read_json(tmp_path / "parent" / "parent.json")
    assert {n: h for n, h in resumed["files"].items() if n in weights(whole)} == weights(whole)
    before, after = whole.training["results"], resumed["training"]["results"]
    assert {k: v["loss"] for k, v in before.items()} == {k: v["loss"] for k, v in after.items()}


def test_a_run_killed_after_its_last_step_trains_no_more(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = number_config(base, tuning_stage={"steps": 9})  # 4 steps an epoch: not at its end
    whole = run(config, tmp_path / "whole", data)

    def full(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "write_parent", full)
        with pytest.raises(Stop):
            run(config, tmp_path / "parent", data)
    resumed = run(config, tmp_path / "parent", data, resume=True)
    assert weights(resumed) == weights(whole)
    loss = whole.training["results"]["tuning_stage"]["loss"]
    assert resumed.training["results"]["tuning_stage"]["loss"] == loss


def test_a_checkpoint_torn_by_the_kill_is_passed_over(
    base: Path, data: Path, tmp_path: Path
) -> None:
    config = number_config(base)
    whole = run(config, tmp_path / "whole", data)
    with pytest.raises(Stop):
        run(config, tmp_path / "parent", data, progress=stop_at(TUNING, 5))
    place = tmp_path / "parent.work" / config.name
    shutil.copytree(place / "checkpoint-3", place / "checkpoint-5")
    (place / "checkpoint-5" / "trainer_state.json").unlink()
    (place / "checkpoint-5" / "optimizer.pt").write_bytes(b"torn")
    assert weights(run(config, tmp_path / "parent", data, resume=True)) == weights(whole)


def test_resume_without_checkpoints_starts(base: Path, data: Path, tmp_path: Path) -> None:
    assert steps(number_config(base), tmp_path / "parent", data, resume=True) == (6, 8)


def test_checkpoints_are_not_taken_up_unasked(base: Path, data: Path, tmp_path: Path) -> None:
    config = number_config(base)
    with pytest.raises(Stop):
        run(config, tmp_path / "parent", data, progress=stop_at(TUNING, 5))
    told: list[Any] = []
    with pytest.raises(ModalloyError) as caught:
        run(config, tmp_path / "parent", data, progress=lambda *a: told.append(a))
    place = tmp_path / "parent.work" / "sight-numbers"
    assert str(caught.value) == (
        f"{place} holds checkpoint-3 of an earlier run; go on from it with resume (--resume), or "
        "remove the directory"
    )
    assert not told  # before anything is encoded or trained


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"tuning_stage": {"learning_rate": 0.01}},
            "tuning_stage.learning_rate was 0.02, now 0.01. Go",
        ),
        ({"tuning_stage": {"steps": 9}}, "tuning_stage.steps was 8, now 9. Go"),
        ({"strategy": "naive"}, "strategy was 'decoupled', now 'naive'. Go"),
        ({"lora": LoraConfig(rank=4, alpha=6)}, "lora.rank was 3, now 4. Go"),
        ({"seed": 1}, "seed was 0, now 1. Go"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    changes: dict[str, Any], text: str, base: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        run(number_config(base), tmp_path / "parent", data, progress=stop_at(TUNING, 5))
    with pytest.raises(ModalloyError) as caught:
        run(number_config(base, **changes), tmp_path / "parent", data, resume=True)
    checkpoint = tmp_path / "parent.work" / "sight-numbers" / "checkpoint-3"
    assert str(caught.value).startswith(f"{checkpoint} is of another configuration: {text}")


def test_a_checkpoint_of_other_data_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(number_config(base), tmp_path / "parent", data, progress=stop_at(TUNING, 5))
    text = (data / "asked.jsonl").read_text(encoding="utf-8")
    (data / "asked.jsonl").write_text(text.replace("it is low", "it is small"), encoding="utf-8")
    with pytest.raises(ModalloyError, match=r"another configuration: tuning_stage\.chats was '"):
        run(number_config(base), tmp_path / "parent", data, resume=True)


def test_what_does_not_matter_may_change(base: Path, data: Path, tmp_path: Path) -> None:
    whole = run(number_config(base), tmp_path / "whole", data)
    with pytest.raises(Stop):
        run(number_config(base), tmp_path / "parent", data, progress=stop_at(TUNING, 5))
    config = number_config(
        base,
        licence="MIT",
        validation=["val.jsonl"],
        tuning_stage={"save_every": 1, "max_loss": 100.0},
    )
    resumed = run(config, tmp_path / "parent", data, resume=True)
    assert weights(resumed) == weights(whole)


def test_a_damaged_record_is_told(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(number_config(base), tmp_path / "parent", data, progress=stop_at(TUNING, 5))
    record = tmp_path / "parent.work" / "sight-numbers" / "stage.json"
    record.write_text("{", encoding="utf-8")
    with pytest.raises(FormatError) as caught:
        run(number_config(base), tmp_path / "parent", data, resume=True)
    assert str(caught.value).startswith(f"{record} cannot be read: ")
    assert str(caught.value).endswith(f"; remove {record.parent} and train anew")


def test_tensors_of_another_shape_are_refused() -> None:
    model = tiny_model()
    state = trained_state(model)
    assert restore(model, state) is None
    name = "model.norm.weight"
    for wrong in ({**state, name: state[name][:1]}, {k: v for k, v in state.items() if k != name}):
        with pytest.raises(ModalloyError) as caught:
            restore(model, wrong)
        assert str(caught.value) == (
            f"the checkpoint is of another configuration: it differs in {name}; remove the work "
            "directory and train anew"
        )


def test_a_finished_connector_serves_a_second_parent(
    base: Path, data: Path, tmp_path: Path
) -> None:
    config, work = number_config(base), tmp_path / "work"
    alone = run(attrs.evolve(config, strategy="naive"), tmp_path / "alone", data)
    assert steps(config, tmp_path / "first", data, work=work) == (6, 8)
    second = attrs.evolve(
        config,
        name="other",
        strategy="naive",
        connector_stage=attrs.evolve(config.connector_stage, save_every=5, max_loss=50.0),
    )
    assert steps(second, tmp_path / "second", data, work=work) == (0, 8)
    found = train_module.read_json(tmp_path / "second" / "parent.json")
    assert {n: found["files"][n] for n in weights(alone)} == weights(alone)
    assert (
        found["training"]["results"]["connector_stage"]["loss"]
        == (alone.training["results"]["connector_stage"]["loss"])
    )


def test_its_validation_loss_is_measured_anew_where_it_must_be(
    base: Path, data: Path, tmp_path: Path
) -> None:
    config, work = number_config(base), tmp_path / "work"
    run(config, tmp_path / "first", data, work=work)
    validated = attrs.evolve(config, name="other", validation=["val.jsonl"])
    fresh = run(validated, tmp_path / "fresh", data).training["results"]["connector_stage"]
    taken = run(validated, tmp_path / "second", data, work=work).training["results"]
    assert taken["connector_stage"]["validation_loss"] == fresh["validation_loss"]


def _change_medium(data: Path, base: Path) -> None:
    del base
    (data / "media" / "2.txt").write_text("0.61", encoding="utf-8")


def _change_chats(data: Path, base: Path) -> None:
    del base
    text = (data / "told.jsonl").read_text(encoding="utf-8")
    (data / "told.jsonl").write_text(text.replace('"high"', '"tall"'), encoding="utf-8")


def _change_base(data: Path, base: Path) -> None:
    del data
    shutil.rmtree(base)
    tiny_base(base, seed=4)


@pytest.mark.parametrize("change", [_change_medium, _change_chats, _change_base])
def test_a_connector_is_trained_anew_where_its_material_changed(
    change: Callable[[Path, Path], None], base: Path, data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    run(number_config(base), tmp_path / "first", data, work=work)
    change(data, base)
    assert steps(number_config(base), tmp_path / "second", data, work=work) == (6, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"connector_stage": {"steps": 7}},
        {"connector_stage": {"learning_rate": 0.01}},
        {"encoder": ComponentConfig(type="numbers", config={"gain": 2.0})},
        {"connector": ComponentConfig(type="mlp")},
        {"prefix_tokens": 1},
        {"dtype": "bfloat16"},
    ],
)
def test_a_connector_is_trained_anew_where_its_settings_changed(
    changes: dict[str, Any], base: Path, data: Path, tmp_path: Path
) -> None:
    work, short = tmp_path / "work", {"steps": 0}
    run(number_config(base, tuning_stage=short), tmp_path / "first", data, work=work)
    config = number_config(base, tuning_stage=short, **changes)
    assert steps(config, tmp_path / "second", data, work=work)[0] == config.connector_stage.steps
