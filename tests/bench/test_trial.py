"""Whole trials, each in its own processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stacking.bench.trial import OUT_OF_MEMORY, Trial, TrialResult, read_trial, run_trial
from stacking.cli.bench import bench
from stacking.errors import UserError
from stacking.launch.job import Fate, Job, Outcome, RunningJob
from stacking.launch.registry import open_launcher
from tests.chain import prepare_text
from tests.small_recipe import SMALL, plan_of

TINY = "model={hidden: 32, heads: 2, vocabulary: 1000, max_positions: 64}"
PYTHONPATH = str(Path(__file__).parents[2])


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    plan = plan_of(SMALL, overrides=[TINY])
    contenders = ("stacking", "hugging-face", "checkpointing")
    return Trial(plan=plan, contenders=contenders, warmup=1, steps=2, repeats=2, ragged=True)


@pytest.mark.distributed
@pytest.mark.slow
def test_contenders_alternate_and_do_the_same_work(small: Trial, tmp_path: Path) -> None:
    result = run_trial(small, tmp_path / "trial", open_launcher("local"), limit_seconds=200)
    assert result.outcome == "measured", result.message
    ours, theirs, recomputed = (result.measurements[name] for name in small.contenders)
    assert recomputed.step_real_tokens == ours.step_real_tokens
    assert ours.chosen["activation checkpointing"] == "no"
    assert recomputed.chosen["activation checkpointing"] == "each layer"
    assert len(ours.step_seconds) == len(theirs.step_seconds) == 4
    assert ours.step_real_tokens == theirs.step_real_tokens
    assert ours.flops_per_step == theirs.flops_per_step
    assert (ours.sequences_per_step, ours.tokens_per_step) == (8, 256)
    assert ours.real_tokens_per_step < 256
    assert all(seconds > 0 for seconds in (*ours.step_seconds, *ours.split.values(), *theirs.split.values()))
    assert "Adam" in ours.chosen["optimizer"]
    assert "attention" in theirs.chosen
    assert result.hardware["peak_tflops"] == result.hardware["gemm_tflops"] > 0
    assert result.hardware["threads_per_rank"] == 1


@pytest.mark.distributed(ranks=1)
@pytest.mark.slow
def test_the_command_prints_json(small: Trial, tmp_path: Path) -> None:
    options = {"--hidden": 32, "--layers": 1, "--sequence-length": 16, "--micro-batch": 2, "--steps": 1, "--repeats": 2}
    data = prepare_text(tmp_path)
    words = [str(word) for option in options.items() for word in option]
    ran = CliRunner().invoke(bench, [*words, "--data", str(data), "--json"])
    assert ran.exit_code == 0, ran.output
    stage = json.loads(ran.stdout)["stages"][0]
    assert (stage["layers"], stage["data"], stage["ranks"]) == (1, "segment-pair", 1)
    assert stage["measurements"]["stacking"]["tokens_per_second"] > 0


class Ended:
    """A launcher whose jobs have already ended, or never end."""

    unattended = False
    overlaps = False

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code, self.killed = exit_code, False

    def capacity(self, accelerator: str) -> int | None:
        return None

    def requeue(self) -> Fate:
        return Fate()

    def start(self, job: Job, inherited: object = ()) -> RunningJob:
        self.job = job
        return self  # type: ignore[return-value]

    def poll(self) -> Outcome | None:
        return None if self.exit_code is None else Outcome(exit_code=self.exit_code, log=self.job.log(0))

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize(
    ("exit_code", "outcome"), [(OUT_OF_MEMORY, "out-of-memory"), (-9, "out-of-memory"), (1, "failed"), (2, "failed")]
)
def test_the_exit_code_of_a_rank_determines_the_outcome(
    small: Trial, tmp_path: Path, exit_code: int, outcome: str
) -> None:
    result = run_trial(small, tmp_path / "trial", Ended(exit_code))
    assert result.outcome == outcome
    assert "rank 0" in result.message


class Choosy(Ended):
    """A launcher whose jobs fail while a contender starts, and measure otherwise."""

    def __init__(self, refused: str) -> None:
        super().__init__(None)
        self.refused = refused

    def start(self, job: Job, inherited: object = ()) -> RunningJob:
        folder = Path(job.argv[-1])
        fails = self.refused in read_trial(folder).contenders
        self.exit_code = 1 if fails else 0
        job.log(0).write_text("RuntimeError: no kernel\n")
        (folder / "starting.txt").write_text(self.refused if fails else "")
        (folder / "result.json").write_text(TrialResult(outcome="measured").model_dump_json())
        return super().start(job)


def test_a_contender_that_cannot_start_loses_only_its_own_cell(small: Trial, tmp_path: Path) -> None:
    result = run_trial(small, tmp_path / "trial", Choosy("hugging-face"))
    assert result.outcome == "measured" and list(result.lost) == ["hugging-face"]
    log = tmp_path / "trial" / "logs-hugging-face" / "bench.rank0.log"
    assert f"(log: {log})" in result.lost["hugging-face"] and "no kernel" in log.read_text()


def test_a_trial_whose_first_contender_cannot_start_fails(small: Trial, tmp_path: Path) -> None:
    result = run_trial(small, tmp_path / "trial", Choosy("stacking"))
    assert (result.outcome, result.lost) == ("failed", {})


def test_a_trial_that_takes_too_long_is_stopped(small: Trial, tmp_path: Path) -> None:
    launcher = Ended(None)
    result = run_trial(small, tmp_path / "trial", launcher, limit_seconds=0.01)
    assert result == TrialResult(outcome="failed", message="took longer than 0.01 s")
    assert launcher.killed


def test_a_stale_result_is_not_taken_for_a_new_one(small: Trial, tmp_path: Path) -> None:
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "result.json").write_text(TrialResult(outcome="measured").model_dump_json())
    assert run_trial(small, tmp_path / "trial", Ended(1)).outcome == "failed"


@pytest.mark.slow
def test_running_out_of_memory_is_distinguished_from_other_failures(tmp_path: Path) -> None:
    script = "from stacking.bench.worker import ran_out_of_memory as r; import torch; " + (
        "print(r(torch.OutOfMemoryError('CUDA out of memory')), r(MemoryError()), "
        "r(RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')), r(RuntimeError('size mismatch')))"
    )
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "DS_ACCELERATOR": "cpu"}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "True True True False"


def test_checkpointing_is_not_compared_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(SMALL + "ds_config: {stacking: {activation_checkpointing: true}}\n")
    ran = CliRunner().invoke(bench, ["recipe.yaml", "--against", "checkpointing"])
    assert isinstance(ran.exception, UserError) and "compares nothing" in str(ran.exception)
