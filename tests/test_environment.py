"""tools/environment installs a torch that has code for the oldest GPU of the machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "environment"


def chosen(folder: Path, capabilities: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the script's function prints when a fake nvidia-smi lists these compute capabilities."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{capabilities}'\n")
    program.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    command = f"eval \"$(sed -n '/^_torch()/,/^}}/p' {SCRIPT})\"; _torch"
    variables = {**os.environ, "PATH": path, **environment}
    return subprocess.run(["bash", "-c", command, "tools/test"], env=variables, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("capabilities", "torch"),
    [("", "torch==2.13.0"), ("9.0\n", "torch==2.13.0"), ("8.0\n7.0\n", "torch==2.10.0"), ("[N/A]\n", "torch==2.13.0")],
)
def test_the_build_suits_the_oldest_gpu(tmp_path: Path, capabilities: str, torch: str) -> None:
    assert chosen(tmp_path, capabilities).stdout == f"{torch}\n"


def test_packages_that_cannot_run_on_pascal_are_not_installed_there(tmp_path: Path) -> None:
    refused = chosen(tmp_path, "6.1\\n6.1\\n")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "compute capability 6.1" in refused.stderr and "TORCH='torch==2.13.0 --index-url URL'" in refused.stderr
    given = chosen(tmp_path, "6.1\\n", TORCH="torch==2.13.0 --index-url there")
    assert given.stdout == "torch==2.13.0 --index-url there\n"
