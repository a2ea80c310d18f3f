"""What a rank's end is told as: the exception and what it is about."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stacking.launch.meaning import meaning

TRACE = 'Traceback (most recent call last):\n  File "worker.py", line 1, in <module>\n    main()\n'
LOGS = {
    "a configuration that DeepSpeed refuses": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for CompileConfig\n"
        "enabled\n"
        "  Extra inputs are not permitted [type=extra_forbidden, input_value=True, input_type=bool]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/extra_forbidden",
        "DeepSpeed rejects the ds_config: CompileConfig: enabled: Extra inputs are not permitted",
    ),
    "a GPU without memory": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
        "15.77 GiB of which 1.02 GiB is free. See https://pytorch.org/docs/stable/notes/cuda.html",
        "out of memory (2.00 GiB more requested); use a smaller micro_batch, activation checkpointing or a higher "
        "ZeRO stage",
    ),
    "a host without memory": (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 64000000000 bytes. Error code 12 (Cannot allocate memory)",
        "out of memory (64000000000 bytes more requested); use a smaller micro_batch, activation checkpointing or a "
        "higher ZeRO stage",
    ),
    "a package that is missing": (
        "ModuleNotFoundError: No module named 'wandb'",
        "the package wandb is not installed; install it, or disable the feature that needs it",
    ),
    "NCCL": (
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled system error\n"
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed\n"
        "[W1126 12:00:00.123 ProcessGroupNCCL.cpp:1538] Warning: destroy_process_group() was not called",
        "the ranks lost contact (NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled system error); see the log of the "
        "rank that failed first; NCCL_DEBUG=INFO gives details",
    ),
    "a kernel that cannot be compiled": (
        "RuntimeError: Error building extension 'fused_adam': ninja: build stopped\n"
        'multi_tensor_adam.cu(12): error: identifier "foo" is undefined',
        'DeepSpeed\'s kernel fused_adam could not be compiled (multi_tensor_adam.cu(12): error: identifier "foo" is '
        "undefined); `stacking doctor` checks the compilers",
    ),
    "no CUDA toolkit": (
        "deepspeed.ops.op_builder.builder.MissingCUDAException: CUDA_HOME does not exist, unable to compile CUDA op(s)",
        "a kernel must be compiled and no CUDA toolkit was found; install it, or set CUDA_HOME to its path",
    ),
    "anything else": ("ValueError: the third is odd", "ValueError: the third is odd"),
    "nothing but a name": ("AssertionError", "AssertionError"),
}
"""Name: what follows the traceback's frames, and the line about it."""


@pytest.mark.parametrize("name", LOGS)
def test_an_end_is_told_by_its_meaning(name: str) -> None:
    printed, line = LOGS[name]
    assert meaning(f"starting\n{TRACE}{printed}\n".splitlines()) == line


def test_a_prefix_with_the_rank_is_no_part_of_it() -> None:
    text = "".join(f"[rank1]: {line}\n" for line in f"{TRACE}ValueError: odd".splitlines())
    assert meaning(text.splitlines()) == "ValueError: odd"


def test_a_log_without_a_traceback_says_nothing() -> None:
    assert meaning(["starting", "no luck"]) == ""


def test_a_real_traceback_of_chained_exceptions_is_told_by_the_last() -> None:
    script = "try:\n    {}['a']\nexcept KeyError as error:\n    raise RuntimeError('no key\\nof that name') from error"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert meaning(done.stderr.splitlines()) == "RuntimeError: no key"
