"""Which jobs a run has, what each of them does, and how many nodes it gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.config.recipe import AttentionSnapshots, Resources
from stacking.errors import UserError
from stacking.planning.growth import PlannedTrial
from stacking.run.folder import RunFolder
from stacking.run.phases import phases
from stacking.slurm.chain import MODES, JobShape, chain
from stacking.slurm.site import Site
from tests.slurm.plans import plan_for_jobs

RUN = RunFolder(Path("/run"))
UNWATCHED = Site(mends=0)


def test_a_chain_alternates_between_training_and_transitions() -> None:
    jobs = chain(plan_for_jobs(), RUN, UNWATCHED, "per-stage")
    assert [(job.name, job.only, job.template) for job in jobs] == [
        ("0-L3", "train:0", "training"),
        ("0-L3-to-1-L6", "consolidate:0,grow:1", "transition"),
        ("1-L6", "train:1", "training"),
        ("1-L6-to-2-L12", "consolidate:1,grow:2", "transition"),
        ("2-L12", "train:2", "training"),
        ("finish", "consolidate:2,export:2,report:2", "transition"),
    ]


def test_attention_is_measured_in_transition_jobs() -> None:
    jobs = chain(plan_for_jobs(attention=AttentionSnapshots()), RUN, UNWATCHED, "per-stage")
    assert [(job.name, job.only) for job in jobs[:3]] == [
        ("0-L3", "train:0"),
        ("0-L3-to-1-L6", "consolidate:0,attention-trained:0,grow:1,attention-grown:1"),
        ("1-L6", "train:1"),
    ]
    assert (jobs[-1].name, jobs[-1].only) == ("finish", "consolidate:2,attention-trained:2,export:2,report:2")


def test_a_trial_of_operators_runs_in_the_job_of_its_stage() -> None:
    plan = plan_for_jobs(attention=AttentionSnapshots())
    grown = plan.stages[1].growth
    assert grown is not None
    trial = PlannedTrial(steps=5, sources={"stack": grown.sources, "interleave": grown.sources})
    tried = plan.stages[1].model_copy(update={"growth": grown.model_copy(update={"trial": trial})})
    jobs = chain(
        plan.model_copy(update={"stages": (plan.stages[0], tried, plan.stages[2])}), RUN, UNWATCHED, "per-stage"
    )
    assert [(job.name, job.only, job.template) for job in jobs[1:3]] == [
        ("0-L3-to-1-L6", "consolidate:0,attention-trained:0", "transition"),
        ("1-L6", "grow:1,attention-grown:1,train:1", "training"),
    ]


@pytest.mark.parametrize("mode", MODES)
def test_a_watcher_of_one_core_follows_if_the_chain_breaks(mode: str) -> None:
    *working, watcher = chain(plan_for_jobs(), RUN, Site(), mode)  # type: ignore[arg-type]
    assert working == chain(plan_for_jobs(), RUN, UNWATCHED, mode)  # type: ignore[arg-type]
    assert (watcher.name, watcher.after(7), working[-1].after(6)) == ("watch", "afternotok:7", "afterok:6")
    assert list(watcher.phases) == phases(plan_for_jobs(), RUN) and watcher.shape == JobShape(1, 1)


def test_a_run_that_starts_from_a_model_begins_with_a_job_that_imports_it() -> None:
    plan = plan_for_jobs(start="/bert", start_format="huggingface")
    first = plan.stages[0].model_copy(update={"growth": plan.stages[1].growth})
    jobs = chain(plan.model_copy(update={"stages": (first, *plan.stages[1:])}), RUN, Site(), "per-stage")
    assert [(job.name, job.only) for job in jobs[:2]] == [("begin", "import:0,grow:0"), ("0-L3", "train:0")]


@pytest.mark.parametrize("mode", MODES)
def test_every_phase_belongs_to_one_job_in_the_runs_order(mode: str) -> None:
    plan = plan_for_jobs()
    jobs = chain(plan, RUN, UNWATCHED, mode)  # type: ignore[arg-type]
    assert [phase for job in jobs for phase in job.phases] == phases(plan, RUN)
    assert len({job.name for job in jobs}) == len(jobs)


def test_each_stage_gets_the_nodes_that_its_ranks_need() -> None:
    jobs = chain(plan_for_jobs(ranks=(2, 6, 8)), RUN, Site(ranks_per_node=4, mends=0), "per-stage")
    assert [job.shape for job in jobs] == [
        JobShape(1, 2),
        JobShape(1, 1),
        JobShape(2, 3),
        JobShape(1, 1),
        JobShape(2, 4),
        JobShape(1, 1),
    ]


def test_one_allocation_holds_the_nodes_of_the_largest_stage() -> None:
    (job,) = chain(plan_for_jobs(), RUN, Site(ranks_per_node=4, mends=0), "one-allocation")
    assert job.shape == JobShape(2, 4)


@settings(deadline=None)
@given(ranks=st.integers(1, 100), ranks_per_node=st.integers(1, 16))
def test_ranks_are_always_spread_evenly(ranks: int, ranks_per_node: int) -> None:
    plan = plan_for_jobs(ranks=(ranks,) * 3)
    shape = chain(plan, RUN, Site(ranks_per_node=ranks_per_node), "per-stage")[0].shape
    assert shape.nodes * shape.ranks_per_node == ranks
    assert shape.ranks_per_node <= ranks_per_node


def test_requested_nodes_are_used_and_too_many_ranks_per_node_refused() -> None:
    spread = plan_for_jobs(ranks=(4, 4, 4), resources=[Resources(nodes=4)] * 3)
    assert chain(spread, RUN, Site(ranks_per_node=4), "per-stage")[0].shape == JobShape(4, 1)
    packed = plan_for_jobs(ranks=(4, 4, 4), resources=[Resources(nodes=1)] * 3)
    with pytest.raises(UserError, match=r"stages\[0\]\.resources\.nodes: is 1: 4 ranks per node"):
        chain(packed, RUN, Site(ranks_per_node=2), "per-stage")


@pytest.mark.parametrize(("least", "nodes"), [(None, "8"), (2, "2-8"), (8, "8"), (9, "8")])
def test_an_elastic_stage_accepts_fewer_nodes(least: int | None, nodes: str) -> None:
    plan = plan_for_jobs(ranks=(8, 8, 8), resources=[Resources(min_nodes=least)] * 3)
    assert chain(plan, RUN, Site(), "per-stage")[0].nodes == nodes
