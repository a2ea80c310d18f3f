"""A whole run inside one SLURM job of two nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.checkpoints import latest
from stacking.files import read_json
from tests.chain import write_recipe
from tests.slurm.jobs import create, events, submit
from tests.slurm.lab import Lab

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.distributed]


def test_from_recipe_to_export_on_two_nodes(lab: Lab, data: Path, tmp_path: Path) -> None:
    run = create(write_recipe(tmp_path, data), tmp_path / "run")
    job = submit(lab, run)
    assert lab.wait_for_end(job)["JobState"] == "COMPLETED", lab.output(job)
    assert (run / "export" / "model.safetensors").is_file() and (run / "report.html").is_file()
    done = [(e["phase"], e["stage"]) for e in events(run) if e["event"] == "finished"]
    assert done[:2] == [("train", 0), ("consolidate", 0)] and done[-2:] == [("export", 2), ("report", 2)]
    checkpoint = latest(run / "0-L1" / "checkpoints")
    assert checkpoint is not None and read_json(checkpoint / "progress.json")["world_size"] == 2
    assert {path.name for path in (run / "0-L1" / "logs").glob("train-1*")} == {
        "train-1.launcher.log",
        "train-1.rank0.log",
        "train-1.rank1.log",
    }
