"""Starts ranks that are connected by torch alone, without DeepSpeed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_ranks(
    ranks: int, module: str, arguments: Sequence[Sequence[str | Path]] = (), timeout: float = 120
) -> list[str]:
    """Run ``module`` on ``ranks`` ranks; returns what each has printed.

    Args:
        arguments: the arguments of each rank.
        timeout: seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    common |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    processes = []
    for rank in range(ranks):
        argv = [sys.executable, "-m", module, *map(str, arguments[rank] if arguments else ())]
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks
    return outputs


def train_first_stages(ranks: int, runs: Sequence[Path]) -> None:
    """Train the first stage of each of these runs, all with the same ranks, one after the other."""
    run_ranks(ranks, "tests.train.stage_worker", [list(runs)] * ranks, timeout=600)
