"""How a rank's end is reported: the exception and its cause."""

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
    "a GPU that two ranks have": (
        "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, invalid usage\n"
        "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 3b000",
        "two ranks have the same GPU; start one rank per GPU, and look at CUDA_VISIBLE_DEVICES",
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
    "no ninja": (
        "RuntimeError: Ninja is required to load C++ extensions (pip install ninja to get it)",
        "a kernel must be compiled and ninja was not found; run 'pip install ninja'",
    ),
    "a kernel that the op builder cannot load": (
        "RuntimeError: Unable to JIT load the cpu_adam op due to it not being compatible due to hardware/software",
        "DeepSpeed's kernel cpu_adam could not be compiled; `stacking doctor` checks the compilers",
    ),
    "a library that is missing": (
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
        "the shared library libcudart.so.12 was not found; load the module that has it, or set LD_LIBRARY_PATH",
    ),
    "a port that is taken": (
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
        "port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
        "the ranks' meeting point is taken by another process (address already in use); start again",
    ),
    "a GPU that is too old": (
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
        "this torch has no code for this GPU; `stacking doctor` names the GPUs that it was built for",
    ),
    "a peer that died under gloo": (
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:7",
        "the ranks lost contact ([../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
        "[127.0.0.1]:7); see the log of the rank that failed first; NCCL_DEBUG=INFO gives details",
    ),
    "a configuration that DeepSpeed's own checks refuse": (
        "deepspeed.runtime.config.DeepSpeedConfigError: MiCS ZeRO-3 sharding has been removed; "
        "'zero_optimization.mics_shard_size' is no longer supported.",
        "DeepSpeedConfigError: MiCS ZeRO-3 sharding has been removed; 'zero_optimization.mics_shard_size' is no longer "
        "supported.",
    ),
    "a batch that DeepSpeed refuses": (
        "AssertionError: Check batch related parameters. train_batch_size is not equal to micro_batch_per_gpu * "
        "gradient_acc_step * world_size 16 != 4 * 1 * 2",
        "AssertionError: Check batch related parameters. train_batch_size is not equal to micro_batch_per_gpu * "
        "gradient_acc_step * world_size 16 != 4 * 1 * 2",
    ),
    "Python without memory": (
        "MemoryError",
        "out of memory; use a smaller micro_batch, activation checkpointing or a higher ZeRO stage",
    ),
    "anything else": ("ValueError: the third is odd", "ValueError: the third is odd"),
    "nothing but a name": ("AssertionError", "AssertionError"),
}
"""Name: what follows the traceback's frames, and the line about it."""


@pytest.mark.parametrize("name", LOGS)
def test_a_ranks_end_is_reported_by_its_meaning(name: str) -> None:
    printed, line = LOGS[name]
    assert meaning(f"starting\n{TRACE}{printed}\n".splitlines()) == line


def test_a_prefix_with_the_rank_is_removed() -> None:
    text = "".join(f"[rank1]: {line}\n" for line in f"{TRACE}ValueError: odd".splitlines())
    assert meaning(text.splitlines()) == "ValueError: odd"


LAST_WORDS = {
    "[rank1]:[E1126 ProcessGroupNCCL.cpp:616] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)":
        "the ranks lost contact (a collective operation timed out); see the log of the rank that failed first; "
        "NCCL_DEBUG=INFO gives details",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.":
        "out of memory on the host; use fewer ranks per node or a smaller micro_batch",
    "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).":
        "no shared memory is left; raise the limit of /dev/shm",
    "Fatal Python error: Illegal instruction": "this build uses instructions that this processor lacks",
}  # fmt: skip


@pytest.mark.parametrize("words", LAST_WORDS)
def test_an_end_without_a_traceback_is_reported_by_its_last_output(words: str) -> None:
    assert meaning(["starting", words, "terminate called without an active exception"]) == LAST_WORDS[words]


def test_a_log_without_a_traceback_has_no_meaning() -> None:
    assert meaning(["starting", "no luck"]) == ""


def test_a_real_traceback_of_chained_exceptions_is_reported_by_the_last_one() -> None:
    script = "try:\n    {}['a']\nexcept KeyError as error:\n    raise RuntimeError('no key\\nof that name') from error"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert meaning(done.stderr.splitlines()) == "RuntimeError: no key"
