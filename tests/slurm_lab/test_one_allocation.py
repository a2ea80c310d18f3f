"""A whole run inside one SLURM job of two nodes: undisturbed, and preempted, cancelled, killed and deprived of nodes.

Both end with the same weights and moments, bit for bit. Everything is real: SLURM, DeepSpeed ranks on its nodes.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from stacking.run.checkpoints import latest
from stacking.storage.files import checksum, read_json, verify_folder
from tests.slurm_lab.jobs import create, events, has, processes, records, steps, submit, wait_for_updates
from tests.slurm_lab.lab import Lab

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.xdist_group("undisturbed"),  # the run that these files share
]

ENDLESS = ("stages[0].steps=100000", "checkpoint.every_steps=100000")
ALONE = ("launch.ranks=1", *ENDLESS)


def growing(run: Path) -> int | None:
    """The process that grows the model, if it is running."""
    for pid in processes(run, "stacking"):
        with contextlib.suppress(OSError):  # it may have ended since
            if b"\0grow\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def stop_halfway(pid: int | None, partial: Path) -> None:
    """Stops a process while its output is half written; it runs in slices of a millisecond until then."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    while not partial.exists():
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.001)
        os.kill(pid, signal.SIGSTOP)


@pytest.fixture(scope="module")
def disturbed(session_lab: Lab, recipe: Path) -> Path:
    """A run that suffers every disturbance, one after the other; the outcome of each is asserted on the way."""
    lab = session_lab
    lab.clear()
    run = create(recipe, recipe.parent / "disturbed", "launch.retry_seconds=1")
    job = submit(lab, run)

    # Preempted in training: a checkpoint of that very step, back into the queue, and resumed.
    lab.wait_until(lambda: steps(run, "0-L1") >= 20, every=0.02)
    lab.wait_for_end(preempt(lab))
    lab.wait_until(lambda: has(run, "preempted", "train", 0))
    assert stopped_at(run, "0-L1") == steps(run, "0-L1")
    lab.wait_until(lambda: lab.state(job) == "RUNNING" and lab.job(job)["Restarts"] == "1")

    # A rank is killed: the step ends immediately and is retried within the job.
    wait_for_updates(lab, run, "0-L1", 10)
    os.kill(processes(run, "stacking.train.worker", 0)[-1], signal.SIGKILL)
    lab.wait_until(lambda: has(run, "failed", "train", 0), patience=30)
    assert re.search(r"rank \d on n[12] was killed by SIGKILL", events(run)[-1]["message"])

    # scancel: a checkpoint, and no requeue.
    wait_for_updates(lab, run, "0-L1", 10)
    lab.run("scancel", str(job))
    assert lab.wait_for_end(job)["JobState"] == "CANCELLED"
    lab.wait_until(lambda: not lab.run("squeue", "-h").strip())
    assert stopped_at(run, "0-L1") == steps(run, "0-L1") < 400

    # Preempted in growth, while its output is half written.
    job = submit(lab, run)
    lab.wait_until(lambda: has(run, "started", "grow", 1), patience=300, every=0.02)
    lab.wait_until(lambda: growing(run) is not None, every=0.002)
    stop_halfway(growing(run), run / "1-L2" / ".start.partial")
    lab.wait_for_end(preempt(lab))
    lab.wait_until(lambda: has(run, "preempted", "grow", 1))
    assert not (run / "1-L2" / "start").exists()

    # A node dies: SLURM requeues the job onto the other nodes.
    lab.wait_until(lambda: steps(run, "1-L2") >= 15, every=0.02)
    lab.tool("kill", "n2")
    lab.wait_until(lambda: lab.job(job)["Restarts"] == "2" and lab.state(job) == "RUNNING")
    assert lab.job(job)["NodeList"] == "n[1,3]"
    lab.tool("revive", "n2")

    # The controller is killed: its job fails and leaves nothing behind; submitted again, the run resumes.
    wait_for_updates(lab, run, "1-L2", 10)
    os.kill(controller(run), signal.SIGKILL)
    assert lab.wait_for_end(job)["JobState"] == "FAILED"
    lab.wait_until(lambda: not processes(run, "stacking.train.worker"))
    job = submit(lab, run)
    assert lab.wait_for_end(job)["JobState"] == "COMPLETED", lab.output(job)
    return run


def test_a_run_on_two_nodes_goes_from_recipe_to_export(undisturbed: Path) -> None:
    assert (undisturbed / "export" / "model.safetensors").is_file() and (undisturbed / "report.html").is_file()
    done = [(e["phase"], e["stage"]) for e in events(undisturbed) if e["event"] == "finished"]
    middle = [("train", 0), ("consolidate", 0), ("grow", 1), ("train", 1), ("consolidate", 1)]
    assert done == [*middle, ("export", 1), ("report", 1)]
    checkpoint = latest(undisturbed / "0-L1" / "checkpoints")
    assert checkpoint is not None and read_json(checkpoint / "progress.json")["world_size"] == 2


def test_the_ranks_of_the_next_stage_start_during_the_transition(undisturbed: Path) -> None:
    started = {(e["phase"], e["stage"]): e for e in events(undisturbed) if e["event"] == "started"}
    assert started["train", 1]["waited_seconds"] > 0
    assert "waited_seconds" not in started["train", 0]
    said = (undisturbed / "1-L2" / "logs" / "train-1.launcher.log").read_text()
    assert "step creation" not in said, "SLURM made the step wait for the transition's"


def test_logs_are_named_after_stage_attempt_and_rank(undisturbed: Path) -> None:
    names = {path.name for path in (undisturbed / "0-L1" / "logs").glob("train-*")}
    assert names == {"train-1.launcher.log", "train-1.rank0.log", "train-1.rank1.log"}


def test_a_disturbed_run_equals_an_undisturbed_one(
    undisturbed: Path, disturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("weights", "exp_avg", "exp_avg_sq"):
        file = f"1-L2/state/{name}.safetensors"
        with capsys.disabled():
            print(f"\n{name}: undisturbed {checksum(undisturbed / file)}, disturbed {checksum(disturbed / file)}")
        expected, found = load_file(undisturbed / file), load_file(disturbed / file)
        assert expected.keys() == found.keys()
        for key in expected:
            assert expected[key].tobytes() == found[key].tobytes(), (name, key)


@pytest.mark.parametrize("stage", ["0-L1", "1-L2"])
def test_every_update_has_the_same_samples_and_loss(undisturbed: Path, disturbed: Path, stage: str) -> None:
    facts = ("step", "global_step", "samples", "tokens", "loss", "learning_rate")
    expected, found = (
        [[record[fact] for fact in facts] for record in records(run, stage)] for run in (undisturbed, disturbed)
    )
    assert expected == found


def test_a_time_limit_leaves_a_checkpoint_and_the_job_resumes(lab: Lab, recipe: Path, tmp_path: Path) -> None:
    run = create(recipe, tmp_path / "run", *ALONE)
    job = submit(lab, run, "--nodes=1", "--time=60", "--signal=B:USR1@300")
    lab.wait_until(lambda: steps(run, "0-L1") >= 1)
    lab.run("scontrol", "update", f"JobId={job}", "TimeLimit=5")
    lab.wait_until(lambda: has(run, "preempted", "train", 0))
    lab.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    stopped = stopped_at(run, "0-L1")
    assert "SIGUSR1" in events(run)[-1]["message"] and stopped == steps(run, "0-L1")
    lab.wait_until(lambda: steps(run, "0-L1") > stopped)
    assert lab.job(job)["Restarts"] == "1"


def test_during_a_grace_time_the_ranks_end_the_job_themselves(lab: Lab, recipe: Path, tmp_path: Path) -> None:
    """With GraceTime SLURM warns only the ranks, not the controller, and ends the job only later."""
    run = create(recipe, tmp_path / "run", *ENDLESS)
    lab.run("scontrol", "update", "PartitionName=low", "GraceTime=60")
    try:
        job = submit(lab, run)
        lab.wait_until(lambda: steps(run, "0-L1") >= 20)
        preempt(lab)
        lab.wait_until(lambda: has(run, "preempted", "train", 0), patience=30)
        stopped = stopped_at(run, "0-L1")
        lab.wait_until(lambda: steps(run, "0-L1") > stopped)
        assert lab.job(job)["Restarts"] == "1"
    finally:
        lab.run("scontrol", "update", "PartitionName=low", "GraceTime=0")


def test_a_crash_is_retried_a_limited_number_of_times(lab: Lab, recipe: Path, tmp_path: Path) -> None:
    """Two crashes without a checkpoint between them; only the first may be retried."""
    run = create(recipe, tmp_path / "run", "launch.retries=1", "launch.retry_seconds=1", *ALONE)
    job = submit(lab, run, "--nodes=1")
    for attempt in (1, 2):
        lab.wait_until(lambda attempt=attempt: count(run, "started") == attempt)
        wait_for_updates(lab, run, "0-L1", 3)
        os.kill(processes(run, "stacking.train.worker", 0)[-1], signal.SIGKILL)
    assert lab.wait_for_end(job)["JobState"] == "FAILED"
    failed = [event for event in events(run) if event["event"] == "failed"]
    assert len(failed) == 2 and all("was killed by SIGKILL" in event["message"] for event in failed)


# Disturbances, and how to observe their outcome


def preempt(lab: Lab) -> int:
    """A short job of high priority on all nodes; its id."""
    return lab.sbatch("--nodes=3", "--exclusive", "--partition=high", "--output=/dev/null", "--wrap", "sleep 1")


def count(run: Path, event: str) -> int:
    return sum(e["event"] == event for e in events(run))


def stopped_at(run: Path, stage: str) -> int:
    """The step of the latest checkpoint, which is complete."""
    checkpoint = latest(run / stage / "checkpoints")
    assert checkpoint is not None
    verify_folder(checkpoint)
    return int(read_json(checkpoint / "progress.json")["step"])


def controller(run: Path) -> int:
    return next(p for p in processes(run, "stacking") if b"resume" in Path(f"/proc/{p}/cmdline").read_bytes())
