"""A chain of jobs, one a stage, with real training: undisturbed, preempted, requeued, failed and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from stacking.run.folder import RunFolder
from stacking.storage.files import read_json
from tests.chain import stacking, write_recipe
from tests.slurm_lab.jobs import records, steps
from tests.slurm_lab.lab import Lab
from tests.slurm_lab.submitted import Submitted

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.distributed]

STAGES = ["0-L1", "1-L2"]


def recipe(folder: Path, data: Path) -> Path:
    """A stage on one rank, then one on two that is long enough to be disturbed."""
    first = {"layers": 1, "steps": 6, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}}
    stages = [first | {"ranks": 1}, {"layers": 2, "steps": 60, "ranks": 2}]
    rarely = {"checkpoint": {"every_steps": 20, "keep": 2}, "evaluation": {"every_steps": 60, "samples": 16}}
    return write_recipe(folder, data, stages=stages, **rarely)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The same run without SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed")
    stacking("run", recipe(folder, data), "--run-dir", folder / "run")
    return folder / "run"


@pytest.fixture
def chain(lab: Lab, tmp_path: Path, data: Path) -> Submitted:
    return Submitted(lab, tmp_path, recipe(tmp_path, data))


def test_from_recipe_to_export_each_stage_on_its_own_nodes(chain: Submitted, undisturbed: Path) -> None:
    chain.submit("--set", "stages[1].resources.partition=high")
    assert_finished(chain)
    jobs = {name: chain.lab.job(job) for name, job in chain.jobs().items()}
    assert [jobs[name]["NumNodes"] for name in STAGES] == ["1", "2"]
    assert [jobs[name]["Partition"] for name in STAGES] == ["low", "high"]
    last = RunFolder(chain.run).stage("1-L2").checkpoints / "global_step60"
    assert read_json(last / "progress.json")["world_size"] == 2
    assert (chain.run / "export" / "model.safetensors").is_file()
    assert "finished" in chain.stacking("status", chain.run).stdout
    assert_same(chain.run, undisturbed)


def test_a_preempted_stage_leaves_a_checkpoint_and_the_chain_mends_itself(chain: Submitted, undisturbed: Path) -> None:
    chain.submit()
    job = chain.jobs()["1-L2"]
    for _ in range(2):
        before = steps(chain.run, "1-L2")
        chain.lab.wait_until(lambda before=before: steps(chain.run, "1-L2") >= before + 3)  # type: ignore[misc]
        preempt(chain.lab)
    chain.lab.wait_until(lambda: int(chain.lab.job(job)["Restarts"]) >= 1)
    assert_finished(chain)
    preempted = [event for event in chain.events("preempted") if event["stage"] == 1]
    assert preempted and all(event["phase"] == "train" for event in preempted)
    assert len(chain.events("submitted")) == len(chain.jobs())
    assert_same(chain.run, undisturbed)


def test_a_transition_that_is_requeued_is_made_again(chain: Submitted, undisturbed: Path) -> None:
    chain.submit()
    job = chain.jobs()["0-L1-to-1-L2"]
    chain.lab.wait_until(lambda: any(event["phase"] == "consolidate" for event in chain.events("started")))
    chain.lab.run("scontrol", "requeue", str(job))
    assert_finished(chain)
    assert chain.lab.job(job)["Restarts"] == "1"
    assert_same(chain.run, undisturbed)


def test_a_stage_that_cannot_work_stops_the_chain_until_it_is_submitted_again(
    chain: Submitted, undisturbed: Path, data: Path
) -> None:
    chain.submit()
    first = chain.jobs()
    chain.lab.run("scontrol", "hold", str(first["0-L1-to-1-L2"]))
    chain.lab.wait_for(first["0-L1"], "COMPLETED")
    shard = next((data / "train").glob("*.tokens.npy"))
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[: len(content) // 2])
        chain.lab.run("scontrol", "release", str(first["0-L1-to-1-L2"]))
        chain.lab.wait_for(first["0-L1-to-1-L2"], "FAILED")
        chain.lab.wait_until(lambda: chain.lab.state(first["finish"]) == "CANCELLED")
    finally:
        shard.write_bytes(content)
    assert not (chain.run / "1-L2" / "checkpoints").exists()
    log = chain.run / "slurm" / f"0-L1-to-1-L2.{first['0-L1-to-1-L2']}.log"
    assert shard.name in log.read_text()
    chain.resume()
    assert chain.jobs()["0-L1"] == first["0-L1"]
    assert_finished(chain)
    assert_same(chain.run, undisturbed)


def test_cancel_in_training_leaves_a_checkpoint_and_no_job(chain: Submitted, undisturbed: Path) -> None:
    chain.submit()
    chain.lab.wait_until(lambda: steps(chain.run, "1-L2") >= 3)
    chain.stacking("cancel", chain.run)
    assert chain.lab.run("squeue", "-h").strip() == ""
    done = steps(chain.run, "1-L2")
    assert (chain.run / "1-L2" / "checkpoints" / "latest").read_text() == f"global_step{done}"
    status = json.loads(chain.stacking("status", chain.run, "--json").stdout)
    assert status["state"] == "cancelled" and status["step"] == done
    chain.resume()
    assert_finished(chain)
    assert_same(chain.run, undisturbed)


def test_an_elastic_stage_starts_on_the_nodes_that_there_are(chain: Submitted, undisturbed: Path) -> None:
    blocker = chain.lab.sbatch("--nodes=2", "--exclusive", "--partition=high", "--output=/dev/null", "--wrap=sleep 900")
    chain.lab.wait_for(blocker, "RUNNING")
    elastic = ("launch.elastic=true", "launch.resources.min_nodes=1")
    chain.submit(*(word for setting in elastic for word in ("--set", setting)))
    assert_finished(chain)
    assert chain.lab.job(chain.jobs()["1-L2"])["NumNodes"] == "1"
    assert {event["world_size"] for event in chain.events("started")} == {1}
    for stage in STAGES:
        expected, found = records(undisturbed, stage), records(chain.run, stage)
        assert [(r["step"], r["samples"]) for r in found] == [(r["step"], r["samples"]) for r in expected]
        # The dropout of a sample depends on the rank that computes it.
        assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], rel=1e-2)


def test_one_allocation_that_is_submitted_trains_a_small_stage_on_a_part_of_it(
    chain: Submitted, undisturbed: Path
) -> None:
    chain.submit("--mode", "one-allocation")
    chain.lab.wait_for(chain.jobs()["run"], "COMPLETED", patience=400)
    assert [event["world_size"] for event in chain.events("started") if event["phase"] == "train"] == [1, 2]
    assert_same(chain.run, undisturbed)


def preempt(lab: Lab) -> None:
    """A short job of high priority that takes all nodes."""
    job = lab.sbatch("--nodes=3", "--exclusive", "--partition=high", "--output=/dev/null", "--wrap=sleep 1")
    lab.wait_for(job, "COMPLETED")


def assert_finished(chain: Submitted) -> None:
    chain.lab.wait_for(chain.jobs()["finish"], "COMPLETED", patience=400)
    assert chain.status()["state"] == "finished"


def assert_same(run: Path, undisturbed: Path) -> None:
    """Every update saw the same samples with the same loss, and the weights are the same bits."""
    for stage in STAGES:
        facts = ("step", "samples", "loss")
        expected, found = ([[r[fact] for fact in facts] for r in records(r_, stage)] for r_ in (undisturbed, run))
        assert expected == found, stage
    for name in ("weights", "exp_avg", "exp_avg_sq"):
        file = f"1-L2/state/{name}.safetensors"
        ours, theirs = load_file(run / file), load_file(undisturbed / file)
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs), name
