"""Local ranks: each has a rendezvous and its own log, and all are stopped when one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stacking.errors import StackingError
from stacking.launch.job import Job, Outcome, RunningJob
from stacking.launch.local import Local
from stacking.launch.outcome import describe, raise_for


def job(tmp_path: Path, script: str, ranks: int = 2) -> Job:
    return Job(name="job", argv=[sys.executable, "-c", script], ranks=ranks, logs=tmp_path / "logs")


def wait(running: RunningJob, seconds: float = 20) -> Outcome:
    deadline = time.monotonic() + seconds
    while (outcome := running.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return outcome


def test_ranks_get_their_numbers_and_a_shared_address(tmp_path: Path) -> None:
    script = "import os; print(*(os.environ[k] for k in 'RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT'.split()))"
    this = job(tmp_path, script)
    assert wait(Local().start(this)).exit_code == 0
    first, second = (this.log(rank).read_text().split() for rank in range(2))
    assert first[:3] == ["0", "0", "2"] and second[:3] == ["1", "1", "2"]
    assert first[3:] == second[3:] and first[3] == "127.0.0.1"


def test_the_first_rank_that_fails_stops_the_others_and_is_named(tmp_path: Path) -> None:
    script = "import os, time\nif os.environ['RANK'] == '1': raise SystemExit('no luck')\ntime.sleep(60)"
    running = Local().start(job(tmp_path, script))
    outcome = wait(running)
    assert (outcome.exit_code, outcome.rank) == (1, 1)
    assert "rank 1 ended with exit code 1: no luck" in describe(outcome)
    assert all(process.poll() is not None for process in running.processes)


def test_a_killed_rank_is_the_cause_even_if_its_peer_failed_too(tmp_path: Path) -> None:
    script = "import os\nif os.environ['RANK'] == '1': os.kill(os.getpid(), 9)\nraise SystemExit('lost my peer')"
    running = Local().start(job(tmp_path, script))
    for process in running.processes:
        process.wait()
    outcome = wait(running)
    assert outcome.exit_code == -signal.SIGKILL and "killed by SIGKILL" in describe(outcome)


def test_a_user_error_keeps_its_line_and_its_exit_code(tmp_path: Path) -> None:
    script = "import sys; print('data: is gone; prepare it again', file=sys.stderr); sys.exit(2)"
    with pytest.raises(StackingError, match=r"^data: is gone; prepare it again$") as caught:
        raise_for(wait(Local().start(job(tmp_path, script, ranks=1))))
    assert caught.value.exit_code == 2


def test_ranks_die_with_a_killed_controller(tmp_path: Path) -> None:
    script = f"""
import pathlib, sys, time
from stacking.launch.job import Job
from stacking.launch.local import Local
argv = [sys.executable, "-c", "import time; time.sleep(60)"]
running = Local().start(Job(name="j", argv=argv, ranks=2, logs=pathlib.Path({str(tmp_path)!r})))
print(*(p.pid for p in running.processes), flush=True)
time.sleep(60)
"""
    controller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert controller.stdout is not None
    pids = [int(word) for word in controller.stdout.readline().split()]
    controller.kill()
    controller.wait()
    deadline = time.monotonic() + 10
    while any(_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
