"""Ranks whose run was taken over stop together, although only rank 0 checks."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from stacking.launch.job import Job
from stacking.launch.local import Local
from stacking.run.lease import TOKEN_VARIABLE, Lease

RANK = """
import os, pathlib, sys, time
import torch.distributed as dist
from stacking.run import lease
from stacking.errors import LostLock
from stacking.train.rank_sync import Agreement

lease._SECONDS_BETWEEN_LOOKS = 0.0
dist.init_process_group("gloo")
lock, done = map(pathlib.Path, sys.argv[1:])
agreement = Agreement(lease.Watch(lock, os.environ))
updates = 0
try:
    while True:
        agreement.exchange(1)
        updates += 1
        if updates == 5:
            (done / str(dist.get_rank())).touch()
        time.sleep(0.02)
except LostLock as lost:
    print(updates, lost, flush=True)
os._exit(0)  # as `run_rank` ends: a peer that is gone would make the destructors abort
"""


@pytest.mark.distributed
def test_all_ranks_stop_at_the_same_update(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    first = Lease(lock, patience=0)
    argv = [sys.executable, "-c", RANK, str(lock), str(tmp_path)]
    environment = {TOKEN_VARIABLE: first.token, "OMP_NUM_THREADS": "1"}
    job = Job(name="job", argv=argv, ranks=2, logs=tmp_path / "logs", environment=environment)
    running = Local().start(job)
    try:
        deadline = time.monotonic() + 60
        while not all((tmp_path / str(rank)).exists() for rank in range(2)):
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.05)
        lock.unlink()
        second = Lease(lock, patience=0)
        while (outcome := running.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        running.kill()
    assert outcome.exit_code == 0
    said = [job.log(rank).read_text().splitlines()[-1] for rank in range(2)]
    assert said[0] == said[1] and "another controller has taken the run over" in said[0]
    first.close()
    second.close()
