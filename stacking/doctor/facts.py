"""What is known about a machine before anything is said about it: gathered by `gather`, or made up by a test.

None, or an empty collection, means that it could not be found out; ``failures`` says why.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from stacking.hardware.processor import BF16_FLAGS
from stacking.planning.plan import Plan

Capability = tuple[int, int]
"""CUDA's compute capability: (6, 1) is a P40, (7, 0) a V100."""


NO_ANSWER = "no answer"
"""How a failure begins that says nothing but that a time limit was over: a slow file server, perhaps."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(_Facts):
    name: str
    memory: int
    """Bytes."""
    capability: Capability


class Host(_Facts):
    """What the operating system gives to a rank."""

    name: str = ""
    python: str = ""
    system: str = ""
    cores: int = 0
    """Of the whole machine."""
    affinity: int = 0
    """Cores that this process may use."""
    quota: float | None = None
    """Cores' worth of time that its control group allows."""
    cpu_flags: tuple[str, ...] = ()
    """Those of `CPU_FLAGS` that it has."""
    memory: int = 0
    """Bytes, those of the control group where it allows less."""
    available: int = 0
    """Bytes of it that are free."""
    shared_memory: int | None = None
    """Bytes that /dev/shm may hold."""
    locked_memory: int | None = None
    """Bytes that a process may lock; None: as many as it likes."""
    open_files: int | None = None
    """The most that a process may ask for; None: as many as it likes."""
    infiniband: tuple[str, ...] = ()
    """Adapters that can read memory by themselves (RDMA)."""
    environment: Mapping[str, str] = Field(default_factory=dict)
    """Variables that change what is found here."""


CPU_FLAGS = ("avx2", "avx512f", *sorted(BF16_FLAGS))


class Tools(_Facts):
    """Versions of programs; None: not there."""

    nvcc: str | None = None
    """Of the CUDA toolkit, as in 12.6."""
    compiler: str | None = None
    ninja: str | None = None
    mpirun: str | None = None
    srun: str | None = None
    driver: str | None = None
    """NVIDIA's."""


class Torch(_Facts):
    """What `import torch` gives."""

    version: str
    cuda: str | None = None
    """The CUDA that it was built for; None: for CPUs alone."""
    architectures: tuple[str, ...] = ()
    """``torch.cuda.get_arch_list()``: sm_70 is code for one generation, compute_90 what later ones can translate."""
    gpus: tuple[Gpu, ...] = ()
    """Those that torch can see."""
    cuda_error: str = ""
    """Why it sees none, in its own words."""
    backends: tuple[str, ...] = ()
    """Of torch.distributed."""
    nccl: str | None = None
    triton: str | None = None
    threads: int = 0
    bf16_slowdown: float | None = None
    """How many times as long as in fp32 a matrix product on the CPU takes in bf16."""
    attention: tuple[str, ...] = ()
    """Fused attention kernels that are enabled."""


class DeepSpeed(_Facts):
    version: str
    accelerator: str
    fp16: bool
    """Whether it accepts the precision, emulated or not."""
    bf16: bool
    ops: Mapping[str, bool] = Field(default_factory=dict)
    """Kernels that it would compile here when they are needed, and whether it thinks that it could."""
    built: tuple[str, ...] = ()
    """Kernels that were compiled when it was installed."""


class Module(_Facts):
    """An optional package that was imported."""

    version: str | None = None
    path: str = ""
    missing: tuple[str, ...] = ()
    """Names that the package of this name should have, and has not."""


class Folder(_Facts):
    """Where a run is to be kept."""

    path: str
    filesystem: str
    free: int
    """Bytes."""
    write: float | None = None
    """Bytes per second, until they are on the disk."""
    read: float | None = None
    """Bytes per second, not from memory where the file system can forget."""
    cached: bool = False
    """Whether the reading may have been from memory after all."""
    lock_error: str = ""
    """Why files cannot be locked; empty: they can."""
    used: int = 0
    """Bytes that the run takes already."""


class Member(_Facts):
    """One rank of the measured job."""

    rank: int
    host: str
    python: str
    torch: str
    device: str
    sees_folder: bool


class Transfer(_Facts):
    """One measured collective operation."""

    operation: str
    """``all-reduce``, ``reduce-scatter`` or ``all-gather``."""
    bytes: int
    """Of the whole buffer: all ranks' parts together, where each has one."""
    ranks: int
    nodes: int
    seconds: float
    """Of the slowest rank; median."""
    bandwidth: float
    """Bus bandwidth in bytes/s: what each link must carry, whatever the number of ranks."""


class Skew(_Facts):
    """A host's clock beside that of rank 0."""

    host: str
    seconds: float
    """Positive: ahead."""
    uncertainty: float
    """Half of the quickest round trip."""


class Collectives(_Facts):
    """What ranks measured between each other."""

    backend: str
    ranks: int
    nodes: int
    members: tuple[Member, ...]
    transfers: tuple[Transfer, ...] = ()
    wrong: tuple[str, ...] = ()
    """Operations whose results were not right."""
    refused: tuple[str, ...] = ()
    """Operations that the backend does not do, and its words."""
    skews: tuple[Skew, ...] = ()
    latency_seconds: float | None = None
    """Of an all-reduce of one number."""


class Facts(_Facts):
    """Everything that the checks look at."""

    host: Host = Host()
    tools: Tools = Tools()
    packages: Mapping[str, str] = Field(default_factory=dict)
    """Versions of installed distributions."""
    gpus: tuple[Gpu, ...] = ()
    """Those that nvidia-smi lists."""
    torch: Torch | None = None
    deepspeed: DeepSpeed | None = None
    apex: Module | None = None
    flash_attn: Module | None = None
    mpi4py: Module | None = None
    folder: Folder | None = None
    collectives: Collectives | None = None
    ranks: int = 1
    """That are to run on this machine."""
    launcher: str = "local"
    plan: Plan | None = None
    failures: Mapping[str, str] = Field(default_factory=dict)
    """What could not be found out, and why."""
