"""Segments of GPU memory that grow in place, in a real PyTorch on the null GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.null_gpu import library
from tools.null_gpu.__main__ import environment
from tools.null_gpu.card import CARDS

pytestmark = pytest.mark.null_gpu
library.require()

PROGRAM = """
import os, sys, torch
from stacking.train.allocator import let_segments_grow
torch.cuda.set_device(0)
let_segments_grow()
torch.empty(100 << 20, dtype=torch.uint8, device="cuda")
print({segment["is_expandable"] for segment in torch.cuda.memory_snapshot()})
sys.stdout.flush()
os._exit(0)  # the libraries' destructors would ask for the device
"""


def segments(**variables: str) -> tuple[str, str]:
    """Whether the segments of a process can grow, and what it said."""
    seen = {**environment(CARDS["A100"]), **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=seen, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_segments_grow() -> None:
    assert segments() == ("{True}", "")


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_users_configuration_stays(variable: str) -> None:
    assert segments(**{variable: "max_split_size_mb:512"}) == ("{False}", "")


def test_a_device_that_cannot_map_memory_keeps_fixed_segments_and_says_so() -> None:
    grow, said = segments(NULL_GPU_FIXED_MEMORY="1")
    assert grow == "{False}"
    assert said.startswith("GPU memory: fixed segments, since growing ones fail (CUDA driver error")
