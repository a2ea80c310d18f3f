"""One stage under real DeepSpeed ranks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stacking.run.create import create_run
from stacking.run.folder import RunFolder
from stacking.run.metrics import read_metrics
from stacking.state.format import MOMENTS, WEIGHTS
from stacking.state.zero import ZeroCheckpoint
from tests.chain import stacking, train_alone, write_recipe
from tests.train.ranks import train_first_stages

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

NO_DROPOUT = {"hidden": 32, "heads": 2, "intermediate": 64, "max_positions": 64, "dropout": 0, "attention_dropout": 0}


def recipe_of_one_stage(
    folder: Path, data: Path, ranks: int, micro_batch: int, zero_stage: int = 2, **changes: Any
) -> Path:
    folder.mkdir()
    stage = {
        "layers": 2,
        "steps": 6,
        "batch_sequences": 16,
        "micro_batch": micro_batch,
        "learning_rate": {"peak": 2e-3, "end": 0, "warmup_steps": 2},
    }
    changes = {
        "model": NO_DROPOUT,
        "stages": [stage],
        "launch": {"ranks": ranks, "accelerator": "cpu"},
        "ds_config": {"zero_optimization": {"stage": zero_stage}},
    } | changes
    return write_recipe(folder, data, **changes)


def losses(records: list[dict[str, Any]], kind: str = "train") -> list[float]:
    return [record["loss"] for record in records if record["kind"] == kind]


MONITORED = {
    "zero_optimization": {"stage": 1},
    "csv_monitor": {"enabled": True, "output_path": "{folder}/csv", "job_name": "job"},
    "tensorboard": {"enabled": True, "output_path": "{folder}/tensorboard", "job_name": "job"},
}
SPLITS = [(1, 2, 1), (2, 8, 0), (2, 2, 2), (2, 4, 3)]
"""Ranks, micro-batch and ZeRO stage."""


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """The folder of each run; the ranks of those with the same number of ranks start once."""
    folder = tmp_path_factory.mktemp("trained")
    monitored = json.loads(json.dumps(MONITORED).replace("{folder}", str(folder)))
    runs: dict[Any, tuple[int, Path]] = {
        "reference": (1, recipe_of_one_stage(folder / "reference", data, ranks=1, micro_batch=16, zero_stage=0)),
        "monitored": (1, recipe_of_one_stage(folder / "monitored", data, 1, 16, ds_config=monitored)),
        "bf16": (2, recipe_of_one_stage(folder / "bf16", data, 2, 4, precision="bf16")),
        **{split: (split[0], recipe_of_one_stage(folder / f"{split}", data, *split)) for split in SPLITS},
    }
    found = {name: recipe.parent / "run" for name, (_, recipe) in runs.items()}
    for name, (_, recipe) in runs.items():
        create_run(str(recipe), RunFolder(found[name]))
    for ranks in (1, 2):
        train_first_stages(ranks, [found[name] for name, (size, _) in runs.items() if size == ranks])
    return found


def records_of(run: Path) -> list[dict[str, Any]]:
    return read_metrics(RunFolder(run).stage("0-L2").metrics)


@pytest.fixture(scope="module")
def reference(trained: dict[Any, Path]) -> list[dict[str, Any]]:
    """One rank, the whole batch at once, no ZeRO."""
    return records_of(trained["reference"])


@pytest.mark.parametrize("split", SPLITS)
def test_the_losses_do_not_depend_on_how_the_batch_is_split(
    reference: list[dict[str, Any]], trained: dict[Any, Path], split: tuple[int, int, int]
) -> None:
    records = records_of(trained[split])
    assert losses(records) == pytest.approx(losses(reference), rel=2e-5)
    assert losses(records, "evaluation") == pytest.approx(losses(reference, "evaluation"), rel=2e-5)


def test_training_learns_and_reports_its_progress(reference: list[dict[str, Any]]) -> None:
    train = [record for record in reference if record["kind"] == "train"]
    assert train[-1]["loss"] < train[0]["loss"] - 0.05
    assert [record["step"] for record in train] == [1, 2, 3, 4, 5, 6]
    assert train[-1]["padded_tokens"] == 6 * 16 * 32 and train[-1]["samples"] == 6 * 16
    assert 6 * 16 * 8 < train[-1]["tokens"] < 6 * 16 * 32
    assert [record["learning_rate"] for record in train][:3] == pytest.approx([0, 1e-3, 2e-3])
    assert [record["step"] for record in reference if record["kind"] == "evaluation"] == [3, 6]


def test_a_record_after_a_stop_is_the_mean_over_all_of_its_updates(data: Path, tmp_path: Path) -> None:
    """The stop is simulated: the run goes back to a checkpoint after update 3, between the records of 2 and of 4."""
    settings = {"checkpoint": {"every_steps": 3, "keep": 2}, "log_every": 4}
    recipe = recipe_of_one_stage(tmp_path / "r", data, ranks=2, micro_batch=4, **settings)
    expected = [record for record in train_alone(tmp_path / "run", recipe) if record["kind"] == "train"]
    stacking("resume", tmp_path / "run", "--from-step", "3")
    lines = (tmp_path / "run" / "0-L2" / "metrics.jsonl").read_text().splitlines()
    found = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    assert [(record["step"], record["updates"]) for record in found] == [(4, 4), (6, 2)]
    assert losses(found) == losses(expected)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_diverging_run_keeps_its_good_checkpoint_and_is_not_repeated(
    data: Path, tmp_path: Path, zero_stage: int
) -> None:
    """The first update has a learning rate of 0, the second ruins the weights, though they are finite."""
    stage = {"layers": 1, "steps": 30, "batch_sequences": 8, "learning_rate": {"peak": 1e30, "warmup_steps": 20}}
    recipe = recipe_of_one_stage(
        tmp_path / "r", data, 2, 4, zero_stage, stages=[stage], checkpoint={"every_steps": 1, "keep": 1}, log_every=20
    )
    run = tmp_path / "run"
    first = stacking("run", recipe, "--run-dir", run, check=False)
    (kept,) = (run / "0-L1" / "checkpoints").glob("global_step*")
    assert first.returncode == 3 and kept.name == "global_step1"
    assert f"{kept} is good" in first.stderr and f"`stacking resume {run} --from-step 1`" in first.stderr
    source = ZeroCheckpoint(kept)
    assert all(np.isfinite(source.read(kind, name)).all() for kind in (WEIGHTS, *MOMENTS) for name in source.names)
    assert "tried again" not in first.stderr and "trying again" not in first.stderr

    again = stacking("resume", run, check=False)
    assert again.returncode == 3 and again.stderr.startswith("stacking: not resumed: 0-L1: ")
    assert len(list((run / "0-L1" / "logs").glob("train-*.rank0.log"))) == 1


def test_bf16_follows_fp32_closely(reference: list[dict[str, Any]], trained: dict[Any, Path]) -> None:
    assert losses(records_of(trained["bf16"])) == pytest.approx(losses(reference), rel=0.01)


def test_deepspeeds_monitor_gets_the_losses(trained: dict[Any, Path]) -> None:
    records, folder = records_of(trained["monitored"]), trained["monitored"].parent.parent
    with open(folder / "csv" / "job" / "0-L2" / "train_loss.csv") as file:
        rows = list(csv.reader(file))[1:]
    assert [float(value) for _, value in rows] == pytest.approx(losses(records))
    assert list((folder / "tensorboard" / "job" / "0-L2").glob("events.out.tfevents*"))
