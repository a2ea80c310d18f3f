"""Builds the library for the PyTorch of this environment.

The sources define what must work. PyTorch's libraries need hundreds of other functions, which only count their calls;
they are listed from those libraries and generated.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).with_name("source")
ROOT = Path(__file__).parents[2]
BUILDS = ROOT / "build" / "null_gpu"
LIBRARY = "libcuda.so.1"
"""The driver's own name, under which Triton looks for it."""
_REPLACED = re.compile(r"(__cuda|cuda|cublas|nccl|cu)[A-Z]\w*")
_KEPT = ("cudnn", "cuFile", "cublasLtGetVersion", "cublasGetVersion")
"""Functions of libraries that stay real, or that are only asked for a version."""
_TRITON = (
    *("cuCtxGetLimit", "cuCtxPopCurrent_v2", "cuCtxPushCurrent_v2", "cuCtxSetCurrent", "cuCtxSetLimit"),
    *("cuEventCreate", "cuFuncSetAttribute", "cuFuncSetCacheConfig", "cuGetErrorName", "cuInit"),
    *("cuLaunchCooperativeKernel", "cuLaunchHostFunc", "cuLinkAddFile_v2", "cuMemAlloc_v2", "cuMemFree_v2"),
    *("cuMemsetD8Async", "cuModuleUnload", "cuMulticastCreate", "cuStreamSynchronize"),
    *("cuTensorMapEncodeIm2col", "cuTensorMapEncodeTiled"),
)
"""Functions of the driver that are looked up by name while a program runs, so that no library lists them."""


class CannotBuild(Exception):
    """Something that the build needs is missing here."""


def build() -> Path:
    """Returns the folder with the library, built if it is not there yet.

    Raises:
        CannotBuild: there is no CUDA build of PyTorch, compiler, `nm` or CUDA header.
    """
    for program in ("gcc", "nm"):
        if not shutil.which(program):
            raise CannotBuild(f"{program} is not installed")
    libraries, headers = _torch_libraries(), _headers()
    sources = sorted(SOURCES.iterdir())
    content = hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, Path(__file__)]))
    content.update(str([(path.name, path.stat().st_size) for path in libraries]).encode())
    folder = BUILDS / content.hexdigest()[:16]
    if not (folder / LIBRARY).exists():
        _compile(folder, headers, generated(missing(libraries, sources)))
    return folder


def missing(libraries: Iterable[Path], sources: Iterable[Path]) -> list[str]:
    """Returns the functions of CUDA that the libraries need and the sources do not define."""
    text = "".join(path.read_text() for path in sources if path.suffix == ".c")
    defined = set(re.findall(r"^[\w*]+ \**(\w+)\(", text.replace("const char *", "char *"), flags=re.MULTILINE))
    needed = {name for library in libraries for name in undefined(library) if _REPLACED.fullmatch(name)}
    return sorted(name for name in needed.union(_TRITON) - defined if not name.startswith(_KEPT))


def undefined(library: Path) -> list[str]:
    """Returns the symbols that a shared library expects from others."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    return [line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()]


def generated(names: Iterable[str]) -> str:
    """Returns C functions that count their calls and succeed."""
    functions = (f'int {name}() {{ COUNT("{name}"); return 0; }}' for name in names)
    return "\n".join(['#include "null_gpu.h"', *functions, ""])


def _torch_libraries() -> list[Path]:
    spec = find_spec("torch")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    libraries = sorted(path for path in folder.glob("*.so") if "cuda" in path.name or path.name == "libtorch_python.so")
    if not (folder / "libtorch_cuda.so").exists():
        raise CannotBuild("there is no CUDA build of PyTorch in this environment")
    return libraries


def _headers() -> list[Path]:
    """Returns the folders of CUDA's headers, those of PyTorch's own version first.

    Wheels of the runtime lack a few headers, which Triton brings along.
    """
    packages = Path(sysconfig.get_path("purelib"))
    own = sorted(packages.glob("nvidia/*/include/cuda_runtime_api.h"), reverse=True)
    triton = packages / "triton" / "backends" / "nvidia" / "include"
    if not own:
        raise CannotBuild("the headers of the CUDA runtime are not installed: pip install nvidia-cuda-runtime")
    return [own[0].parent, triton]


def _compile(folder: Path, headers: Sequence[Path], rest: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generated.c").write_text(rest)
    options = ["-std=gnu17", "-O1", "-w", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}"]
    include = [f"-I{path}" for path in (SOURCES, *headers)]
    sources = [*sorted(SOURCES.glob("*.c")), folder / "generated.c"]
    partial = folder / f"{LIBRARY}.partial"
    subprocess.run(["gcc", *options, *include, *sources, "-o", partial, "-lpthread", "-ldl"], check=True)
    partial.rename(folder / LIBRARY)
    (folder / "libcuda.so").symlink_to(LIBRARY)
