"""A prediction compared with a finished run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stacking.errors import UserError
from stacking.report.run import Run, read_run
from tests.estimate.plans import bench_file, bench_stage, tabled
from tests.report.synthetic import SyntheticRun
from tools.benchmarks.prediction import as_text, check, worst

TOOL = Path(__file__).parents[2] / "tools" / "check_prediction"


def finished(path: Path) -> Run:
    return read_run(SyntheticRun(path / "run").whole().path)


def perfect(run: Run, path: Path, factor: float = 1.0) -> Path:
    """A benchmark whose updates take as long as the run's: a tenth of a second per layer."""
    stages = [bench_stage(run.plan, stage) for stage in run.plan.stages]
    stages = json.loads(json.dumps(stages))
    for entry in stages:
        entry["measurements"]["stacking"]["seconds_per_step"] = entry["layers"] / 10 * factor
        entry["precision"] = run.plan.stages[0].precision
    return bench_file(path / "bench.json", stages)


def test_a_perfect_benchmark_predicts_the_training(tmp_path: Path) -> None:
    run = finished(tmp_path)
    rows = {row.what: row for row in check(run, tabled(run.plan, measured=[perfect(run, tmp_path)]))}
    assert rows["0-L3 training"].actual == pytest.approx(30)
    for name in ("0-L3 training", "1-L6 training", "2-L12 training", "training"):
        assert rows[name].error == pytest.approx(0, abs=1e-6)
    assert rows["0-L3 start-up"].actual == pytest.approx(5)
    assert rows["1-L6 grow, consolidate"].actual == pytest.approx(4.5)
    assert rows["0-L3 evaluations"].actual == pytest.approx(8)
    parts = sum(row.actual for name, row in rows.items() if name[0].isdigit())
    assert rows["whole run"].actual == pytest.approx(parts + 3, rel=1e-3)  # export and report


def test_an_error_is_reported_with_its_sign(tmp_path: Path) -> None:
    run = finished(tmp_path)
    rows = check(run, tabled(run.plan, measured=[perfect(run, tmp_path, factor=1.5)]))
    assert worst(rows).error == pytest.approx(0.5)
    assert worst(rows).what.endswith("training")
    assert "+50.0%" in as_text(rows)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.train(0)
    with pytest.raises(UserError, match="is not finished"):
        check(read_run(run.path), tabled(run.plan))


def test_an_interrupted_run_does_not_count_as_one_run(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.train(0, last=50)
    run.event("preempted", phase="train", stage=0, attempt=1, seconds=20.0)
    run.event("resumed")
    run.whole()
    with pytest.raises(UserError, match="was interrupted"):
        check(read_run(run.path), tabled(run.plan))


@pytest.mark.parametrize(("factor", "code", "last"), [(1.0, 0, "(allowed 15%)"), (1.5, 1, "+50.0% (allowed 15%)")])
def test_the_tool_says_whether_the_prediction_is_close_enough(
    factor: float, code: int, last: str, tmp_path: Path
) -> None:
    run = finished(tmp_path)
    np.save(run.folder.samples("held_out"), np.zeros((100, 3), dtype=np.int64))
    argv = [sys.executable, str(TOOL), str(run.folder.path), "--measured", str(perfect(run, tmp_path, factor))]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.rstrip().endswith(last)


def test_the_tool_reports_a_mistake_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(TOOL), str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
