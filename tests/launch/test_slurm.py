"""How a job becomes an srun command, and what srun's output means; real jobs run in tests/slurm_lab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stacking.errors import UserError
from stacking.launch.job import Accelerator, Job, Outcome
from stacking.launch.slurm import Allocation, Slurm, first_failure, inherited_by_ranks, srun
from tests.slurm.fake_slurm import FakeSlurm, slurm

__all__ = ["slurm"]

BATCH = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_CPUS_PER_NODE": "16(x3),8"}


def job(ranks: int, accelerator: Accelerator = "cpu") -> Job:
    return Job(name="train-1", argv=["python", "-m", "x"], ranks=ranks, logs=Path("/run/logs"), accelerator=accelerator)


def test_the_whole_command() -> None:
    variables = {"STACKING_SRUN": "--mpi=none --network='a b'", "STACKING_CONTAINER": "apptainer exec /images/x.sif"}
    assert srun(job(8), Allocation.of(BATCH), variables) == [
        "srun",
        "--export=ALL",
        "--job-name=train-1",
        "--nodes=4",
        "--ntasks=8",
        "--ntasks-per-node=2",
        "--cpus-per-task=4",
        "--distribution=block",
        "--cpu-bind=cores",
        "--kill-on-bad-exit=1",
        "--output=/run/logs/train-1.rank%t.log",
        "--error=/run/logs/train-1.rank%t.log",
        "--open-mode=append",
        "--mpi=none",
        "--network=a b",
        "apptainer",
        "exec",
        "/images/x.sif",
        "python",
        "-m",
        "x",
    ]


@pytest.mark.parametrize(
    ("ranks", "accelerator", "more", "nodes", "per_node"),
    [
        (8, "cuda", {"SLURM_GPUS_ON_NODE": "4"}, 2, 4),
        (2, "cuda", {"SLURM_GPUS_ON_NODE": "4"}, 1, 2),
        (4, "cpu", {"SLURM_NTASKS_PER_NODE": "2"}, 2, 2),
        (4, "cpu", {}, 4, 1),
        (1, "cpu", {"SLURM_NTASKS_PER_NODE": "2"}, 1, 1),
        (6, "cpu", {}, 3, 2),
    ],
)
def test_ranks_are_placed_on_nodes_as_the_job_requests(
    ranks: int, accelerator: Accelerator, more: dict[str, str], nodes: int, per_node: int
) -> None:
    argv = srun(job(ranks, accelerator), Allocation.of(BATCH | more), {})
    assert f"--nodes={nodes}" in argv and f"--ntasks-per-node={per_node}" in argv


def test_more_ranks_than_cores_share_them() -> None:
    assert "--overcommit" in srun(job(2), Allocation(job=1, nodes=1, cores=1, gpus=0, tasks=2), {})


def test_steps_that_may_overlap_say_so() -> None:
    allocation = Allocation.of(BATCH)
    assert {*srun(job(8), allocation, {}, overlap=True)} - {*srun(job(8), allocation, {})} == {"--overlap"}


def test_being_outside_a_job_is_reported_in_one_line() -> None:
    with pytest.raises(UserError, match="works only inside a SLURM job"):
        Allocation.of({})


def failure(rank: int, host: str, code: int) -> Outcome:
    return Outcome(exit_code=code, rank=rank, host=host, log=job(8).log(rank))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("srun: error: n2: task 1: Exited with exit code 3", failure(1, "n2", 3)),
        ("srun: error: n1: tasks 0-3: Exited with exit code 75", failure(0, "n1", 75)),
        ("srun: error: n2: task 5: Killed", failure(5, "n2", -signal.SIGKILL)),
        ("srun: error: gpu-3: task 5: Segmentation fault (core dumped)", failure(5, "gpu-3", -signal.SIGSEGV)),
        ("srun: error: n2: task 5: Out Of Memory", failure(5, "n2", -signal.SIGKILL)),
        ("srun: error: n2: task 1: Exited with exit code 137", failure(1, "n2", -signal.SIGKILL)),
        ("srun: error: Node failure on n2", None),
        ("", None),
    ],
)
def test_the_failed_task_is_read_from_sruns_output(said: str, expected: Outcome | None) -> None:
    noise = "srun: Step created for job 4\n"
    told = f"{noise}{said}\nsrun: error: n9: task 9: Killed\n" if said and expected else said
    assert first_failure(job(8), told) == expected


def test_variables_in_site_settings_are_expanded_from_the_job() -> None:
    variables = {"STACKING_CONTAINER": "run '$IMAGES/x 1.sif' --bind=${HOME}", "IMAGES": "/my images", "HOME": "/h"}
    argv = srun(job(1), Allocation.of(BATCH), variables)
    assert argv[-6:] == ["run", "/my images/x 1.sif", "--bind=/h", "python", "-m", "x"]
    with pytest.raises(UserError, match=r"site file: srun: has \$NO, which is not set in the job"):
        srun(job(1), Allocation.of(BATCH), {"STACKING_SRUN": "--x=$NO"})


def test_a_container_uses_its_own_interpreter() -> None:
    argv = srun(job(1), Allocation.of(BATCH), {"STACKING_CONTAINER_PYTHON": "/opt/python"})
    assert argv[-3:] == ["/opt/python", "-m", "x"]


def test_rank_variables_exported_by_the_prelude_are_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    left = inherited_by_ranks({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "n1i", "SLURM_CPUS_PER_GPU": "4"})
    assert left == {"MASTER_ADDR": "n1i"}
    assert capsys.readouterr().err == "stacking: RANK, WORLD_SIZE: ignored, since the launcher numbers the ranks\n"


def test_a_controller_whose_batch_shell_is_killed_is_asked_to_stop(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal, time
from stacking.launch.slurm import Slurm
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / "asked")!r}).touch(), os._exit(0)))
Slurm()
pathlib.Path({str(tmp_path / "ready")!r}).touch()
time.sleep(60)
"""
    environment = {**os.environ, "SLURM_JOB_ID": "7"}
    shell = subprocess.Popen(["bash", "-c", '"$0" -c "$1" & wait', sys.executable, code], env=environment)
    wait_for(tmp_path / "ready")
    shell.kill()
    shell.wait()
    wait_for(tmp_path / "asked")


@pytest.mark.parametrize(
    ("answer", "text", "restarts"),
    [
        ("RUNNING 1", "job 7 is requeued and will start again", True),
        ("COMPLETING 2", "SLURM has requeued job 7 and will start it again", True),
        ("COMPLETING 1", "job 7 was cancelled and will not start again", False),
    ],
)
def test_after_a_stop_slurm_determines_what_happens_to_the_job(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, answer: str, text: str, restarts: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    slurm.answers("squeue", stdout=f"{answer}\n")
    slurm.answers("scontrol")
    fate = Slurm().requeue()
    assert (fate.text, fate.restarts) == (text, restarts)
    assert (["scontrol", "requeue", "7"] in slurm.calls()) == (answer == "RUNNING 1")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)
