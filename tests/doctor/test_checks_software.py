"""Findings about packages, compilers and launchers. The facts are invented: each machine lacks one thing."""

from __future__ import annotations

import pytest

from stacking.doctor.facts import DeepSpeed, Facts, Host, Module, Tools, Torch
from tests.doctor.sample_machines import A100, CU130, OPS, P40, findings, machine, only, plan_for

NO_TORCH = {"torch": "ModuleNotFoundError: No module named 'torch'"}
CUDA_13 = ("13.0", CU130)


def test_without_torch_the_command_that_installs_it_is_given() -> None:
    facts = machine(torch=None, packages={}, failures=NO_TORCH)
    found = only("imports", facts)
    assert (found.level, found.what, found.found) == ("error", "torch", "not installed")
    assert found.advice == "pip install 'torch>=2.4'"


def test_without_torch_on_a_p40_the_advice_avoids_pips_default_build() -> None:
    found = only("imports", machine(P40, torch=None, failures=NO_TORCH))
    assert found.level == "error" and "cu126" in found.advice


def test_without_torch_the_advice_for_deepspeed_is_to_install_torch_first() -> None:
    failures = {**NO_TORCH, "deepspeed": "ImportError: no torch"}
    first, second = findings("imports", machine(torch=None, deepspeed=None, failures=failures))
    assert (first.what, second.what, second.advice) == ("torch", "DeepSpeed", "install torch first")
    broken = only("imports", machine(failures={"torch": "ImportError: libcudart.so.12: no such file"}))
    assert broken.level == "error" and "libcudart" in broken.found


def test_a_slow_import_is_only_a_warning() -> None:
    found = only("imports", machine(torch=None, failures={"torch": "no answer for 90 s"}))
    assert (found.level, found.found) == ("warning", "importing it: no answer for 90 s")


def test_versions_are_compared_with_what_was_tested() -> None:
    packages = {"torch": "2.3.1", "deepspeed": "0.20.0", "numpy": "2.0.0", "pydantic": "2.8.0", "datasets": "3.0.0"}
    found = {(f.level, f.what): f for f in findings("versions", machine(packages=packages))}
    assert "at least 2.4 is needed" in found["error", "torch"].found
    assert "deepspeed 0.20.0 (tested up to 0.19.8)" in found["note", "versions"].found
    assert ("warning", "transformers") in found and ("error", "numpy") not in found


def test_kernels_need_a_toolkit_a_compiler_and_ninja() -> None:
    assert only("kernels", machine(A100)).level == "ok"
    bare = only("kernels", machine(A100, tools=Tools()))
    assert bare.level == "note"
    assert bare.found == "cannot be compiled: no nvcc (and no C++ compiler, no ninja on the PATH)"
    assert bare.advice == "install the CUDA toolkit 12.6 and set CUDA_HOME"


def test_kernels_that_the_plan_needs_and_that_cannot_be_compiled_are_an_error() -> None:
    plan = plan_for(optimizer={"type": "AdamW", "params": {}})
    found = only("kernels", machine(A100, tools=Tools(), plan=plan))
    assert found.level == "error" and "the plan needs fused_adam" in found.found
    torchs = plan_for(optimizer={"type": "AdamW", "params": {"torch_adam": True}})
    assert only("kernels", machine(A100, tools=Tools(), plan=torchs)).level == "note"
    built = DeepSpeed(version="0.19.8", accelerator="cuda", fp16=True, bf16=True, ops=OPS, built=("fused_adam",))
    assert only("kernels", machine(A100, tools=Tools(), plan=plan, deepspeed=built)).level == "note"


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "level"),
    [("12.6", "12.4", "ok"), ("12.6", "11.8", "note"), ("13.0", "13.0", "ok"), ("13.2", "13.0", "note")],
)
def test_deepspeed_needs_the_toolkit_of_torch_with_the_same_minor_version_from_cuda_13(
    torch_cuda: str, nvcc: str, level: str
) -> None:
    tools = Tools(nvcc=nvcc, compiler="12", ninja="1")
    facts = machine(A100, cuda=torch_cuda, architectures=CU130, tools=tools)
    assert only("kernels", facts).level == level
    forced = Host(name="n1", environment={"DS_SKIP_CUDA_CHECK": "1"})
    assert only("kernels", facts.model_copy(update={"host": forced})).level == "ok"


def test_the_compiler_of_cuda_13_cannot_compile_for_a_p40() -> None:
    facts = machine(P40, tools=Tools(nvcc="13.0", compiler="12", ninja="1"))
    assert "nvcc 13.0 cannot compile for sm_61" in only("kernels", facts).found


def test_the_lock_of_a_killed_build_is_reported_with_the_command_that_removes_it() -> None:
    blocked = Host(name="n1", stale_locks=("/cache/fused_adam/lock",))
    found = only("build locks", machine(A100, host=blocked))
    assert (found.level, found.advice) == ("warning", "run `rm /cache/fused_adam/lock`")
    plan = plan_for(optimizer={"type": "AdamW", "params": {"torch_adam": False}})
    assert only("build locks", machine(A100, host=blocked, plan=plan)).level == "error"
    assert findings("build locks", machine(A100)) == []


def test_an_apex_that_is_not_nvidias_is_recognised_by_what_it_lacks() -> None:
    impostor = Module(version="0.9.8", path="/venv/apex/__init__.py", missing=("optimizers.FusedAdam",))
    found = only("apex", machine(apex=impostor))
    assert found.level == "warning" and "is not NVIDIA's: it has no optimizers.FusedAdam" in found.found
    assert only("apex", machine(apex=Module(path="/venv/apex"))).level == "ok"
    assert findings("apex", machine()) == []
    assert "pip uninstall" in only("apex", machine(failures={"apex": "ImportError: pyramid"})).advice


def test_flash_attn_is_useless_on_a_p40() -> None:
    assert only("flash attention", machine(P40, flash_attn=Module(version="2.8.3"))).level == "note"
    assert only("flash attention", machine(A100, flash_attn=Module(version="2.8.3"))).level == "ok"
    assert only("flash attention", machine(failures={"flash_attn": "ImportError: undefined symbol"})).level == "warning"


def test_ranks_on_gpus_need_nccl() -> None:
    found = only("backends", machine(A100, torch=Torch(version="2", cuda="12.6", gpus=(A100,), backends=("gloo",))))
    assert (found.level, found.found) == ("error", "has no nccl")
    assert "NCCL 2.27.3" in only("backends", machine(A100)).found


def test_mpirun_needs_mpi4py() -> None:
    last = findings("backends", machine(launcher="mpi"))[1:]
    assert [(f.level, f.what) for f in last] == [("error", "mpi4py"), ("error", "mpirun")]
    tools = Tools(mpirun="4.1.4")
    good = findings("backends", machine(launcher="mpi", tools=tools, mpi4py=Module(version="4.1.2")))
    assert [f.level for f in good] == ["ok", "ok"]
    broken = {"mpi4py": "ImportError: libmpi.so.40"}
    assert findings("backends", machine(failures=broken))[1].level == "note"
    assert findings("backends", machine(launcher="mpi", failures=broken, tools=tools))[1].level == "error"


def test_a_failed_probe_is_a_finding() -> None:
    found = only("probes", Facts(failures={"folder": "no answer for 45 s", "torch": "spoken of elsewhere"}))
    assert (found.level, found.what) == ("warning", "folder") and "no answer for 45 s" in found.found
