"""The pause between two stages of a run, as its records tell it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from stacking.run.folder import RunFolder
from stacking.run.metrics import MetricsWriter
from tools.benchmarks import relaunch
from tools.benchmarks.relaunch import Pauses, pause


def test_the_pause_reaches_from_the_last_update_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SimpleNamespace(stages=[SimpleNamespace(name="0-L2"), SimpleNamespace(name="1-L4")])
    monkeypatch.setattr(relaunch, "load_plan", lambda _: plan)
    run = RunFolder(tmp_path)
    write(run, "0-L2", train(step=1, time=90.0, seconds=1.0), train(step=2, time=100.0, seconds=11.0))
    write(run, "1-L4", train(step=1, time=109.5, seconds=2.5), train(step=2, time=112.0, seconds=5.0))
    assert pause(run) == 7.0


def test_the_ratio_is_that_of_the_medians() -> None:
    assert Pauses("tiny", 2, pauses=[3.0, 9.0, 4.0], copies=[1.0, 2.0, 8.0]).ratio == 2.0


def train(step: int, time: float, seconds: float) -> dict[str, object]:
    return {"kind": "train", "step": step, "time": time, "seconds": seconds}


def write(run: RunFolder, stage: str, *records: dict[str, object]) -> None:
    path = run.stage(stage).metrics
    path.parent.mkdir(parents=True)
    with MetricsWriter(path) as writer:
        for record in records:
            writer.append(record)
