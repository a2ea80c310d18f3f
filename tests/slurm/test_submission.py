"""Which jobs still have to be submitted, whatever is finished and whatever is in the queue."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.config.recipe import load_recipe
from stacking.errors import UserError
from stacking.launch.slurm_client import SlurmJob
from stacking.planning.make_plan import make_plan
from stacking.run.folder import RunFolder
from stacking.run.kept import kept_recipe
from stacking.run.phases import phases
from stacking.slurm.amendment import is_same_run
from stacking.slurm.chain import chain
from stacking.slurm.command import SubmitRequest, _check_syntax, _unchecked
from stacking.slurm.ledger import is_done, known_jobs
from stacking.slurm.script import script, title
from stacking.slurm.site import Site
from stacking.slurm.submission import _orphans, avoided_nodes, check_recipe, links
from stacking.storage.files import write_sealed_text
from tests.slurm.fake_slurm import FakeSlurm, slurm
from tests.slurm.plans import plan_for_jobs
from tests.small_recipe import MACHINE, SMALL

__all__ = ["slurm"]

RUN = RunFolder(Path("/run"))
JOBS = chain(plan_for_jobs(), RUN, Site(mends=0), "per-stage")
PHASES = phases(plan_for_jobs(), RUN)


def queue(*names: str) -> dict[str, SlurmJob]:
    return {name: SlurmJob(id=100 + number, state="PENDING") for number, name in enumerate(names)}


def test_a_new_run_submits_everything() -> None:
    assert [(link.job.name, link.id) for link in links(JOBS, PHASES, {})] == [(job.name, None) for job in JOBS]


def test_a_half_finished_transition_is_submitted() -> None:
    assert links(JOBS, PHASES[2:], {})[0].job.name == "0-L3-to-1-L6"


def test_jobs_in_the_queue_are_kept_up_to_the_first_missing_one() -> None:
    live = queue("0-L3", "1-L6", "finish")
    assert [link.id for link in links(JOBS, PHASES, live)] == [100, None, None, None, None, None]


def test_waiting_jobs_missing_from_the_journal_are_not_submitted_a_second_time(
    tmp_path: Path, slurm: FakeSlurm
) -> None:
    run, plan = RunFolder(tmp_path), plan_for_jobs()
    jobs = chain(plan, run, Site(), "per-stage")
    for number in (11, 12):
        run.journal.append("submitted", job=number, name=jobs[0].name, mode="per-stage", phases="train:0")
    run.journal.path.write_bytes(run.journal.path.read_bytes().replace(b'"job": 12', b'"job": 13'))
    name = title(run.path, jobs[0].name)
    rows = [(11, "PENDING", name), (12, "PENDING", name), (14, "RUNNING", name), (15, "PENDING", "of-somebody-else")]
    lines = [f"{job}|{state}|gpu||0:00|N/A|Priority|{name}|{run.path}" for job, state, name in rows]
    slurm.answers("squeue", stdout="".join(f"{line}\n" for line in lines))
    assert [job.id for job in _orphans(run, jobs)] == [12]


@settings(deadline=None)
@given(done=st.integers(0, len(PHASES)), live=st.sets(st.sampled_from([job.name for job in JOBS])))
def test_a_chain_is_complete_in_order_and_never_depends_on_a_missing_job(done: int, live: set[str]) -> None:
    found = links(JOBS, PHASES[done:], queue(*live))
    covered = [phase for link in found for phase in link.job.phases]
    assert covered[len(covered) - len(PHASES[done:]) :] == PHASES[done:]
    ids = [link.id for link in found]
    first_new = ids.index(None) if None in ids else len(ids)
    assert all(id is not None for id in ids[:first_new]) and set(ids[first_new:]) <= {None}


def submitted(name: str, job: int, mode: str = "per-stage", phases: str = "train:0") -> dict[str, object]:
    return {"event": "submitted", "name": name, "job": job, "mode": mode, "phases": phases}


def test_the_newest_job_under_a_name_counts_and_only_those_of_the_last_mode() -> None:
    events = [submitted("0-L3", 1), submitted("1-L6", 2), submitted("0-L3", 3)]
    assert {name: event["job"] for name, event in known_jobs(events).items()} == {"0-L3": 3, "1-L6": 2}
    events.append(submitted("run", 4, mode="one-allocation"))
    assert {name: event["job"] for name, event in known_jobs(events).items()} == {"run": 4}
    assert known_jobs([{"event": "created"}]) == {}


def test_a_job_is_done_when_all_of_its_phases_are() -> None:
    job = submitted("0-L3-to-1-L6", 1, phases="consolidate:0,grow:1")
    events = [{"event": "finished", "phase": "consolidate", "stage": 0}]
    assert not is_done(job, events)
    assert is_done(job, [*events, {"event": "finished", "phase": "grow", "stage": 1}])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["launch.ranks=2"], "launch.accelerator: is auto, which would be resolved on this machine, not on the nodes"),
        (["launch.accelerator=cpu"], "launch.ranks: is auto, which counts this machine's GPUs"),
        (["launch.accelerator=cpu", "stages[0].ranks=2"], "launch.ranks: is auto"),
    ],
)
def test_settings_that_depend_on_the_nodes_must_be_given(
    overrides: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(SMALL)
    recipe = load_recipe("recipe.yaml", overrides)
    with pytest.raises(UserError) as caught:
        check_recipe(recipe, make_plan(recipe, None, None, MACHINE))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["launch.accelerator=cpu", "launch.ranks=2"],
        ["launch.device=v100", "launch.ranks=4"],
        ["launch.accelerator=cpu", "stages[0].ranks=2", "stages[1].ranks=4"],
    ],
)
def test_a_fully_specified_recipe_can_be_submitted_from_anywhere(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(SMALL)
    recipe = load_recipe("recipe.yaml", overrides)
    check_recipe(recipe, make_plan(recipe, None, None, MACHINE))


def test_a_dry_run_skips_slurms_check_if_slurm_is_unreachable(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = {"0-L3": "#!/bin/bash\n#SBATCH --time=1:00:00\n"}
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(SMALL)
    request = SubmitRequest(run=RUN, recipe="recipe.yaml", mode=None, site=Path("site.yaml"))

    def unchecked() -> list[str]:
        return list(_unchecked(request, load_recipe("recipe.yaml"), Site(), JOBS[:1], scripts))

    assert unchecked() == []
    slurm.answers("sbatch", stderr="sbatch: fatal: Could not establish a configuration source\n", code=1)
    (line,) = unchecked()
    assert line.startswith("# SLURM did not check these scripts: ")
    slurm.answers("sbatch", stderr="sbatch: error: invalid partition specified: nopart\n", code=1)
    with pytest.raises(UserError, match=r"^site\.yaml: partition: job 0-L3: sbatch says: .*nopart"):
        unchecked()


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ("{nodes: 3}", "stages[0].resources.nodes: is 3, over which 2 ranks do not divide; give a divisor of 2"),
        ("{min_nodes: 1}", "stages[0].resources.min_nodes: is given, but launch.elastic is false"),
        ("{node: 1}", "stages[0].resources.node: is not a known key; did you mean 'nodes'?"),
        ("{hours: 24:00:00}", 'stages[0].resources.hours: is "24:00:00", which is not a number'),
        ("{hours: 0}", "stages[0].resources.hours: is 0; give a number greater than 0"),
        ('{partition: "a b"}', 'stages[0].resources.partition: is "a b", not a plain word'),
    ],
)
def test_impossible_resources_are_refused(
    resources: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(SMALL.replace("layers: 2,", f"layers: 2, ranks: 2, resources: {resources},"))
    with pytest.raises(UserError) as caught:
        make_plan(load_recipe("recipe.yaml"), None, None, MACHINE)
    assert words in str(caught.value)


def test_a_prelude_that_is_not_bash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0-L3.sbatch").write_text("if true\nexit 0\n")
    with pytest.raises(UserError, match=r"^0-L3.sbatch: is not a bash script: line \d: syntax error.*correct the site"):
        _check_syntax(tmp_path / "0-L3.sbatch")


def failed_on(node: str, run: RunFolder) -> None:
    run.journal.append("failed", phase="train", stage=0, attempt=1, node=node, message="rank 1 was killed by SIGKILL")


def test_a_node_that_failed_twice_is_excluded_unless_the_job_needs_it(tmp_path: Path, slurm: FakeSlurm) -> None:
    run, plan = RunFolder(tmp_path), plan_for_jobs()
    jobs = chain(plan, run, Site(), "per-stage")
    for node in ("n1", "n2", "n2", "n3", "n3"):
        failed_on(node, run)
    slurm.answers("sbatch", stderr="sbatch: Job 1 to start at 2026-01-01T00:00:00\n")
    assert avoided_nodes(run, jobs, plan, Site()) == ["n2", "n3"]
    text = script(jobs[0], plan, run, Site(exclude="n7"), ["n2", "n3"])
    assert "#SBATCH --exclude=n7,n2,n3\n" in text
    slurm.answers("sbatch", stderr="sbatch: error: Requested node configuration is not available\n", code=1)
    assert avoided_nodes(run, jobs, plan, Site()) == []


def test_a_kept_recipe_that_names_null_resources_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(SMALL)
    recipe = load_recipe("recipe.yaml")
    nothing = dict.fromkeys(("hours", "nodes", "min_nodes", "partition", "qos", "account", "memory"))
    kept = yaml.safe_load(recipe.to_yaml())
    kept["launch"]["resources"] = nothing
    for stage in kept["stages"]:
        stage["resources"] = nothing
    write_sealed_text(tmp_path / "kept.yaml", yaml.safe_dump(kept))
    assert is_same_run(kept_recipe(tmp_path / "kept.yaml"), recipe)
    assert not is_same_run(kept_recipe(tmp_path / "kept.yaml", ["seed=8"]), recipe)
