"""The null GPU's library, asked as CUDA programs ask the runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.null_gpu import library
from tools.null_gpu.__main__ import environment
from tools.null_gpu.card import CARDS

pytestmark = pytest.mark.null_gpu
library.require()

BEGINNING = """
import json
from ctypes import CDLL, byref, c_double, c_float, c_int, c_size_t, c_void_p, create_string_buffer
from tools.null_gpu.counters import counts, reset

cuda = CDLL(None)
MIB, TO_DEVICE, TO_HOST = 1 << 20, 1, 2

def allocate(bytes, function=cuda.cudaMalloc, *flags):
    pointer = c_void_p()
    return function(byref(pointer), c_size_t(bytes), *flags), pointer

def copy(to, start, bytes, kind):
    return cuda.cudaMemcpyAsync(to, start, c_size_t(bytes), kind, None)

def available():
    free, total = c_size_t(), c_size_t()
    cuda.cudaMemGetInfo(byref(free), byref(total))
    return free.value
"""


def on_card(lines: str, card: str = "P40", devices: int = 1, **variables: str) -> Any:
    """Runs the lines of a program on a card, and returns what it gave to ``say``."""
    seen = {**environment(CARDS[card], devices), **variables}
    text = f"{BEGINNING}\nsay = lambda answer: print(json.dumps(answer))\n{lines}"
    done = subprocess.run([sys.executable, "-c", text], env=seen, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_memory_is_given_back_and_ends_where_the_cards_memory_ends() -> None:
    free, less, again, too_much, all_of_it = on_card("""
free = available()
error, pointer = allocate(100 * MIB)
less = available()
cuda.cudaFree(pointer)
say([free, less, available(), allocate(free + 1)[0], allocate(free)[0]])
""")
    assert free == CARDS["P40"].memory
    assert (free - less, again) == (100 << 20, free)
    assert (too_much, all_of_it) == (2, 0)  # cudaErrorMemoryAllocation


def test_mapped_memory_counts_from_its_creation_and_addresses_cost_none() -> None:
    counted = on_card("""
def create(bytes):
    return cuda.cuMemCreate(byref(piece), c_size_t(bytes), None, c_size_t(0))
address, piece = c_size_t(), c_size_t()
free = available()
found = [cuda.cuMemAddressReserve(byref(address), c_size_t(2 * free), c_size_t(0), c_size_t(0), c_size_t(0))]
found += [free - available(), create(free + 1)]
found += [create(2 * MIB), free - available()]
cuda.cuMemRelease(piece)
say([*found, free - available()])
""")
    assert counted == [0, 0, 2, 0, 2 << 20, 0]  # CUDA_ERROR_OUT_OF_MEMORY


def test_only_copies_from_pageable_memory_make_the_host_wait() -> None:
    counted = on_card("""
device = allocate(MIB)[1]
pinned = allocate(MIB, cuda.cudaHostAlloc, 0)[1]
reset()
copy(device, create_string_buffer(MIB), MIB, TO_DEVICE)
copy(device, pinned, MIB, TO_DEVICE)
copy(pinned, device, MIB, TO_HOST)
say(counts())
""")
    assert counted == {"copies to the device": 2, "pageable copies to the device": 1, "copies to the host": 1}


def test_what_comes_to_the_host_is_finite_and_can_be_divided_by() -> None:
    doubles, flag = on_card("""
device, values, flag = allocate(64)[1], (c_double * 4)(), c_int(7)
copy(byref(values), device, 32, TO_HOST)
copy(byref(flag), device, 4, TO_HOST)
say([list(values), flag.value])
""")
    assert (doubles, flag) == ([1.0] * 4, 0)


def test_every_kind_of_waiting_is_counted_apart() -> None:
    counted = on_card("""
event = c_void_p()
cuda.cudaEventCreateWithFlags(byref(event), 0)
reset()
cuda.cudaStreamSynchronize(None)
cuda.cudaEventSynchronize(event)
cuda.cudaDeviceSynchronize()
cuda.cudaMemcpy(create_string_buffer(8), allocate(8)[1], c_size_t(8), TO_HOST)
say(counts())
""")
    waits = ("stream synchronisations", "event synchronisations", "device synchronisations", "synchronous copies")
    assert [counted[name] for name in waits] == [1, 1, 1, 1]


def test_events_measure_the_hosts_time_in_milliseconds() -> None:
    taken = on_card("""
import time
first, second, taken = c_void_p(), c_void_p(), c_float()
for event in (first, second):
    cuda.cudaEventCreateWithFlags(byref(event), 0)
cuda.cudaEventRecord(first, None)
time.sleep(0.05)
cuda.cudaEventRecord(second, None)
cuda.cudaEventElapsedTime(byref(taken), first, second)
say(taken.value)
""")
    assert 50 <= taken < 5_000


@pytest.mark.parametrize("card", CARDS)
def test_runtime_and_driver_tell_the_capability_of_the_card(card: str) -> None:
    told = on_card(
        """
MAJOR, MINOR = 75, 76
def attribute(function, which):
    value = c_int()
    function(byref(value), which, 0)
    return value.value
say([[attribute(function, which) for which in (MAJOR, MINOR)]
     for function in (cuda.cudaDeviceGetAttribute, cuda.cuDeviceGetAttribute)])
""",
        card,
    )
    assert told == 2 * [list(CARDS[card].capability)]


def test_there_are_as_many_devices_as_asked_for() -> None:
    count, last, beyond = on_card(
        """
count = c_int()
cuda.cudaGetDeviceCount(byref(count))
say([count.value, cuda.cudaSetDevice(1), cuda.cudaSetDevice(2)])
""",
        devices=2,
    )
    assert (count, last, beyond) == (2, 0, 101)  # cudaErrorInvalidDevice


@pytest.mark.parametrize(("visible", "count"), [("1", 1), ("1,0", 2), ("0,7,1", 1), ("", 0)])
def test_devices_are_hidden_from_the_first_on_that_is_not_there(visible: str, count: int) -> None:
    lines = "count = c_int()\ncuda.cudaGetDeviceCount(byref(count))\nsay(count.value)"
    assert on_card(lines, devices=2, CUDA_VISIBLE_DEVICES=visible) == count


def test_a_launch_of_the_driver_is_counted_under_its_kernels_name() -> None:
    counted = on_card(
        """
kernel = c_void_p()
cuda.cuModuleGetFunction(byref(kernel), None, b"triton_add")
reset()
cuda.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, None, None, None)
say(counts())
""",
        NULL_GPU_NAMES="1",
    )
    assert counted == {"launches": 1, "kernel triton_add": 1}


def test_whoever_asks_torch_whether_values_are_finite_is_told_so_and_waits() -> None:
    finite, overflow, waits = on_card(
        """
import torch
gradients = torch.ones(3, device="cuda")
def asked(question):
    reset()
    return bool(question()), counts().get("stream synchronisations", 0)
finite, waits = asked(lambda: torch.isfinite(gradients).all())
overflow, more = asked(lambda: torch.isfinite(gradients.amax()).logical_not())
say([finite, overflow, [waits, more]])
""",
        "A100",
    )
    assert (finite, overflow, waits) == (True, False, [1, 1])
