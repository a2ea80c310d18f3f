"""A job that loses a node and continues with the other alone, and later with both again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chain import stacking
from tests.slurm_lab.jobs import create, events, records, steps, submit, wait_for_updates
from tests.slurm_lab.lab import Lab

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.xdist_group("undisturbed"),  # the run that these files share
]

STAGE = "0-L1"


@pytest.fixture(scope="module")
def another_seed(recipe: Path) -> Path:
    run = create(recipe, recipe.parent / "another-seed", "seed=8")
    stacking("resume", run, "--only", "train:0")
    return run


@pytest.fixture(scope="module")
def resized(session_lab: Lab, recipe: Path) -> Path:
    """A run on two nodes, then on one, then on two."""
    lab = session_lab
    lab.clear()
    lab.run("scontrol", "update", "NodeName=n3", "State=DRAIN", "Reason=none is spare")
    try:
        run = create(recipe, recipe.parent / "resized", "launch.elastic=true")
        job = submit(lab, run, "--nodes=1-2", arguments="--only train:0")
        lab.wait_until(lambda: steps(run, STAGE) >= 70, every=0.02)
        lab.tool("kill", "n2")
        lab.wait_until(lambda: world_sizes(run)[-1] == 1)
        wait_for_updates(lab, run, STAGE, 20)
        lab.tool("revive", "n2")
        lab.wait_until(lambda: "idle" in lab.run("sinfo", "-h", "-n", "n2", "-p", "low", "-o", "%t"), every=0.05)
        lab.run("scontrol", "requeue", str(job))
        assert lab.wait_for_end(job)["JobState"] == "COMPLETED", lab.output(job)
    finally:
        lab.run("scontrol", "update", "NodeName=n3", "State=RESUME")
    return run


def test_the_stage_resumes_with_one_rank_and_then_with_two(resized: Path) -> None:
    sizes = world_sizes(resized)
    assert sizes[0] == 2 and 1 in sizes and sizes[-1] == 2


def test_every_update_is_made_once_on_the_same_samples(undisturbed: Path, resized: Path) -> None:
    facts = ("step", "global_step", "samples", "tokens", "learning_rate")
    expected, found = ([[r[fact] for fact in facts] for r in records(run, STAGE)] for run in (undisturbed, resized))
    assert expected == found


def test_the_losses_stay_within_the_noise_between_seeds(
    undisturbed: Path, resized: Path, another_seed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elastic, noise = distance(undisturbed, resized), distance(undisturbed, another_seed)
    with capsys.disabled():
        print(f"\nmean |difference of losses|: elastic {elastic:.2e}, between seeds {noise:.2e}")
        for run in (undisturbed, resized, another_seed):
            print(f"{run.name:12} final losses {[round(r['loss'], 4) for r in records(run, STAGE)[-3:]]}")
    assert elastic < noise


def test_a_run_that_is_not_elastic_is_refused_in_one_line(lab: Lab, recipe: Path, tmp_path: Path) -> None:
    run = create(recipe, tmp_path / "run")
    job = submit(lab, run, "--nodes=1")
    assert lab.wait_for_end(job)["ExitCode"] == "2:0"
    said = lab.output(job).strip().splitlines()
    assert "recipe.yaml: launch.elastic: is false: 0-L1 is planned for 2 ranks, but only 1 are available" in said[-1]


def world_sizes(run: Path) -> list[int]:
    """The event of each start of the training."""
    return [e["world_size"] for e in events(run) if e["event"] == "started" and e["phase"] == "train"]


def distance(one: Path, other: Path) -> float:
    """Mean absolute difference of the training losses, update by update."""
    pairs = zip(records(one, STAGE), records(other, STAGE), strict=True)
    differences = [abs(a["loss"] - b["loss"]) for a, b in pairs]
    return sum(differences) / len(differences)
