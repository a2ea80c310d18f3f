"""The chain of phases: their order, their inputs, and when one counts as done."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.errors import DamagedFile
from stacking.model.config import ModelConfig
from stacking.run.checkpoints import point_latest, tag
from stacking.run.folder import RunFolder
from stacking.run.phases import Phase, phases, starting_state, unfinished
from stacking.storage.files import new_folder
from tests.small_recipe import SMALL, plan_of
from tests.states import random_weights, write_state

TINY = ModelConfig(layers=2, hidden=64, heads=2, intermediate=256, vocabulary=1000, max_positions=64)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def chain(text: str) -> list[Phase]:
    return phases(plan_of(text), RunFolder(Path("run")))


def names(text: str) -> list[str]:
    return [f"{phase.name} {phase.stage}" for phase in chain(text)]


def test_every_stage_is_trained_and_consolidated_and_grown_into_the_next() -> None:
    assert names(SMALL) == [
        *("train 0", "consolidate 0", "grow 1", "train 1", "consolidate 1"),
        *("export 1", "report 1"),
    ]


def test_a_pre_ln_model_is_exported_too() -> None:
    assert "export 1" in names(SMALL.replace("model: {", "model: {variant: pre_ln, "))


def test_each_phase_reads_the_output_of_the_previous_one() -> None:
    train, consolidate, grow, *_ = chain(SMALL)
    assert consolidate.arguments[2] == str(train.output / "global_step10")
    assert grow.arguments[2] == str(consolidate.output)
    assert starting_state(plan_of(SMALL), RunFolder(Path("run")), plan_of(SMALL).stages[1]) == grow.output


def test_a_stage_as_deep_as_the_previous_one_starts_where_that_ended() -> None:
    text = SMALL.replace("layers: 4", "layers: 2")
    plan, run = plan_of(text), RunFolder(Path("run"))
    assert "grow 1" not in names(text)
    assert starting_state(plan, run, plan.stages[1]) == run.stage("0-L2").state


def test_a_state_of_the_first_depth_is_started_from_as_it_is() -> None:
    write_state(Path("state"), TINY, random_weights(TINY))
    text = SMALL + "start: state\n"
    assert names(text) == names(SMALL)
    plan = plan_of(text)
    assert starting_state(plan, RunFolder(Path("run")), plan.stages[0]) == Path("state").absolute()


def test_a_shallower_model_is_grown_first() -> None:
    shallow = TINY.with_layers(1)
    write_state(Path("state"), shallow, random_weights(shallow))
    grow, *rest = chain(SMALL + "start: state\n")
    assert (grow.name, grow.stage, grow.arguments[2]) == ("grow", 0, str(Path("state").absolute()))
    assert [phase.name for phase in rest] == [phase.name for phase in chain(SMALL)]


def test_an_output_counts_as_done_only_while_it_is_undamaged(tmp_path: Path) -> None:
    consolidate = chain(SMALL)[1]
    damages: list[DamagedFile] = []
    assert not consolidate.is_done(damages.append)
    with new_folder(consolidate.output) as folder:
        (folder / "weights").write_text("good")
    assert consolidate.is_done(damages.append) and not damages
    (consolidate.output / "weights").write_text("evil")
    assert not consolidate.is_done(damages.append)
    assert damages[0].path == consolidate.output / "weights"
    assert not consolidate.output.exists()


def test_training_is_done_once_the_checkpoint_of_its_last_step_exists() -> None:
    train = chain(SMALL)[0]
    for step, done in ((8, False), (10, True)):
        with new_folder(train.output / tag(step)) as folder:
            (folder / "model.pt").write_text("")
        point_latest(train.output, train.output / tag(step))
        assert train.is_done(lambda damage: None) is done


MEASURED = SMALL + "attention: {samples: 8}\n"


def test_attention_is_measured_after_every_growth_and_at_the_end_of_every_stage() -> None:
    assert names(MEASURED) == [
        *("train 0", "consolidate 0", "attention-trained 0"),
        *("grow 1", "attention-grown 1", "train 1", "consolidate 1", "attention-trained 1"),
        *("export 1", "report 1"),
    ]
    assert names(SMALL + "attention: null\n") == names(SMALL)


def test_only_measurements_are_optional() -> None:
    assert {phase.name for phase in chain(MEASURED) if phase.optional} == {"attention-trained", "attention-grown"}


def finish(*phases: Phase) -> None:
    for phase in phases:
        with new_folder(phase.output) as folder:
            (folder / "content").write_text("good")


def left(text: str) -> list[str]:
    return [phase.label for phase in unfinished(chain(text), lambda damage: None)]


def test_a_finished_measurement_is_not_repeated() -> None:
    _, consolidate, trained, grow, *_ = chain(MEASURED)
    finish(consolidate, trained)
    assert left(MEASURED)[0] == "grow:1"
    finish(grow)
    assert left(MEASURED)[:2] == ["attention-grown:1", "train:1"]


def test_a_missing_measurement_is_made_up_for_only_until_the_next_phase_is_done() -> None:
    _, consolidate, trained, grow, *_ = chain(MEASURED)
    finish(consolidate)
    assert left(MEASURED)[:2] == ["attention-trained:0", "grow:1"]
    finish(grow)
    assert trained.label not in left(MEASURED)


def test_a_measurement_does_not_vouch_for_what_it_measured() -> None:
    _, consolidate, trained, *_ = chain(MEASURED)
    finish(consolidate, trained)
    (consolidate.output / "content").write_text("evil")
    assert left(MEASURED)[:3] == ["train:0", "consolidate:0", "grow:1"]
