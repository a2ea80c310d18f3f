"""A whole comparison with real ranks: killed midway, finished, reported again, and recomputed from raw metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from stacking.report.run import read_run
from tests.chain import ENVIRONMENT, prepare_text, stacking

pytestmark = [pytest.mark.slow, pytest.mark.distributed(ranks=1)]


def write_recipe(folder: Path, name: str, depths: list[int], steps: list[int], operator: str = "stack") -> Path:
    stages: list[dict[str, Any]] = [{"layers": d, "steps": s} for d, s in zip(depths, steps, strict=True)]
    stages[0]["batch_sequences"] = 4
    recipe = {
        "data": {"samples": "packed", "sequence_length": 32},
        "model": {"variant": "pre_ln", "hidden": 32, "heads": 2, "max_positions": 32, "dropout": 0.0},
        "precision": "fp32",
        "schedule": {"kind": "warmup-stable-decay", "peak": 1e-3, "warmup_steps": 4, "decay_share": 0.2},
        "growth": {"operator": operator, "optimizer_state": "copy-keep-step"},
        "stages": stages,
        "launch": {"ranks": 1, "accelerator": "cpu"},
        "checkpoint": {"every_steps": 5, "keep": 9},
        "evaluation": {"every_steps": 4, "samples": 16},
        "log_every": 2,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def kill_in(run: Path, argv: list[str]) -> None:
    """Starts the comparison and kills all of its processes once ``run`` has metrics."""
    with subprocess.Popen(
        argv, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not any(run.glob("*/metrics.jsonl")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)


def test_a_comparison_survives_being_killed_and_its_totals_add_up(tmp_path: Path) -> None:
    data, out = prepare_text(tmp_path), tmp_path / "out"
    scratch = write_recipe(tmp_path, "scratch", [2], [48])
    late = write_recipe(tmp_path, "late", [1, 2], [32, 16])
    arguments = ["compare", scratch, late, "--data", data, "--out", out, "--seeds", "1", "--scale", "0.5", "--json"]
    kill_in(out / "arms" / "late" / "seed-0", [sys.executable, "-m", "stacking", *map(str, arguments)])
    done = stacking(*arguments)
    result = json.loads(done.stdout)
    assert result == json.loads((out / "compare.json").read_text())
    assert "</html>" in (out / "compare.html").read_text(encoding="utf-8")
    assert (result["seeds"], result["pending"], len(result["step_times"])) == ([0], [], 2)
    baseline, grown = result["arms"]
    assert baseline["speedup_wall"]["mean"] == baseline["speedup_flops"]["mean"] == 1.0
    assert (baseline["steps"], grown["steps"]) == ([24], [16, 8])
    for arm in result["arms"]:
        _check_against_raw_metrics(out / "arms" / arm["name"] / "seed-0", arm)
    assert grown["total"]["flops"]["mean"] < baseline["total"]["flops"]["mean"]

    again = stacking(*arguments)
    assert json.loads(again.stdout) == result and again.stderr == ""

    silent = write_recipe(tmp_path, "silent", [1, 2], [32, 16], operator="identity")
    more = stacking("compare", scratch, late, silent, *arguments[3:])
    shared = out / "arms" / "late" / "seed-0"
    assert f"silent, seed 0: begins with update 16 of stage 0-L1 of {shared}" in more.stderr
    arms = json.loads(more.stdout)["arms"]
    assert arms[:2] == result["arms"]
    _check_against_raw_metrics(out / "arms" / "silent" / "seed-0", arms[2])
    for mine, shared_point in zip(arms[2]["runs"][0]["curve"][:4], grown["runs"][0]["curve"][:4], strict=True):
        assert mine == pytest.approx(shared_point, abs=0.1)  # seconds; the time before its first phase is its own
        assert mine["loss"] == shared_point["loss"]
    assert arms[2]["final_loss"] != grown["final_loss"]

    both = stacking(*arguments[:5], "--out", tmp_path / "both", "--seeds", "1", "--scale", "0.25,0.5", "--reuse", out)
    whole = f"late, seed 0: begins with update 8 of stage 1-L2 of {out / 'arms' / 'late' / 'seed-0'}"
    part = f"scratch, seed 0: begins with update 10 of stage 0-L2 of {out / 'arms' / 'scratch' / 'seed-0'}"
    assert whole in both.stderr and part in both.stderr
    lengths = json.loads((tmp_path / "both" / "lengths.json").read_text())["lengths"]
    assert [length["scale"] for length in lengths] == [0.25, 0.5]
    assert [arm["tokens"] for arm in lengths[0]["arms"]] == [arm["tokens"] / 2 for arm in lengths[1]["arms"]]
    assert lengths[1]["arms"][1]["final_loss"] == grown["final_loss"]
    assert (tmp_path / "both" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert both.stdout.count("scratch") == both.stdout.count("late") == 2

    refused = stacking(*arguments, "--set", "optimizer.clip=0.5", check=False)
    assert refused.returncode == 2 and "was trained with other settings" in refused.stderr


def _check_against_raw_metrics(run_dir: Path, arm: dict[str, Any]) -> None:
    """Recomputes what the arm is charged with from the files of the run."""
    run = read_run(run_dir)
    (trained,) = arm["runs"]
    evaluations = run.records("evaluation")
    assert [point["loss"] for point in trained["curve"]] == [record["loss"] for record in evaluations]
    flops = sum(stage.flops for stage in run.plan.stages)
    assert arm["total"]["flops"]["mean"] == pytest.approx(flops)
    assert all(early["wall"] < late["wall"] for early, late in pairwise(trained["curve"]))
    assert all(early["rebuilt"] < late["rebuilt"] for early, late in pairwise(trained["curve"]))
    updates = sum(run.stage_records(stage.index, "train")[-1]["seconds"] for stage in run.plan.stages)
    elapsed = evaluations[-1]["time"] - run.events[0]["time"] - sum(record["seconds"] for record in evaluations)
    assert updates < arm["total"]["wall"]["mean"] <= elapsed + 1e-6
    if not any(event["event"] == "resumed" for event in run.events):
        assert arm["total"]["wall"]["mean"] == pytest.approx(elapsed)
