"""What the null GPU defines itself, and what it generates. Building all of it needs CUDA's headers: tools/prove_gpu."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.null_gpu.build import SOURCES, generated, missing

needs_a_compiler = pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("nm")), reason="needs gcc and nm")


def library(folder: Path, text: str) -> Path:
    """A shared library of one C file."""
    (folder / "library.c").write_text(text)
    path = folder / "library.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", folder / "library.c", "-o", path], check=True)
    return path


@needs_a_compiler
def test_functions_that_a_library_needs_and_no_source_defines_are_missing(tmp_path: Path) -> None:
    used = ("cudaMalloc", "cudaGetErrorString", "cudaEventQuery", "cublasCgemm_v2", "cudnnCreate", "other")
    calls = "".join(f"int {name}(); {name}();" for name in used)

    found = missing([library(tmp_path, f"void use() {{ {calls} }}")], SOURCES.iterdir())

    assert {"cudaEventQuery", "cublasCgemm_v2", "cuTensorMapEncodeTiled"} <= set(found)
    assert not {"cudaMalloc", "cudaGetErrorString", "cudnnCreate", "other"} & set(found)


@needs_a_compiler
def test_generated_functions_count_their_calls_and_succeed(tmp_path: Path) -> None:
    text = (SOURCES / "counters.c").read_text() + generated(["cudaEventQuery", "cublasCgemm_v2"])
    (tmp_path / "null_gpu.h").write_text((SOURCES / "null_gpu.h").read_text())

    built = ctypes.CDLL(str(library(tmp_path, text)))

    assert [built.cudaEventQuery(), built.cudaEventQuery(), built.cublasCgemm_v2()] == [0, 0, 0]
    said = ctypes.create_string_buffer(200)
    built.null_gpu_read(said, 200)
    assert sorted(said.value.decode().splitlines()) == ["1 cublasCgemm_v2", "2 cudaEventQuery"]
    built.null_gpu_reset()
    assert built.null_gpu_read(said, 200) == 0
