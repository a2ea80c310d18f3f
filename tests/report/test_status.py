from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stacking.errors import DamagedFile, UserError
from stacking.report.html import render
from stacking.report.run import read_run
from stacking.report.status import status, watch
from stacking.run.folder import RunFolder, is_locked
from stacking.run.metrics import MetricsWriter, truncate_after
from stacking.storage.files import write_sealed
from tests.report.synthetic import SyntheticRun
from tests.slurm.fake_slurm import FakeSlurm, slurm

__all__ = ["slurm"]


@pytest.fixture
def run(tmp_path: Path) -> SyntheticRun:
    return SyntheticRun(tmp_path / "run")


def test_a_run_that_was_only_created_is_stopped_before_its_first_stage(run: SyntheticRun) -> None:
    now = status(run.path)
    assert (now.state, now.phase, now.stage, now.step, now.loss) == ("stopped", None, 0, 0, None)
    assert now.seconds_left is None


def test_a_held_lock_means_running(run: SyntheticRun) -> None:
    run.train(0, last=40)
    with RunFolder(run.path).locked():
        now = status(run.path)
    assert (now.state, now.phase, now.stage, now.step, now.steps) == ("running", "train", 0, 40, 100)
    # 60 updates at 0.3 s, then 100 at twice and 100 at four times the FLOPs.
    assert now.seconds_left == pytest.approx(60 * 0.3 + 60.0 + 120.0)
    assert now.estimated_end is not None


def test_a_lock_outlives_its_controller_while_a_rank_holds_it(run: SyntheticRun) -> None:
    lock = run.path / "lock"
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    assert is_locked(lock)
    holder.communicate("\n")
    assert not is_locked(lock)


def test_checking_the_lock_does_not_hold_it(run: SyntheticRun) -> None:
    with RunFolder(run.path).locked(patience=0):
        pass
    assert not is_locked(run.path / "lock")
    with RunFolder(run.path).locked(patience=0):
        assert is_locked(run.path / "lock")


def test_a_killed_run_is_stopped_and_says_how_to_resume(run: SyntheticRun) -> None:
    run.train(0, last=40)
    now = status(run.path)
    assert now.state == "stopped"
    assert now.estimated_end is None
    assert f"stacking resume {run.path}" in now.as_text()


@pytest.mark.parametrize("event", ["failed", "preempted"])
def test_an_ending_in_the_journal_determines_the_state(run: SyntheticRun, event: str) -> None:
    run.train(0, last=40)
    run.event(event, phase="train", stage=0, attempt=1, message="rank 1 was killed by SIGKILL")
    now = status(run.path)
    assert now.state == event
    assert now.last_error == ("rank 1 was killed by SIGKILL" if event == "failed" else None)


def test_a_diverged_run_is_not_advised_to_simply_resume(run: SyntheticRun) -> None:
    run.train(0, last=40)
    message = f"not finite after update 40; go back with `stacking resume {run.path} --from-step 20`"
    run.event("failed", phase="train", stage=0, attempt=1, message=message, diverged=True)
    text = status(run.path).as_text()
    assert "failed: train\n" in text and message in text
    run.event("rewound", phase="train", stage=0, step=20)
    assert f"(run `stacking resume {run.path}` to continue)" in status(run.path).as_text()


def test_the_last_preemption_is_reported_even_after_the_run_has_resumed(run: SyntheticRun) -> None:
    run.train(0, last=40)
    assert status(run.path).last_stop is None
    run.event("preempted", phase="train", stage=0, attempt=1, message="stopped by SIGTERM")
    run.train(0, first=41, attempt=2)
    assert str(status(run.path).last_stop).startswith("train of 0-L3, stopped by SIGTERM (")
    assert "last stop   train of 0-L3, stopped by SIGTERM (" in status(run.path).as_text()


def test_a_finished_run_stays_finished_when_resumed(run: SyntheticRun) -> None:
    run.whole()
    run.event("resumed")
    now = status(run.path)
    assert (now.state, now.stage, now.step, now.layers) == ("finished", 2, 100, 12)
    assert now.seconds_left is None
    assert "left" not in now.as_text()


def test_between_stages_the_time_left_covers_the_remaining_stages(run: SyntheticRun) -> None:
    run.train(0)
    run.phase("consolidate", 0, 3.0)
    run.event("started", phase="grow", stage=1, attempt=1)
    now = status(run.path)
    assert (now.phase, now.stage, now.step, now.loss) == ("grow", 1, 0, None)
    assert now.seconds_left == pytest.approx(60.0 + 120.0)


def test_events_of_the_run_as_a_whole_do_not_move_the_stage(run: SyntheticRun) -> None:
    run.train(0, last=40)
    run.event("damaged", phase="verify", stage=-1, message="global_step40 does not match its checksum")
    now = status(run.path)
    assert (now.stage, now.phase, now.step) == (0, "train", 40)
    assert now.last_error == "global_step40 does not match its checksum"


def test_restarts_are_counted(run: SyntheticRun) -> None:
    run.train(0, last=40)
    run.event("resumed")
    run.train(0, first=41, attempt=2)
    run.event("started", phase="consolidate", stage=0, attempt=1)
    assert status(run.path).restarts == 1


def test_the_dictionary_is_plain_json_even_when_the_loss_is_not_a_number(run: SyntheticRun) -> None:
    run.train(0, last=40, nan_at=[40])
    now = status(run.path)
    assert now.loss is not None and math.isnan(now.loss)
    text = json.dumps(now.as_dict(), allow_nan=False)
    assert json.loads(text)["loss"] is None
    assert "not a number" in now.as_text()


SUBMITTED = [("0-L3", 11, "train:0"), ("0-L3-to-1-L6", 12, "consolidate:0,grow:1"), ("1-L6", 13, "train:1")]


@pytest.fixture
def submitted(run: SyntheticRun) -> SyntheticRun:
    RunFolder(run.path).scripts.mkdir()
    for name, job, phases in SUBMITTED:
        run.event("submitted", job=job, name=name, mode="per-stage", phases=phases)
    return run


def test_a_queued_run_says_why_it_waits(submitted: SyntheticRun, slurm: FakeSlurm) -> None:
    lines = [
        "11|PENDING|gpu||0:00|2026-01-02T03:04:05|Resources|a|/run",
        "12|PENDING|cpu||0:00|N/A|Dependency|b|/run",
    ]
    slurm.answers("squeue", stdout="\n".join(lines) + "\n")
    now = status(submitted.path)
    assert now.state == "queued"
    assert [(job.name, job.state, job.reason) for job in now.jobs] == [
        ("0-L3", "PENDING", "Resources"),
        ("0-L3-to-1-L6", "PENDING", "Dependency"),
        ("1-L6", None, None),
    ]
    text = now.as_text()
    assert "11  0-L3              pending (Resources), expected 2026-01-02 03:04:05" in text
    assert "13  1-L6              no longer known to SLURM" in text
    assert json.loads(json.dumps(now.as_dict()))["jobs"][0]["id"] == 11


def test_the_phase_that_waits_is_named(submitted: SyntheticRun, slurm: FakeSlurm) -> None:
    submitted.train(0)
    slurm.answers(
        "squeue", stdout="12|PENDING|cpu||0:00|N/A|Priority|b|/run\n13|PENDING|gpu||0:00|N/A|Dependency|c|/run\n"
    )
    assert "state       queued: consolidate" in status(submitted.path).as_text()
    submitted.transition(0)
    slurm.answers("squeue", stdout="13|PENDING|gpu||0:00|N/A|Priority|c|/run\n")
    now = status(submitted.path)
    assert (now.phase, now.stage, now.step) == ("train", 1, 0)


@pytest.mark.parametrize("by", ["stacking cancel", "scancel"])
def test_a_cancelled_run_is_distinguished_from_one_that_stopped(
    submitted: SyntheticRun, slurm: FakeSlurm, by: str
) -> None:
    submitted.train(0, last=40)
    if by == "stacking cancel":
        submitted.event("cancelled", jobs=[11, 12, 13])
    submitted.event("preempted", phase="train", stage=0, attempt=1, message="stopped by SIGTERM")
    lines = [f"{job}|CANCELLED|gpu||0:00|N/A|None|a|/run\n" for job in (11, 12, 13)]
    slurm.answers("squeue", stdout="" if by == "stacking cancel" else "".join(lines))
    now = status(submitted.path)
    assert now.state == "cancelled" and "to continue)" in now.as_text()


def test_a_finished_run_does_not_show_what_went_wrong_before(run: SyntheticRun) -> None:
    run.train(0, last=40)
    run.event("failed", phase="train", stage=0, attempt=1, message="rank 0 was killed")
    run.event("preempted", phase="train", stage=0, attempt=2, message="stopped by SIGTERM")
    run.whole()
    now = status(run.path)
    assert (now.state, now.last_error, now.last_stop) == ("finished", None, None)


def test_a_run_working_elsewhere_names_its_nodes(submitted: SyntheticRun, slurm: FakeSlurm) -> None:
    slurm.answers("squeue", stdout="11|RUNNING|gpu|n[1-2]|1:02:03|2026-01-02T03:04:05|None|a|/run\n")
    now = status(submitted.path)
    assert (now.state, now.jobs[0].nodes, now.jobs[0].elapsed) == ("running", "n[1-2]", "1:02:03")
    assert "running on n[1-2], 1:02:03" in now.as_text()


def test_a_job_that_slurm_forgot_is_completed_if_its_phases_are(submitted: SyntheticRun, slurm: FakeSlurm) -> None:
    slurm.answers("squeue", stderr="slurm_load_jobs error: Invalid job id specified", code=1)
    submitted.train(0)
    assert [job.state for job in status(submitted.path).jobs] == ["COMPLETED", None, None]


def test_a_chain_that_can_never_continue_is_not_queued(submitted: SyntheticRun, slurm: FakeSlurm) -> None:
    slurm.answers("squeue", stdout="12|PENDING|gpu||0:00|N/A|DependencyNeverSatisfied|a|/run\n")
    submitted.train(0, last=40)
    submitted.event("failed", phase="train", stage=0, attempt=1, message="rank 1 was killed by SIGKILL")
    now = status(submitted.path)
    assert now.state == "failed"
    assert f"run `stacking submit --resume {submitted.path}` to continue" in now.as_text()


def test_without_slurm_the_state_is_unknown_with_the_reason(submitted: SyntheticRun, slurm: FakeSlurm) -> None:
    now = status(submitted.path)
    assert now.state == "unknown" and now.queue_error is not None
    assert "to continue" not in now.as_text() and "unknown: squeue: is not on this machine" in now.as_text()


AWAY = {"stderr": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", "code": 1}


def test_while_slurm_is_unreachable_the_last_known_states_are_reported(
    submitted: SyntheticRun, slurm: FakeSlurm
) -> None:
    slurm.answers(
        "squeue", stdout="11|PENDING|gpu||0:00|N/A|Resources|a|/run\n12|PENDING|gpu||0:00|N/A|Dependency|b|/run\n"
    )
    watched = watch(submitted.path, every=0.0)
    assert status(submitted.path).state == "queued"
    slurm.answers("squeue", **AWAY)  # type: ignore[arg-type]
    now = next(watched)
    assert (now.state, [job.state for job in now.jobs]) == ("queued", ["PENDING", "PENDING", "UNKNOWN"])
    assert "since SLURM does not answer: squeue: slurm_load_jobs error: Unable to contact" in now.as_text()
    assert "to continue" not in now.as_text()


def test_how_a_job_ended_is_remembered_when_slurm_has_forgotten_it(submitted: SyntheticRun, slurm: FakeSlurm) -> None:
    slurm.answers("squeue", stdout="11|OUT_OF_MEMORY|gpu|n1|1:00|N/A|OutOfMemory|a|/run\n")
    status(submitted.path)
    slurm.answers("squeue", stderr="slurm_load_jobs error: Invalid job id specified", code=1)
    assert status(submitted.path).jobs[0].state == "OUT_OF_MEMORY"


def test_a_job_that_never_reached_its_controller_is_reported_with_its_log(
    submitted: SyntheticRun, slurm: FakeSlurm
) -> None:
    slurm.answers("squeue", stdout="11|FAILED|gpu|n1|0:01|N/A|JobLaunchFailure|a|/run\n")
    now = status(submitted.path)
    log = submitted.path / "slurm" / "0-L3.11.log"
    words = f"job 11 (0-L3) ended as FAILED, JobLaunchFailure before its controller started; see {log}"
    assert (now.state, now.last_error) == ("failed", words)
    submitted.event("resumed", job=11)
    assert status(submitted.path).last_error is None


def test_a_run_that_was_not_submitted_does_not_ask_slurm(run: SyntheticRun, slurm: FakeSlurm) -> None:
    assert (status(run.path).jobs, slurm.calls()) == ((), [])


def test_watching_ends_when_the_run_is_idle(run: SyntheticRun) -> None:
    with RunFolder(run.path).locked():
        watched = watch(run.path, every=0.0)
        assert [next(watched).state for _ in range(2)] == ["running", "running"]
    assert [now.state for now in watched] == ["stopped"]


def test_what_is_not_a_run_directory_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="--run-dir"):
            status(path)


def test_a_run_without_a_journal_is_located_by_its_metrics(run: SyntheticRun) -> None:
    run.train(0)
    run.train(1, last=30)
    (run.path / "journal.jsonl").unlink()
    now = status(run.path)
    assert (now.state, now.stage, now.step) == ("stopped", 1, 30)
    assert "journal     is empty or missing" in now.as_text()


def test_altered_lines_of_the_journal_are_reported_and_ignored(run: SyntheticRun) -> None:
    run.train(0, last=40)
    journal = run.path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"started", b"stbrted"))
    now = status(run.path)
    assert (now.stage, now.step, now.journal_damage) == (0, 40, "altered lines are ignored: 2")


def test_a_plan_without_stages_is_named(run: SyntheticRun) -> None:
    plan = json.loads((run.path / "plan.json").read_text())
    write_sealed(run.path / "plan.json", {**plan, "stages": []})
    with pytest.raises(UserError, match=r"plan\.json: .*\(stages\)"):
        status(run.path)


def test_a_stage_that_the_plan_does_not_have_is_named(run: SyntheticRun) -> None:
    run.event("started", phase="train", stage=9, attempt=1)
    with pytest.raises(DamagedFile, match=r"journal\.jsonl: mentions a stage beyond the 3"):
        status(run.path)


@pytest.mark.parametrize("change", [{"loss": "low"}, {"tokens": None}, {"stage": 1}])
def test_a_record_without_its_numbers_is_named(run: SyntheticRun, change: dict[str, Any]) -> None:
    run.train(0, last=40)
    with MetricsWriter(RunFolder(run.path).stage("0-L3").metrics) as metrics:
        metrics.append({"kind": "train", "step": 41, **change})
    now = status(run.path)
    assert now.damage == ("0-L3/metrics.jsonl: a record of update 41 is not one of stage 0",) and now.step == 40
    assert "metrics     0-L3/metrics.jsonl: a record of update 41" in now.as_text()


def alter_a_digit(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"loss": ', b'"loss": 1', 1)
    path.write_bytes(b"\n".join(lines))


def append_half_a_line(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"{")


def delete_the_first_records(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[20:]))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (alter_a_digit, "line 3 was altered"),
        (delete_the_first_records, "20 records between updates 1 and 20 are missing"),
        (append_half_a_line, "its last line is torn"),
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(b""), "100 records between updates 1 and 100 are missing"),
    ],
)
def test_damaged_metrics_are_named_by_status_and_report(
    run: SyntheticRun, damage: Callable[[Path], None], words: str
) -> None:
    run.train(0, evaluate_every=None)
    run.transition(0)
    run.train(1, last=5, evaluate_every=None)
    assert status(run.path).damage == ()
    damage(RunFolder(run.path).stage("0-L3").metrics)
    assert status(run.path).damage == (f"0-L3/metrics.jsonl: {words}",)
    assert f"The metrics are incomplete: 0-L3/metrics.jsonl: {words}." in render(read_run(run.path))


def test_a_rewound_stage_is_not_reported_as_damaged(run: SyntheticRun) -> None:
    run.train(0, evaluate_every=None)
    truncate_after(RunFolder(run.path).stage("0-L3").metrics, 50)
    run.event("rewound", phase="train", stage=0, step=50)
    assert status(run.path).damage == ()
    run.train(0, first=51, last=60, evaluate_every=None, attempt=2)
    assert status(run.path).damage == ()


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"stages": [{}]}'])
def test_a_damaged_plan_is_named(run: SyntheticRun, content: str) -> None:
    (run.path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan\.json"):
        status(run.path)


def test_foreign_names_are_escaped_before_they_reach_the_terminal(run: SyntheticRun) -> None:
    run.train(0, last=40)
    run.event("failed", phase="train", stage=0, message="\x1b]0;owned\x07 <script>\nlast\r words")
    text = status(run.path).as_text()
    assert "last error  \\x1b]0;owned\\x07 <script> last words" in text
    assert "\x1b" not in text and "\r" not in text
