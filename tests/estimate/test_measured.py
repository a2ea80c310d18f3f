"""Predictions from a benchmark: exact where it was measured, by known laws elsewhere, refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stacking.errors import UserError
from stacking.estimate.communication import bytes_per_update
from stacking.estimate.prediction import Basis, predict
from stacking.estimate.scaling import on_ranks
from tests.estimate.plans import bench_file, bench_stage, seconds_by_law, shipped, tabled

DEMO = shipped("books-cpu", "precision=bf16")


def measured(path: Path, *stages: dict[str, Any]) -> Basis:
    return tabled(DEMO, measured=[bench_file(path / "bench.json", stages)])


def all_stages() -> list[dict[str, Any]]:
    return [bench_stage(DEMO, stage) for stage in DEMO.stages]


def test_a_measured_setting_is_predicted_exactly(tmp_path: Path) -> None:
    found = predict(DEMO, measured(tmp_path, *all_stages()))
    for stage, entry in zip(found.stages, all_stages(), strict=True):
        assert stage.update.seconds == pytest.approx(entry["measurements"]["stacking"]["seconds_per_step"])
        assert stage.update.communication == pytest.approx(0.002)
        assert stage.source == "measured"


def test_an_unmeasured_depth_is_interpolated_from_two_others(tmp_path: Path) -> None:
    found = predict(DEMO, measured(tmp_path, all_stages()[0], all_stages()[2])).stages[1].update
    assert found.forward + found.backward == pytest.approx(seconds_by_law(6, 16))


def test_other_depths_are_scaled_from_a_single_one_by_their_flops(tmp_path: Path) -> None:
    found = predict(DEMO, measured(tmp_path, all_stages()[0]))
    times = [stage.update.forward + stage.update.backward for stage in found.stages]
    per_update = [stage.flops / stage.steps for stage in DEMO.stages]
    assert times[2] / times[0] == pytest.approx(per_update[2] / per_update[0])


def test_an_unmeasured_micro_batch_is_interpolated_from_two_others(tmp_path: Path) -> None:
    small = [bench_stage(DEMO, stage, micro_batch=4, accumulation=4) for stage in DEMO.stages]
    setting = measured(tmp_path, *all_stages(), *small)
    found = predict(on_ranks(DEMO, 4), setting).stages[0].update
    assert found.forward + found.backward == pytest.approx(seconds_by_law(3, 8))


def test_more_ranks_divide_the_optimizers_work(tmp_path: Path) -> None:
    found = predict(on_ranks(DEMO, 8), measured(tmp_path, *all_stages())).stages[0].update
    assert found.optimizer == pytest.approx(0.003 * 2 / 8)


def test_communication_for_other_rank_counts_comes_from_the_network(tmp_path: Path) -> None:
    setting = measured(tmp_path, *[bench_stage(DEMO, stage, ranks=1, accumulation=2) for stage in DEMO.stages])
    assert predict(on_ranks(DEMO, 1), setting).communication_share == 0
    stage = DEMO.stages[0]
    expected = setting.network.seconds("all-reduce", 2 * stage.parameters, 2)
    expected += setting.network.seconds("all-gather", 2 * stage.parameters, 2)
    assert predict(DEMO, setting).stages[0].update.communication == pytest.approx(expected)


def test_communication_at_another_depth_scales_with_its_bytes(tmp_path: Path) -> None:
    found = predict(DEMO, measured(tmp_path, *all_stages()[:2])).stages[2].update
    ratio = bytes_per_update(DEMO.stages[2]) / bytes_per_update(DEMO.stages[1])
    assert found.communication == pytest.approx(0.002 * ratio)


def test_overlapping_parts_still_add_up_to_the_update(tmp_path: Path) -> None:
    entry = bench_stage(DEMO, DEMO.stages[0], communication=0.5)
    whole = entry["measurements"]["stacking"]["seconds_per_step"]
    entry["measurements"]["stacking"]["seconds_per_step"] = whole - 0.4
    found = predict(DEMO, measured(tmp_path, entry)).stages[0].update
    assert found.seconds == pytest.approx(whole - 0.4)
    assert found.communication < 0.12


def test_the_first_updates_take_longer(tmp_path: Path) -> None:
    stages = all_stages()
    stages[0]["warmup_steps"], ours = 2, stages[0]["measurements"]["stacking"]
    ours["warmup_seconds"] = 9 + 2 * ours["seconds_per_step"]
    found = predict(DEMO, measured(tmp_path, *stages)).stages
    assert found[0].outside.warm_up == pytest.approx(9)
    assert found[1].outside.warm_up == 0


def test_stages_may_come_from_several_files(tmp_path: Path) -> None:
    files = [bench_file(tmp_path / f"{n}.json", [entry]) for n, entry in enumerate(all_stages())]
    found = predict(DEMO, tabled(DEMO, measured=files))
    assert found.stages == predict(DEMO, measured(tmp_path, *all_stages())).stages


def test_a_stage_derived_from_another_measurement_is_reported(tmp_path: Path) -> None:
    told = "\n".join(predict(DEMO, measured(tmp_path, *all_stages()[:2])).assumptions)
    assert "2-L12 is derived from a measurement with layers 6" in told
    assert "0-L3 from" not in told


def test_synthetic_samples_are_reported(tmp_path: Path) -> None:
    stages = [{**entry, "data": "synthetic, full length"} for entry in all_stages()]
    told = predict(DEMO, measured(tmp_path, *stages)).assumptions
    assert "the measured samples were synthetic, full length" in told


def test_a_disturbed_measurement_is_reported(tmp_path: Path) -> None:
    stages = all_stages()
    ours = stages[1]["measurements"]["stacking"]
    ours["seconds_per_step"] *= 1.5
    told = [line for line in predict(DEMO, measured(tmp_path, *stages)).assumptions if "measure again" in line]
    assert [line.split(":")[0] for line in told] == ["1-L6"]


def test_a_stage_that_ran_out_of_memory_has_no_measurement(tmp_path: Path) -> None:
    stages = all_stages()
    stages[2] = {**stages[2], "measurements": {}, "outcome": "out-of-memory"}
    found = predict(DEMO, measured(tmp_path, *stages))
    assert found.stages == predict(DEMO, measured(tmp_path, *all_stages()[:2])).stages


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another width": ({"hidden": 256}, "was measured with hidden 256, not 128; measure this recipe: stacking bench"),
    "another length": ({"sequence_length": 128}, "was measured with sequence length 128, not 64"),
    "another precision": ({"precision": "fp16"}, "was measured with precision fp16, not bf16"),
    "another vocabulary": ({"vocabulary": 1000}, "was measured with vocabulary 1000, not 30522"),
    "no layers": ({"layers": 0}, "is not the JSON of a benchmark (stages.0.layers"),
    "no micro-batch": ({"micro_batch": "many"}, "is not the JSON of a benchmark (stages.0.micro_batch"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_benchmark_that_does_not_fit_is_reported_in_one_line(name: str, tmp_path: Path) -> None:
    changes, words = WRONG[name]
    stages = [{**entry, **changes} for entry in all_stages()]
    with pytest.raises(UserError) as caught:
        measured(tmp_path, *stages)
    assert str(caught.value).startswith(f"{tmp_path / 'bench.json'}: {words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "doctor"}, "is not the JSON of a benchmark"),
        ({"format": 2}, "is not the JSON of a benchmark"),
        ({"hardware": {"device": "cuda", "class": "h200"}}, "was measured on h200, but the plan is for cpu"),
        ({"stages": []}, "holds no stage that was measured with 'stacking'"),
        ({"stages": 3}, "is not the JSON of a benchmark (stages"),
    ],
)
def test_a_file_of_another_kind_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = bench_file(tmp_path / "bench.json", all_stages(), changes)
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        tabled(DEMO, measured=[file])


@pytest.mark.parametrize("seconds", [[], 0.0, -1.0, float("nan"), "x", None])
def test_invalid_times_are_refused(seconds: Any, tmp_path: Path) -> None:
    stages = json.loads(json.dumps(all_stages()))
    stages[0]["measurements"]["stacking"]["seconds_per_step"] = seconds
    with pytest.raises(UserError, match="is not the JSON of a benchmark"):
        measured(tmp_path, *stages)
