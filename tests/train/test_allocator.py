"""What a training process does with memory freed by CPU tensors."""

from __future__ import annotations

import subprocess
import sys

import pytest

CASE = """
import resource, sys
import torch
from stacking.train.allocator import keep_freed_memory, return_freed_memory

{keep}_freed_memory()
def round_of_tensors():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in (64, 40, 48):
        torch.ones(megabytes << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(20):  # an aligned tensor never fits where one just like it was: the heap grows at first
    round_of_tensors()
print(sum(round_of_tensors() for _ in range(5)) / 5)
"""


@pytest.mark.parametrize(("keep", "new_pages"), [("keep", False), ("return", True)])
def test_tensors_reuse_the_pages_of_freed_ones(keep: str, new_pages: bool) -> None:
    code = CASE.format(keep=keep)
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    pages = float(done.stdout)  # the tensors have 38,912 of 4 KiB, or 76 of 2 MiB
    assert pages >= 76 if new_pages else pages < 38
