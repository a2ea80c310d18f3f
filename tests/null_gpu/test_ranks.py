"""Two ranks on the null GPU: each takes a card of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stacking.launch.job import Job
from stacking.launch.local import Local
from tests.null_gpu import library
from tools.null_gpu.__main__ import environment
from tools.null_gpu.card import CARDS

pytestmark = [pytest.mark.null_gpu, pytest.mark.distributed]
library.require()

PROGRAM = """
import torch
from stacking.launch.rank import run_rank
from stacking.train.engine import connect
from stacking.train.rank_sync import Agreement

def tell():
    connect()
    print(Agreement().gathered((torch.cuda.current_device(), torch.cuda.device_count())))

run_rank(tell)
"""


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ("0,1", "[(0, 2), (1, 2)]"),
        ("$RANK", "[(0, 1), (0, 1)]"),  # srun --gpus-per-task=1
    ],
)
def test_ranks_take_the_card_of_their_number_or_the_only_one_they_see(shown: str, told: str, tmp_path: Path) -> None:
    argv = ["sh", "-c", f'CUDA_VISIBLE_DEVICES={shown} exec "$@"', "sh", sys.executable, "-c", PROGRAM]
    variables = environment(CARDS["V100"], devices=2)
    job = Job(name="job", argv=argv, ranks=2, logs=tmp_path, accelerator="cuda", environment=variables)

    running = Local().start(job)

    assert [process.wait(300) for process in running.processes] == [0, 0]
    assert job.log(0).read_text().splitlines()[-1] == told
