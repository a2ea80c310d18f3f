"""A small real run for tests: real English text, real DeepSpeed ranks, everything through the command line."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml

from stacking.launch.job import Job
from stacking.launch.local import Local
from stacking.launch.outcome import describe
from stacking.planning.plan import Plan
from stacking.run.create import create_run
from stacking.run.folder import RunFolder
from stacking.run.metrics import read_metrics
from stacking.run.phases import phases

SHARED = "STACKING_TESTS_SHARED"
"""The variable that names the folder of what all workers of a test session share."""
ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def stacking(
    *arguments: str | Path, check: bool = True, environment: Mapping[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    argv = [sys.executable, "-m", "stacking", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=300)
    assert not check or done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}\n{done.stderr}"
    return done


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command line and return at once."""
    argv = [sys.executable, "-m", "stacking", *map(str, arguments)]
    return subprocess.Popen(argv, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def prepare_text(folder: Path) -> Path:
    """Python's own language reference as prepared data, with a small vocabulary: a copy of what is prepared once."""
    shared = Path(os.environ[SHARED])
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "data").exists():
            _prepare(shared)
    return shutil.copytree(shared / "data", folder / "data")


def _prepare(folder: Path) -> None:
    source = folder / "topics"
    source.mkdir(exist_ok=True)
    for name, text in topics.items():
        (source / f"{name.replace('/', '-')}.txt").write_text(text, encoding="utf-8")
    stacking("prepare", source, "--out", folder / "data", "--vocabulary-size", "1000", "--held-out", "0.05")


def write_recipe(folder: Path, data: Path, **changes: object) -> Path:
    """A recipe that grows 1 → 2 → 4 layers in a few fp32 steps on two ranks."""
    recipe: dict[str, object] = {
        "seed": 7,
        "data": {"path": str(data), "samples": "segment-pair", "sequence_length": 32},
        "model": {"hidden": 32, "heads": 2, "intermediate": 64, "max_positions": 64},
        "precision": "fp32",
        "ds_config": {"zero_optimization": {"stage": 2}},
        "stages": [
            {"layers": 1, "steps": 6, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}},
            {"layers": 2, "steps": 6},
            {"layers": 4, "steps": 6},
        ],
        "growth": {"operator": "stack", "optimizer_state": "copy-keep-step"},
        "launch": {"launcher": "local", "ranks": 2, "accelerator": "cpu"},
        "checkpoint": {"every_steps": 2, "keep": 2},
        "evaluation": {"every_steps": 3, "samples": 16},
        "log_every": 1,
    } | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train_alone(run_dir: Path, recipe: Path, stage: int = 0) -> list[dict[str, Any]]:
    """Create the run and train one stage of it with its ranks, without the other phases; returns its metrics."""
    run = RunFolder(run_dir)
    return train_stage(run, create_run(str(recipe), run), stage)


def train_stage(run: RunFolder, plan: Plan, stage: int) -> list[dict[str, Any]]:
    """Train one stage of a run with its ranks; returns its metrics."""
    phase = next(phase for phase in phases(plan, run) if phase.name == "train" and phase.stage == stage)
    folder = run.stage(plan.stages[stage].name)
    job = Job(
        name="train",
        argv=phase.argv,
        ranks=phase.ranks,
        logs=folder.logs,
        accelerator=plan.launch.accelerator,
        environment={"OMP_NUM_THREADS": "1"},
    )
    running = Local().start(job)
    try:
        while (outcome := running.poll()) is None:
            time.sleep(0.05)
    finally:
        running.kill()
    assert outcome.exit_code == 0, describe(outcome)
    return read_metrics(folder.metrics)
