"""Checks packages, compilers and launchers."""

from __future__ import annotations

from collections.abc import Iterator

from stacking.deepspeed_config import ds_config
from stacking.doctor.checks.gpus import known_gpus
from stacking.doctor.compatibility import (
    CUDA_MINORS_MATTER_FROM,
    LAST_CUDA,
    TESTED,
    TRITON_FULL,
    builds_for,
    version,
)
from stacking.doctor.facts import NO_ANSWER, Facts
from stacking.doctor.finding import Finding, Level

_IMPORTED = {"torch": "torch", "deepspeed": "DeepSpeed"}
"""Packages that training requires, by the probe section that imports them."""


def imports(facts: Facts) -> Iterator[Finding]:
    """Checks that torch and DeepSpeed can be imported."""
    for name, title in _IMPORTED.items():
        failure = facts.failures.get(name)
        if failure is None:
            continue
        if failure.startswith(NO_ANSWER):
            yield Finding(
                "warning", title, f"importing it: {failure}", "repeat it, or install it on a faster file system"
            )
        elif f"No module named '{name}'" in failure:
            old = next((builds_for(gpu.capability) for gpu in facts.gpus if builds_for(gpu.capability)), None)
            usual = f"pip install '{name}>={TESTED[name].least}'"
            advice = f"install {old}" if name == "torch" and old else usual
            yield Finding("error", title, "not installed", advice)
        else:
            advice = "install torch first" if name != "torch" and "torch" in facts.failures else "install it again"
            yield Finding("error", title, f"cannot be imported: {failure}", advice)


def versions(facts: Facts) -> Iterator[Finding]:
    """Compares the versions of Python and the packages with the tested ones."""
    newer = []
    for name, tested in TESTED.items():
        has = facts.packages.get(name)
        if has is None:
            if facts.packages and name not in facts.failures:
                level: Level = "error" if tested.needed_to_train else "warning"
                yield Finding(level, name, "not installed", f"pip install '{name}>={tested.least}'")
        elif version(has) and version(has) < version(tested.least):
            problem = f"{has}, but at least {tested.least} is needed"
            yield Finding("error", name, problem, f"pip install '{name}>={tested.least}'")
        elif version(has)[:2] > version(tested.newest)[:2]:
            newer.append(f"{name} {has} (tested up to {tested.newest})")
    if newer:
        yield Finding("note", "versions", f"newer than tested: {', '.join(newer)}", "downgrade if something misbehaves")
    shown = ", ".join(f"{name} {facts.packages[name]}" for name in ("torch", "deepspeed") if name in facts.packages)
    if shown:
        yield Finding("ok", "versions", f"Python {facts.host.python}, {shown}")


def kernels(facts: Facts) -> Iterator[Finding]:
    """Checks that DeepSpeed can compile its kernels: a toolkit that matches torch's CUDA, a compiler, ninja."""
    if facts.deepspeed is None:
        return
    on_gpus = bool(facts.torch and facts.torch.cuda and known_gpus(facts))
    problems = [*_toolkit(facts)] if on_gpus else []
    if facts.tools.compiler is None:
        problems.append(("no C++ compiler", "install g++"))
    if facts.tools.ninja is None:
        problems.append(("no ninja on the PATH", "pip install ninja, and activate the environment"))
    needed = _needed(facts) - set(facts.deepspeed.built)
    refused = sorted(op for op in needed if not facts.deepspeed.ops.get(op, True))
    problems += [(f"{op} is not compatible", "see ds_report") for op in refused]
    refuses = sorted(op for op, fits in facts.deepspeed.ops.items() if not fits)
    if problems:
        found, advice = problems[0][0], problems[0][1]
        more = f" (and {', '.join(problem for problem, _ in problems[1:])})" if problems[1:] else ""
        if needed:
            what = f"{found}{more}, but the plan needs {', '.join(sorted(needed))}"
            yield Finding("error", "DeepSpeed kernels", what, f"{advice}, or plan again on this machine")
        else:
            yield Finding("note", "DeepSpeed kernels", f"cannot be compiled: {found}{more}", advice)
    else:
        toolkit = f"nvcc {facts.tools.nvcc}, " if on_gpus else ""
        but = f" but {', '.join(refuses)}" if refuses else ""
        yield Finding("ok", "DeepSpeed kernels", f"{toolkit}g++ {facts.tools.compiler} and ninja can build all{but}")


def build_locks(facts: Facts) -> Iterator[Finding]:
    """Checks that no killed build of a kernel blocks the next one."""
    level: Level = "error" if _needed(facts) else "warning"
    for lock in facts.host.stale_locks:
        problem = f"{lock} is left over from a killed build, and every start that needs the kernel waits for it"
        yield Finding(level, "build lock", problem, f"run `rm {lock}`")


def apex(facts: Facts) -> Iterator[Finding]:
    """Checks that apex is NVIDIA's: the package index has an unrelated one."""
    if (failure := facts.failures.get("apex")) is not None:
        yield Finding("warning", "apex", f"cannot be imported: {failure}", "pip uninstall apex: it is not needed")
    elif facts.apex is not None and facts.apex.missing:
        problem = f"{facts.apex.path} is not NVIDIA's: it has no {', '.join(facts.apex.missing)}"
        yield Finding("warning", "apex", problem, "pip uninstall apex; NVIDIA's is built from its own repository")
    elif facts.apex is not None:
        yield Finding("ok", "apex", "NVIDIA's, with FusedAdam and FusedLayerNorm")


def flash_attention(facts: Facts) -> Iterator[Finding]:
    """Checks whether flash-attn is installed and works on these GPUs."""
    found = known_gpus(facts)
    old = bool(found) and min(gpu.capability for gpu in found) < TRITON_FULL
    if (failure := facts.failures.get("flash_attn")) is not None:
        advice = "pip uninstall flash-attn, or build it against this torch"
        yield Finding("warning", "flash-attn", f"cannot be imported: {failure}", advice)
    elif facts.flash_attn is not None and old:
        problem = f"{facts.flash_attn.version} is installed, but needs compute capability 8.0 or later"
        yield Finding("note", "flash-attn", problem, "nothing: PyTorch's memory-efficient attention is used")
    elif facts.flash_attn is not None:
        yield Finding("ok", "flash-attn", str(facts.flash_attn.version))


def backends(facts: Facts) -> Iterator[Finding]:
    """Checks which backends ranks can use, and whether the chosen launcher can start them."""
    torch = facts.torch
    if torch is not None:
        gpus = known_gpus(facts)
        missing = [
            name for name in (("nccl", "gloo") if gpus and torch.cuda else ("gloo",)) if name not in torch.backends
        ]
        if missing:
            yield Finding(
                "error", "torch.distributed", f"has no {', '.join(missing)}", "install another build of torch"
            )
        else:
            nccl = f"; NCCL {torch.nccl}" if torch.nccl else ""
            yield Finding("ok", "torch.distributed", f"{', '.join(torch.backends)}{nccl}")
    if (failure := facts.failures.get("mpi4py")) is not None:
        level: Level = "error" if facts.launcher == "mpi" else "note"
        advice = "build it with the MPI of this machine: pip install --no-binary mpi4py mpi4py"
        yield Finding(level, "mpi4py", f"cannot be imported: {failure}", advice)
    elif facts.launcher == "mpi" and facts.mpi4py is None:
        yield Finding("error", "mpi4py", "not installed, but mpirun's ranks need it", "pip install 'stacking[mpi]'")
    if facts.launcher == "mpi" and facts.tools.mpirun is None:
        yield Finding("error", "mpirun", "not on this machine", "install OpenMPI, or use --launcher local")
    elif facts.tools.mpirun and facts.mpi4py is not None:
        yield Finding("ok", "MPI", f"mpirun {facts.tools.mpirun}, mpi4py {facts.mpi4py.version}")


def probes(facts: Facts) -> Iterator[Finding]:
    """Reports facts that could not be determined, unless another check covers them."""
    told = {*_IMPORTED, "apex", "flash_attn", "mpi4py", "collectives"}
    for name, failure in facts.failures.items():
        if name not in told:
            yield Finding("warning", name, f"could not be checked: {failure}", "try again; report it if it persists")


def _toolkit(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yields why nvcc and this torch do not match, with advice."""
    assert facts.torch is not None and facts.torch.cuda is not None
    wanted = ".".join(facts.torch.cuda.split(".")[:2])
    if facts.tools.nvcc is None:
        yield "no nvcc", f"install the CUDA toolkit {wanted} and set CUDA_HOME"
        return
    has, want = version(facts.tools.nvcc)[:2], version(wanted)[:2]
    skips = facts.host.environment.get("DS_SKIP_CUDA_CHECK") == "1"
    fits = has == want or (has[0] == want[0] and has[0] < CUDA_MINORS_MATTER_FROM)
    if not fits and not skips:
        yield f"nvcc is {facts.tools.nvcc}, but torch is built for CUDA {wanted}", f"install CUDA toolkit {wanted}"
    if has[0] > LAST_CUDA and (old := next((g for g in known_gpus(facts) if builds_for(g.capability)), None)):
        sm = f"sm_{old.capability[0]}{old.capability[1]}"
        yield f"nvcc {facts.tools.nvcc} cannot compile for {sm}", "install the CUDA toolkit 12.6"


def _needed(facts: Facts) -> set[str]:
    """Returns the kernels without which a stage of the plan cannot start."""
    needed = set()
    for stage in facts.plan.stages if facts.plan else ():
        optimizer = stage.ds_config.get("optimizer", {})
        kind, torchs = optimizer.get("type", "").lower(), optimizer.get("params", {}).get("torch_adam", False)
        if kind in ("adam", "adamw") and not torchs:
            needed.add("cpu_adam" if "optimizer" in ds_config.offloads(stage.ds_config) else "fused_adam")
    return needed
