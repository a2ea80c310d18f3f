"""GLUE through SLURM: a job fine-tunes its task, and the same command reports the result."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.glue.small_glue import write_bert, write_glue
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.submitted import ROOT

pytestmark = pytest.mark.slurm


def test_a_job_fine_tunes_its_task(lab: Lab, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    model, data, out = write_bert(tmp_path / "bert"), write_glue(tmp_path / "data", "RTE"), tmp_path / "out"
    site = tmp_path / "site.yaml"
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    site.write_text(yaml.safe_dump({"python": sys.executable, "gpu_option": "none", "environment": environment}))
    argv = [sys.executable, "-m", "stacking", "glue", model, "--data", data, "--out", out, "--tasks", "RTE"]
    argv += ["--seeds", "1", "--set", "epochs=1", "--submit", "--site", site]

    def stacking() -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, capture_output=True, text=True, env=lab.environment, timeout=600, check=True)

    first = stacking()
    assert "submitted" in first.stderr and "RTE: 0 of 1 run finished" in first.stderr
    assert "submitted" not in stacking().stderr
    deadline = time.monotonic() + 600
    while not (out / "submission" / "RTE.tsv").is_file():
        logs = "".join(path.read_text() for path in (out / "slurm").glob("*.log"))
        assert time.monotonic() < deadline and "Error" not in logs, logs
        time.sleep(0.3)
    last = stacking()
    assert "RTE: 1 of 1 run finished" in last.stderr
    assert any(line.startswith("bert ") for line in last.stdout.splitlines())
