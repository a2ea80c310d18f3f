"""Nodes that communicate over a network in which a cable can be cut: the node vanishes without notice."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from stacking.storage.files import checksum
from tests.slurm_lab.jobs import create, steps, submit
from tests.slurm_lab.lab import Lab

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.xdist_group("undisturbed"),  # the run that these files share
]


def test_a_node_that_is_cut_off_does_not_stop_the_run(
    undisturbed: Path, network_lab: Lab, recipe: Path, tmp_path: Path
) -> None:
    lab = network_lab
    run = create(recipe, tmp_path / "run")
    job = submit(lab, run, arguments="--only train:0,consolidate:0")
    lab.wait_until(lambda: steps(run, "0-L1") >= 60, every=0.02)
    lab.tool("cut", "n2")
    lab.wait_until(lambda: lab.job(job)["Restarts"] == "1" and lab.state(job) == "RUNNING")
    assert lab.job(job)["NodeList"] == "n[1,3]"
    lab.tool("join", "n2")
    assert lab.wait_for_end(job)["JobState"] == "COMPLETED", lab.output(job)
    weights = "0-L1/state/weights.safetensors"
    assert checksum(run / weights) == checksum(undisturbed / weights)


def test_ranks_meet_at_the_first_nodes_address_over_the_sites_interface(network_lab: Lab, tmp_path: Path) -> None:
    script = (
        "import os; from stacking.launch.rendezvous import rendezvous as r; v = r(os.environ); "
        "print(v['RANK'], v['MASTER_ADDR'], v['MASTER_PORT'], v['GLOO_SOCKET_IFNAME'])"
    )
    command = f'PYTHONPATH={Path(__file__).parents[2]} STACKING_INTERFACE=eth0 srun {sys.executable} -c "{script}"'
    job = network_lab.sbatch("-N2", "--nodelist=n2,n3", "-o", tmp_path / "out", "--wrap", command)
    assert network_lab.wait_for_end(job)["JobState"] == "COMPLETED", (tmp_path / "out").read_text()
    first, second = sorted((tmp_path / "out").read_text().splitlines())
    assert re.fullmatch(r"0 10\.\d+\.\d+\.12 \d+ eth0", first)
    assert second == f"1{first[1:]}"
