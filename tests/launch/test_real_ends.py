"""Ranks that really fail, on the CPU, and the line about each; recorded GPU failures are in `test_meaning`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stacking.launch.meaning import meaning

ENGINE = """
import deepspeed, torch
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
model = torch.nn.Linear(4, 4)
adam = {{"type": "AdamW", "params": {{"torch_adam": True}}}}
config = {{"train_micro_batch_size_per_gpu": 1, "optimizer": adam, **{more}}}
deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
"""
NO_KERNELS = """
from stacking.state.deepspeed_private import compile_no_operations, leave_muon_uncompiled
compile_no_operations()
leave_muon_uncompiled()
"""
LIMITED = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
COMPILER = """#!/bin/sh
case " $* " in *" -c "*) echo "kernel.cpp:7:10: fatal error: immintrin.h: not found" >&2; exit 1;; esac
exec g++ "$@"
"""


def line_about(script: str, **environment: str | Path) -> str:
    """Run one rank; returns the line derived from its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    more = {name: str(value) for name, value in environment.items()}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **rank, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert ran.returncode != 0
    return meaning(ran.stdout.splitlines())


@pytest.mark.distributed(ranks=1)
def test_a_configuration_that_deepspeed_rejects_is_named() -> None:
    line = line_about(NO_KERNELS + ENGINE.format(more='{"compile": {"enabled": True}}'))
    assert line == "DeepSpeed rejects the ds_config: CompileConfig: enabled: Extra inputs are not permitted"


@pytest.mark.distributed(ranks=1)
def test_a_missing_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("import a_part_of_wandb\n")  # shadows it, wherever it is installed
    line = line_about(NO_KERNELS + ENGINE.format(more='{"wandb": {"enabled": True}}'), PYTHONPATH=tmp_path)
    assert line == "the package a_part_of_wandb is not installed; install it, or disable the feature that needs it"


@pytest.mark.parametrize(
    ("allocation", "size"),
    [("import torch; torch.zeros(1 << 34)", "68719476736 bytes"), ("import numpy; numpy.zeros(1 << 34)", "128. GiB")],
    ids=["torch", "numpy"],
)
def test_running_out_of_host_memory_is_reported_with_remedies(allocation: str, size: str) -> None:
    assert line_about(LIMITED + allocation) == (
        f"out of memory ({size} more requested); use a smaller micro_batch, activation checkpointing or a higher ZeRO "
        "stage"
    )


@pytest.mark.distributed(ranks=1)
def test_a_network_interface_that_does_not_exist_is_named() -> None:
    assert line_about(NO_KERNELS + ENGINE.format(more="{}"), GLOO_SOCKET_IFNAME="nosuch0") == (
        "this machine has no network interface nosuch0; correct GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME (`ip link` "
        "lists the names)"
    )


@pytest.mark.distributed(ranks=1)
def test_a_kernel_that_does_not_compile_is_named(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    line = line_about(ENGINE.format(more="{}"), CXX=compiler, TORCH_EXTENSIONS_DIR=tmp_path / "extensions")
    assert line == (
        "DeepSpeed's kernel deepspeed_shm_comm could not be compiled (kernel.cpp:7:10: fatal error: immintrin.h: not "
        "found); `stacking doctor` checks the compilers"
    )
