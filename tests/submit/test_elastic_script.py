"""The script of a stage that may start on fewer nodes."""

from __future__ import annotations

from stacking.recipe import Resources
from stacking.submit.chain import chain
from stacking.submit.script import script
from stacking.submit.site import Site
from tests.submit.plans import RUN, plan_for_jobs


def test_all_nodes_of_the_range_are_taken_if_they_are_idle() -> None:
    """With --ntasks-per-node Slurm would take the fewest; tests/slurm shows it on a real one."""
    plan = plan_for_jobs(ranks=(8, 8, 8), resources=[Resources(min_nodes=1)] * 3)
    site = Site(ranks_per_node=4, cores_per_rank=3)
    text = script(chain(plan, RUN, site, "per-stage")[0], plan, RUN, site)
    assert "#SBATCH --nodes=1-2\n" in text and "#SBATCH --cpus-per-task=12\n" in text
    assert "#SBATCH --ntasks-per-node" not in text
    assert "export STACKING_RANKS_PER_NODE=4\n" in text
