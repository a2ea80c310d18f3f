"""`stacking plan` with its predictions, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stacking.config.recipe import load_recipe
from stacking.estimate.setting import open_setting
from stacking.hardware.machine import Machine
from stacking.hardware.presets import device_class
from stacking.planning.make_plan import make_plan
from tests.chain import stacking
from tests.estimate.plans import bench_file, bench_stage, shipped


def test_times_and_costs_are_in_the_table() -> None:
    text = stacking("plan", "bert-large-a100", "--price", "2.5").stdout
    for words in ("update", "training", "GPU hours", "cost, 2.5 an hour", "assumed", "24 layers from the start"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_plan_that_grows_early_shows_what_growing_late_would_take() -> None:
    late = "2 layers for 80% of the sequences, then 12, would take 36% of it"
    assert late in stacking("plan", "bert-base-v100").stdout
    assert "would take" not in stacking("plan", "demo").stdout.replace("from the start would take", "")


def test_the_json_contains_the_plan_the_prediction_and_the_table() -> None:
    found = json.loads(stacking("plan", "demo", "--json", "--scaling", "--price", "1").stdout)
    assert (found["name"], found["format"]) == ("demo", 1)
    prediction = found["prediction"]
    assert prediction["seconds"] == pytest.approx(sum(stage["seconds"] for stage in prediction["stages"]))
    assert len(found["scaling"]["rows"]) == 11
    assert found["scaling"]["assumptions"]


def test_a_benchmark_replaces_the_tables(tmp_path: Path) -> None:
    plan = shipped("books-cpu")
    file = bench_file(tmp_path / "bench.json", [bench_stage(plan, stage) for stage in plan.stages])
    text = stacking(
        "plan", "books-cpu", "--measured", file, "--set", "launch.ranks=2", "--set", "precision=fp32"
    ).stdout
    assert f"measured: {file}" in text.replace("\n", "")
    assert "assumed: two 256-bit" not in text


def test_mistakes_are_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    wrong = {
        ("--price", "-1"): "--price: is -1; give the price of one GPU hour",
        ("--price", "nan"): "--price: is nan",
        ("--measured", tmp_path / "x.json"): "is not the JSON of a benchmark",
        ("--measured", tmp_path / "y.json"): "y.json",
        ("--network", tmp_path / "x.json"): "is not the JSON of a doctor",
        ("--network", tmp_path): str(tmp_path),
    }
    for (option, value), words in wrong.items():
        done = stacking("plan", "demo", option, value, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr and done.stderr.count("\n") == 1


def test_a_device_without_a_row_has_no_times() -> None:
    unknown = Machine(1, device_class("Quadro X", 1 << 34, 8.6), 1 << 34, 8)
    plan = make_plan(load_recipe("demo"), None, None, unknown)
    assert open_setting(plan, unknown) is None
