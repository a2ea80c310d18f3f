"""The check of the nodes before a stage trains, on a real SLURM. No training here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.chain import write_recipe
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.submitted import ROOT, Submitted

pytestmark = pytest.mark.slurm


def only_the_controller_is_a_stub(folder: Path) -> Path:
    """An interpreter that runs the stub in place of the controller, and everything else unchanged."""
    path = folder / "python"
    path.write_text(
        f'#!/bin/sh\ncase "$3" in resume) exec {sys.executable} -m tests.slurm_lab.stub_controller "$@";; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path


def test_a_node_that_cannot_train_ends_its_job_before_training_and_is_checked_again(
    lab: Lab, tmp_path: Path, data: Path
) -> None:
    """The problem is simulated: a torch that cannot be imported, until it is removed."""
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    environment = {"PYTHONPATH": f"{broken.parent}:{ROOT}"}
    stage = {"layers": 1, "steps": 6, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}}
    recipe, python = write_recipe(tmp_path, data, stages=[stage]), only_the_controller_is_a_stub(tmp_path)
    chain = Submitted(lab, tmp_path, recipe, python=python, doctor=True, environment=environment)
    chain.submit()
    first = chain.jobs()
    lab.wait_for(first["0-L1"], "FAILED")
    lab.wait_for(first["watch"], "COMPLETED")
    assert lab.job(first["0-L1"])["Restarts"] == "0"
    (log,) = (chain.run / "slurm").glob("0-L1.*.log")
    said = [line for line in log.read_text().splitlines() if line.startswith("stacking")]
    assert len(said) == 1 and "torch: cannot be imported: ImportError: libcudart.so.12" in said[0]
    status = chain.status()
    assert (status["state"], status["phase"], chain.events("started")) == ("failed", "doctor", [])
    assert "libcudart.so.12" in status["last_error"]

    shutil.rmtree(broken)
    chain.resume()
    lab.wait_for(chain.jobs()["finish"], "COMPLETED")
    found = json.loads((chain.run / "doctor.json").read_text())
    assert found["collectives"] and {transfer["ranks"] for transfer in found["collectives"]} == {2}
    assert found["job"]["nodes"].startswith("n[")
    assert not list(chain.run.glob(".stacking-doctor*"))
