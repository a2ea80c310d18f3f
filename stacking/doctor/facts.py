"""Defines the facts about a machine that the checks judge: gathered by `gather`, or constructed by a test.

None, or an empty collection, means unknown; ``failures`` says why.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from stacking.planning.plan import Plan
from stacking.storage.frozen import Frozen

Capability = tuple[int, int]
"""CUDA's compute capability: (6, 1) is a P40, (7, 0) a V100."""


NO_ANSWER = "no answer"
"""How a failure begins that only reports a timeout, possibly of a slow file server."""


class GpuFacts(Frozen):
    """One GPU."""

    name: str
    memory: int
    """Bytes."""
    capability: Capability


class Host(Frozen):
    """What the operating system gives a rank."""

    name: str = ""
    python: str = ""
    system: str = ""
    cores: int = 0
    """Cores of the whole machine."""
    affinity: int = 0
    """Cores that this process may use."""
    quota: float | None = None
    """CPU time that the control group allows, in cores."""
    cpu_flags: tuple[str, ...] = ()
    """Those of `stacking.doctor.machine.CPU_FLAGS` that the processor has."""
    memory: int = 0
    """Bytes; the control group's limit where that is lower."""
    available: int = 0
    """Free bytes."""
    shared_memory: int | None = None
    """Capacity of /dev/shm in bytes."""
    locked_memory: int | None = None
    """Bytes that a process may lock; None: unlimited."""
    open_files: int | None = None
    """The hard limit of a process; None: unlimited."""
    infiniband: tuple[str, ...] = ()
    environment: Mapping[str, str] = Field(default_factory=dict)
    stale_locks: tuple[str, ...] = ()


class Tools(Frozen):
    """Versions of programs; None: not installed."""

    nvcc: str | None = None
    """Version of the CUDA toolkit, such as 12.6."""
    compiler: str | None = None
    ninja: str | None = None
    mpirun: str | None = None
    srun: str | None = None
    driver: str | None = None
    """NVIDIA's."""


class Torch(Frozen):
    """What `import torch` reports."""

    version: str
    cuda: str | None = None
    """The CUDA version it was built for; None: a CPU-only build."""
    architectures: tuple[str, ...] = ()
    """``torch.cuda.get_arch_list()``: sm_70 is machine code for one generation, compute_90 is PTX for later ones."""
    gpus: tuple[GpuFacts, ...] = ()
    """The GPUs visible to torch."""
    cuda_error: str = ""
    """Why torch sees no GPU, in its own words."""
    backends: tuple[str, ...] = ()
    nccl: str | None = None
    triton: str | None = None
    threads: int = 0
    bf16_slowdown: float | None = None
    """Time of a bf16 matrix product on the CPU relative to fp32."""
    attention: tuple[str, ...] = ()
    """The enabled fused attention kernels."""


class DeepSpeed(Frozen):
    """What DeepSpeed reports about itself and this machine."""

    version: str
    accelerator: str
    fp16: bool
    """Whether DeepSpeed accepts the precision, emulated or not."""
    bf16: bool
    ops: Mapping[str, bool] = Field(default_factory=dict)
    """Kernels that DeepSpeed compiles on demand, and whether it considers them compatible."""
    built: tuple[str, ...] = ()
    """Kernels that were compiled at installation."""


class Module(Frozen):
    """An optional package that can be imported."""

    version: str | None = None
    path: str = ""
    missing: tuple[str, ...] = ()
    """Names that the genuine package has and this one lacks."""


class FolderFacts(Frozen):
    """The folder that will hold the run."""

    path: str
    filesystem: str
    free: int
    """Bytes."""
    write: float | None = None
    """Bytes per second, until the data is on the disk."""
    read: float | None = None
    """Bytes per second, bypassing the page cache where the file system allows."""
    cached: bool = False
    """Whether the file may have been read from the page cache after all."""
    lock_error: str = ""
    """Why files cannot be locked; empty if they can."""
    used: int = 0
    """Bytes that the run already uses."""


class Member(Frozen):
    """One rank of the measured job."""

    rank: int
    host: str
    python: str
    torch: str
    device: str
    sees_folder: bool


class MeasuredTransfer(Frozen):
    """One measured collective operation."""

    operation: str
    """``all-reduce``, ``reduce-scatter`` or ``all-gather``."""
    bytes: int
    """Size of the whole buffer: the parts of all ranks together."""
    ranks: int
    nodes: int
    seconds: float
    """Seconds on the slowest rank; median."""
    bandwidth: float
    """Bus bandwidth in bytes/s: the load on each link, independent of the number of ranks."""


class Skew(Frozen):
    """Offset of a host's clock from rank 0's."""

    host: str
    seconds: float
    """Positive: ahead."""
    uncertainty: float
    """Half of the fastest round trip."""


class Collectives(Frozen):
    """What the ranks measured between each other."""

    backend: str
    ranks: int
    nodes: int
    members: tuple[Member, ...]
    transfers: tuple[MeasuredTransfer, ...] = ()
    wrong: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    """Operations that the backend does not support, with its message."""
    skews: tuple[Skew, ...] = ()
    latency_seconds: float | None = None
    """Seconds of an all-reduce of one number."""


class Facts(Frozen):
    """Everything that the checks look at."""

    host: Host = Host()
    tools: Tools = Tools()
    packages: Mapping[str, str] = Field(default_factory=dict)
    gpus: tuple[GpuFacts, ...] = ()
    """The GPUs that nvidia-smi lists."""
    torch: Torch | None = None
    deepspeed: DeepSpeed | None = None
    apex: Module | None = None
    flash_attn: Module | None = None
    mpi4py: Module | None = None
    folder: FolderFacts | None = None
    collectives: Collectives | None = None
    ranks: int = 1
    """Ranks that will run on this machine."""
    launcher: str = "local"
    plan: Plan | None = None
    failures: Mapping[str, str] = Field(default_factory=dict)
    """What could not be determined, and why."""
