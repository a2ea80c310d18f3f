"""Choosing the operator by trial: the best candidate starts the stage, as if the recipe had named it."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from stacking.run.decisions import settled_plan, trial_losses
from stacking.run.folder import RunFolder
from stacking.state.format import State
from tests.chain import stacking, start, write_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STAGES = [
    {"layers": 2, "batch_sequences": 8, "micro_batch": 2, "steps": 4, "learning_rate": {"peak": 1e-3}},
    {"layers": 4, "steps": 4},
]
CANDIDATES = ["stack", "interleave", "identity"]
TRIED: dict[str, Any] = {
    "stages": STAGES,
    "growth": {
        "operator": "trial",
        "trial": {"steps": 3, "operators": CANDIDATES},
        "optimizer_state": "keep-old",
        "new_layers": {"rewarmup_steps": 2},
    },
}


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose controller and ranks are killed in the middle of the trial, and that is then resumed."""
    folder = tmp_path_factory.mktemp("trial")
    run = RunFolder(folder / "run")
    process = start("run", write_recipe(folder, data, **TRIED), "--run-dir", run.path)
    second = run.stage("1-L4").trial(CANDIDATES[1])
    deadline = time.monotonic() + 120
    while not second.exists() and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert not run.stage("1-L4").start.exists()
    stacking("resume", run.path)
    return run


def test_the_best_candidate_starts_the_stage(finished: RunFolder) -> None:
    plan = settled_plan(finished)
    losses = trial_losses(finished, plan.stages[1])
    assert list(losses) == CANDIDATES and len(set(losses.values())) == 3
    best = min(losses, key=lambda operator: losses[operator])
    assert plan.stages[1].growth is not None and plan.stages[1].growth.operator == best
    (decided,) = [event for event in finished.journal.events() if event["event"] == "decided"]
    assert (decided["operator"], decided["losses"]) == (best, losses)


def test_the_stage_trains_as_if_the_recipe_had_named_the_operator(
    finished: RunFolder, data: Path, tmp_path: Path
) -> None:
    growth = settled_plan(finished).stages[1].growth
    assert growth is not None
    named = {**TRIED["growth"], "operator": growth.operator}
    del named["trial"]
    stacking("run", write_recipe(tmp_path, data, stages=STAGES, growth=named), "--run-dir", tmp_path / "run")
    states = [State(run.stage("1-L4").state) for run in (finished, RunFolder(tmp_path / "run"))]
    assert states[0].digest == states[1].digest


def test_a_finished_candidate_is_not_trained_again(finished: RunFolder) -> None:
    """The first one had its result before the signal, so its metrics have one record of each update."""
    plan = settled_plan(finished)
    path = finished.stage("1-L4").trial(CANDIDATES[0])
    stopped = next(event["time"] for event in finished.journal.events() if event["event"] == "preempted")
    assert path.stat().st_mtime < stopped
    assert len(trial_losses(finished, plan.stages[1])) == 3


def test_the_report_and_the_status_show_the_operator(finished: RunFolder) -> None:
    growth = settled_plan(finished).stages[1].growth
    assert growth is not None
    assert growth.operator in finished.report.read_text(encoding="utf-8")
    assert "finished" in stacking("status", finished.path).stdout
