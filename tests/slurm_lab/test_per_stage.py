"""A chain of jobs, one per stage, with real training: undisturbed, preempted, requeued, failed and resumed."""

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
STEPS = 300
"""Of the second stage: enough to be preempted twice and cancelled, however fast they are."""


def recipe(folder: Path, data: Path) -> Path:
    """A stage on one rank, then one on two."""
    first = {"layers": 1, "steps": 6, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}}
    stages = [first | {"ranks": 1}, {"layers": 2, "steps": STEPS, "ranks": 2}]
    rarely = {"checkpoint": {"every_steps": 100, "keep": 2}, "evaluation": {"every_steps": 100, "samples": 16}}
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


@pytest.fixture(scope="module")
def disturbed(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory, data: Path) -> Submitted:
    """A chain that suffers every disturbance, one after the other; the outcome of each is asserted on the way."""
    session_lab.clear()
    folder = tmp_path_factory.mktemp("disturbed")
    chain = Submitted(session_lab, folder, recipe(folder, data))
    chain.submit()
    damage_data_between_stages(chain, data)
    chain.resume()
    requeue_transition(chain)
    preempt_training_twice(chain)
    cancel_training(chain)
    chain.resume()
    assert_finished(chain)
    return chain


def damage_data_between_stages(chain: Submitted, data: Path) -> None:
    """The next job fails, and those after it never start."""
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


def requeue_transition(chain: Submitted) -> None:
    chain.lab.wait_until(lambda: any(event["phase"] == "consolidate" for event in chain.events("started")))
    chain.lab.run("scontrol", "requeue", str(chain.jobs()["0-L1-to-1-L2"]))


def preempt_training_twice(chain: Submitted) -> None:
    for _ in range(2):
        before = steps(chain.run, "1-L2")
        chain.lab.wait_until(lambda before=before: steps(chain.run, "1-L2") >= before + 3)  # type: ignore[misc]
        preempt(chain.lab)
    chain.lab.wait_until(lambda: int(chain.lab.job(chain.jobs()["1-L2"])["Restarts"]) >= 1)


def cancel_training(chain: Submitted) -> None:
    """It leaves a checkpoint of that very step and no job."""
    before = steps(chain.run, "1-L2")
    chain.lab.wait_until(lambda: steps(chain.run, "1-L2") >= before + 3)
    chain.stacking("cancel", chain.run)
    assert chain.lab.run("squeue", "-h").strip() == ""
    done = steps(chain.run, "1-L2")
    assert (chain.run / "1-L2" / "checkpoints" / "latest").read_text() == f"global_step{done}"
    status = json.loads(chain.stacking("status", chain.run, "--json").stdout)
    assert status["state"] == "cancelled" and status["step"] == done


def test_a_run_goes_from_recipe_to_export_with_each_stage_on_its_own_nodes(chain: Submitted, undisturbed: Path) -> None:
    chain.submit("--set", "stages[1].resources.partition=high")
    assert_finished(chain)
    found = {name: chain.lab.job(job) for name, job in chain.jobs().items()}
    assert [found[name]["NumNodes"] for name in STAGES] == ["1", "2"]
    assert [found[name]["Partition"] for name in STAGES] == ["low", "high"]
    last = RunFolder(chain.run).stage("1-L2").checkpoints / f"global_step{STEPS}"
    assert read_json(last / "progress.json")["world_size"] == 2
    assert (chain.run / "export" / "model.safetensors").is_file()
    assert "finished" in chain.stacking("status", chain.run).stdout
    assert_same(chain.run, undisturbed)


def test_a_disturbed_chain_ends_with_the_same_bits(disturbed: Submitted, undisturbed: Path) -> None:
    assert_same(disturbed.run, undisturbed)


def test_a_stage_that_cannot_work_stops_the_chain_until_it_is_submitted_again(disturbed: Submitted) -> None:
    assert [len(jobs(disturbed, name)) for name in ("0-L1", "0-L1-to-1-L2")] == [1, 2]
    failed = jobs(disturbed, "0-L1-to-1-L2")[0]
    assert disturbed.lab.state(failed) == "FAILED"
    assert not [event for event in disturbed.events("resumed") if event["job"] == failed]


def test_a_requeued_transition_is_repeated(disturbed: Submitted) -> None:
    job = jobs(disturbed, "0-L1-to-1-L2")[1]
    assert disturbed.lab.job(job)["Restarts"] == "1" and disturbed.lab.state(job) == "COMPLETED"
    assert [disturbed.finished().count(phase) for phase in ("consolidate:0", "grow:1")] == [1, 1]


def test_a_preempted_stage_leaves_a_checkpoint_and_the_chain_recovers_by_itself(disturbed: Submitted) -> None:
    preempted = [event for event in disturbed.events("preempted") if event["stage"] == 1]
    assert len(preempted) >= 2 and all(event["phase"] == "train" for event in preempted)
    assert disturbed.lab.job(jobs(disturbed, "1-L2")[1])["Restarts"] == "2"


def test_cancelling_during_training_leaves_a_checkpoint_and_no_job(disturbed: Submitted) -> None:
    (cancelled,) = disturbed.events("cancelled")
    resumed_at = [event for event in disturbed.events("submitted") if event["time"] > cancelled["time"]]
    assert [event["name"] for event in resumed_at] == ["1-L2", "finish", "watch"]


def test_an_elastic_stage_starts_on_the_available_nodes(chain: Submitted, undisturbed: Path) -> None:
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


def test_a_submitted_allocation_trains_a_small_stage_on_part_of_its_nodes(chain: Submitted, undisturbed: Path) -> None:
    chain.submit("--mode", "one-allocation")
    chain.lab.wait_for(chain.jobs()["run"], "COMPLETED", patience=400)
    assert [event["world_size"] for event in chain.events("started") if event["phase"] == "train"] == [1, 2]
    assert_same(chain.run, undisturbed)


def jobs(chain: Submitted, name: str) -> list[int]:
    """All jobs that were ever submitted under a name."""
    return [event["job"] for event in chain.events("submitted") if event["name"] == name]


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
