"""What tests on the null GPU need."""

from __future__ import annotations

import pytest

from tools.null_gpu.build import CannotBuild, build


def require() -> None:
    """Skips the calling module where the library cannot be built: that needs gcc and a CUDA build of PyTorch."""
    try:
        build()
    except CannotBuild as problem:
        pytest.skip(f"the null GPU cannot be built here: {problem}", allow_module_level=True)
