"""Ranks started by OpenMPI: the command, mpirun's output, and a real run of real DeepSpeed ranks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stacking.errors import UserError
from stacking.launch.job import Job, Outcome
from stacking.launch.mpi import Mpi, failure, mpirun
from stacking.launch.registry import open_launcher
from stacking.run.create import create_run
from stacking.run.folder import RunFolder
from tests.chain import ENVIRONMENT, prepare_text, stacking, write_recipe

needs_mpi = pytest.mark.skipif(
    shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs OpenMPI and mpi4py; on Debian: apt-get install openmpi-bin libopenmpi-dev; pip install mpi4py",
)


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMPI only runs as root if it is told so twice."""
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
        monkeypatch.setitem(ENVIRONMENT, name, "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))


def job(tmp_path: Path, script: str = "", ranks: int = 2) -> Job:
    return Job(name="train-1", argv=[sys.executable, "-c", script], ranks=ranks, logs=tmp_path)


def wait(mpi_job: Job) -> Outcome:
    running = Mpi().start(mpi_job)
    try:
        deadline = time.monotonic() + 60
        while (outcome := running.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return outcome
    finally:
        running.kill()


def test_the_whole_command() -> None:
    this = Job(name="train-1", argv=["python", "-m", "x"], ranks=8, logs=Path("/run"))
    words = mpirun(this, Path("hosts"), ["HOME", "OMP_NUM_THREADS", "NCCL_DEBUG", "PATH"])
    expected = "mpirun -np 8 --hostfile hosts --bind-to none -x NCCL_DEBUG -x OMP_NUM_THREADS -x PATH python -m x"
    assert words == expected.split()


def test_the_rank_that_failed_is_read_from_mpiruns_output(tmp_path: Path) -> None:
    exited = "  Process name: [[40318,1],3]\n  Exit code:    75\n"
    assert failure(job(tmp_path), 75, exited) == Outcome(exit_code=75, rank=3, log=tmp_path / "train-1.rank3.log")
    killed = "mpirun noticed that process rank 1 with PID 0 on node n2 exited on signal 9 (Killed)."
    log = tmp_path / "train-1.rank1.log"
    assert failure(job(tmp_path), 137, killed) == Outcome(exit_code=-signal.SIGKILL, rank=1, host="n2", log=log)
    nothing = failure(job(tmp_path), 1, "mpirun: no such option")
    assert nothing.rank is None and nothing.log == tmp_path / "train-1.launcher.log"


@needs_mpi
def test_a_missing_hostfile_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--hostfile: .*hosts is not a file"):
        Mpi(tmp_path / "hosts")


def test_a_hostfile_is_only_accepted_with_mpirun(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --launcher mpi"):
        open_launcher("local", tmp_path)


@needs_mpi
def test_the_first_rank_that_fails_stops_the_others(tmp_path: Path) -> None:
    script = "import os, time\nif os.environ['OMPI_COMM_WORLD_RANK'] == '1': os._exit(3)\ntime.sleep(60)"
    outcome = wait(job(tmp_path, script))
    assert (outcome.exit_code, outcome.rank) == (3, 1)


@needs_mpi
def test_a_killed_rank_is_named_with_its_signal(tmp_path: Path) -> None:
    script = "import os, time\nif os.environ['OMPI_COMM_WORLD_RANK'] == '1': os.kill(os.getpid(), 9)\ntime.sleep(60)"
    outcome = wait(job(tmp_path, script))
    assert (outcome.exit_code, outcome.rank) == (-signal.SIGKILL, 1)


@needs_mpi
@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_goes_from_recipe_to_export(data: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    stages = [
        {"layers": 1, "steps": 4, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}},
        {"layers": 2, "steps": 4},
    ]
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, data, stages=stages)
    stacking("run", recipe, "--run-dir", run, "--launcher", "mpi", "--hostfile", hosts)
    assert (run / "export" / "model.safetensors").is_file()
    assert (run / "0-L1" / "logs" / "train-1.rank1.log").is_file()


@needs_mpi
@pytest.mark.slow
@pytest.mark.distributed
def test_running_mpirun_by_hand_needs_only_the_worker(data: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    create_run(str(write_recipe(tmp_path, data)), run)
    argv = ["mpirun", "-np", "2", "--bind-to", "none", sys.executable, "-m", "stacking.train.worker", run.path, "0"]
    done = subprocess.run(list(map(str, argv)), env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (run.path / "0-L1" / "checkpoints" / "latest").read_text() == "global_step6"


@needs_mpi
@pytest.mark.slow
@pytest.mark.distributed
def test_a_signal_to_the_controller_leaves_a_checkpoint(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, data, checkpoint={"every_steps": 100_000, "keep": 2})
    argv = [sys.executable, "-m", "stacking", "run", recipe, "--run-dir", run, "--launcher", "mpi"]
    argv += ["--set", "stages[0].steps=100000"]
    controller = subprocess.Popen(list(map(str, argv)), env={**os.environ, **ENVIRONMENT})
    metrics = run / "0-L1" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        assert controller.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    controller.send_signal(signal.SIGTERM)
    assert controller.wait(timeout=60) == 75
    assert (run / "0-L1" / "checkpoints" / "latest").is_file()
