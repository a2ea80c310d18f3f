"""Submits the missing jobs of a run's chain, each exactly once.

A lock serialises submissions. The journal lists every job ever submitted; SLURM knows which of them are still alive.
Jobs are submitted on hold and released once the journal lists all of them, so that an interrupted submission leaves
no job that could start.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stacking.config.recipe import Recipe
from stacking.errors import DamagedFile, StackingError, UserError
from stacking.launch import slurm_client
from stacking.launch.slurm_client import SlurmJob
from stacking.planning.plan import Plan
from stacking.run.folder import RunFolder, command
from stacking.run.phases import Phase, is_over, phases, unfinished
from stacking.slurm.chain import ChainJob, Mode, chain
from stacking.slurm.ledger import failing_nodes, finished_phases, is_done, known_jobs, live_jobs, unreleased
from stacking.slurm.script import script, title
from stacking.slurm.site import Site
from stacking.storage.files import disk_errors, write_atomically, write_sealed_text

Check = Callable[[Sequence[ChainJob], Mapping[str, str]], Mapping[str, str | None]]
"""Takes jobs and all scripts by name; returns the expected start of each job."""


@dataclass(frozen=True, kw_only=True)
class PendingJob:
    """A job of the chain that is still needed."""

    job: ChainJob
    id: int | None
    """The SLURM job id; None: not submitted yet."""
    is_new: bool = False
    """Whether this call submitted it."""
    is_running: bool = False
    """Whether it has started, with the resources that it was submitted with."""
    start: str | None = None
    """SLURM's expected start time, ISO 8601; only for a job without dependencies."""


def links(jobs: Sequence[ChainJob], left: Iterable[Phase], live: Mapping[str, SlurmJob]) -> list[PendingJob]:
    """Returns the jobs with unfinished phases; jobs after the first new one are new too, since they depend on it."""
    to_do = {(phase.name, phase.stage) for phase in left}
    needed = [job for job in jobs if any((phase.name, phase.stage) in to_do for phase in job.phases)]
    found: list[PendingJob] = []
    for job in needed:
        broken = bool(found) and found[-1].id is None
        there = None if broken else live.get(job.name)
        found.append(
            PendingJob(job=job, id=there.id if there else None, is_running=bool(there and not there.is_waiting))
        )
    return found


def standing(run: RunFolder) -> dict[str, SlurmJob]:
    """Returns the run's jobs if they cover all remaining work, otherwise an empty mapping.

    Reads only the journal, so it is safe to call while a controller holds the run's lock.
    """
    events = run.journal.events()
    live = live_jobs(events)
    dead = [e for name, e in known_jobs(events).items() if name not in live and not is_done(e, events)]
    return {} if dead or unreleased(events, live) else live


@contextmanager
def submitting(scripts: Path) -> Iterator[None]:
    """Prevents other processes from submitting jobs whose scripts lie in the same folder.

    Raises:
        UserError: another process is submitting some.
    """
    with disk_errors(scripts):
        scripts.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scripts / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(
            scripts.parent, "is being submitted by another process", "wait until that has finished"
        ) from None
    finally:
        os.close(descriptor)


def verified_left(run: RunFolder, plan: Plan) -> Sequence[Phase]:
    """Verifies the run's files and returns the unfinished phases; the caller must hold the run's lock."""

    def note(damage: DamagedFile) -> None:
        run.journal.append("damaged", phase="verify", stage=-1, message=str(damage))

    return [] if is_over(run) else unfinished(phases(plan, run), note)


def reported_left(run: RunFolder, plan: Plan) -> Sequence[Phase]:
    """Returns the unfinished phases according to the journal; safe while the run's jobs are running."""
    finished = finished_phases(run.journal.events())
    return [phase for phase in phases(plan, run) if (phase.name, phase.stage) not in finished]


def submit_chain(
    run: RunFolder, plan: Plan, site: Site, mode: Mode, left: Sequence[Phase], check: Check
) -> list[PendingJob]:
    """Submits the jobs that cover the phases ``left`` and are not in the queue; call it inside ``submitting``.

    A job that its user holds stays on hold, and so does the job that replaces it.

    Args:
        check: has SLURM validate the scripts of these jobs and returns when each could start.

    Raises:
        UserError: SLURM rejects a job, or jobs of the other mode are in the queue; no job is submitted or cancelled.
    """
    events = run.journal.events()
    live = live_jobs(events)
    _refuse_other_mode(run, live, mode)
    forgotten = unreleased(events, live)
    held = {name for name, job in live.items() if job.reason == slurm_client.HELD and job.id not in forgotten}
    jobs = chain(plan, run, site, mode)
    avoided = avoided_nodes(run, jobs, plan, site)
    scripts = {job.name: script(job, plan, run, site, avoided) for job in jobs}
    found = links(jobs, left, {name: job for name, job in live.items() if not _is_outdated(job, name, scripts, run)})
    starts = check([link.job for link in found if link.id is None], scripts)
    kept = {link.id for link in found}
    unwanted = {job.id for job in (*live.values(), *_orphans(run, jobs))} - kept
    slurm_client.cancel(sorted(unwanted, reverse=True))  # the watcher before the jobs that it watches over
    write_sealed_text(run.site, site.to_yaml())
    found = _submit_missing(run, mode, found, scripts, starts)
    wanted = [link.id for link in found if link.id is not None and (link.is_new or link.id in forgotten)]
    try:
        slurm_client.release(link.id for link in found if link.id in wanted and link.job.name not in held)
    except UserError:
        slurm_client.cancel(wanted)
        run.journal.append("cancelled", jobs=wanted, message="SLURM refused to release the chain")
        raise
    if wanted:
        run.journal.append("released", jobs=wanted)
    return found


def avoided_nodes(run: RunFolder, jobs: Sequence[ChainJob], plan: Plan, site: Site) -> list[str]:
    """Returns the nodes that failed twice, unless SLURM could not place the largest job without them."""
    nodes = failing_nodes(run.journal.events())
    if not nodes:
        return []
    with tempfile.TemporaryDirectory(prefix="stacking-submit-") as folder:
        largest = max(jobs, key=lambda job: job.shape.nodes)
        path = Path(folder) / f"{largest.name}.sbatch"
        path.write_text(script(largest, plan, run, site, nodes), encoding="utf-8")
        try:
            slurm_client.check(path, run.path)
        except UserError:
            return []
    return nodes


def check_recipe(recipe: Recipe, plan: Plan) -> None:
    """Rejects `auto` values that would be resolved from the submitting machine rather than the nodes.

    Raises:
        UserError: the recipe has such a value; the message names the key.
    """
    launch = recipe.launch
    if launch.accelerator == "auto" and launch.device == "auto":
        problem = "is auto, which would be resolved on this machine, not on the nodes"
        raise UserError(recipe.key("launch", "accelerator"), problem, "give cpu, or name the nodes' launch.device")
    for stage in plan.stages:
        if launch.ranks is None and recipe.stages[stage.index].ranks is None:
            problem = "is auto, which counts this machine's GPUs, not the nodes'"
            raise UserError(recipe.key("launch", "ranks"), problem, "give the number of ranks per job")


def _is_outdated(job: SlurmJob, name: str, scripts: Mapping[str, str], run: RunFolder) -> bool:
    """Returns whether a pending job's script differs from the one that would be written now."""
    path = run.scripts / f"{name}.sbatch"
    return job.is_waiting and path.is_file() and path.read_text(encoding="utf-8") != scripts.get(name)


def _submit_missing(
    run: RunFolder,
    mode: Mode,
    found: Sequence[PendingJob],
    scripts: Mapping[str, str],
    starts: Mapping[str, str | None],
) -> list[PendingJob]:
    missing = [link.job for link in found if link.id is None]
    own = _after_own_job(run)
    for job in missing:
        write_atomically(_path(run, job), scripts[job.name])
        if own is None:  # whoever submits by hand has seen to what killed the controllers
            (run.scripts / f"{job.name}.kills").unlink(missing_ok=True)
    done: list[PendingJob] = []
    try:
        for link in found:
            if link.id is None:
                after = link.job.after(str(done[-1].id)) if done else own
                id = slurm_client.submit(_path(run, link.job), run.path, after)
                link = PendingJob(job=link.job, id=id, is_new=True, start=None if after else starts[link.job.name])
                facts = {"job": link.id, "name": link.job.name, "phases": link.job.only, "after": after}
                run.journal.append("submitted", mode=mode, **facts)
            done.append(link)
    except StackingError:
        new = [link.id for link in done if link.is_new and link.id is not None]
        slurm_client.cancel(new)
        run.journal.append("cancelled", jobs=new, message="SLURM rejected the rest of the chain")
        raise
    return done


def _after_own_job(run: RunFolder) -> str | None:
    """Returns the dependency on the run's job that submits the rest of the chain, if this is one."""
    known = {event["job"] for event in run.journal.events() if event["event"] == "submitted"}
    return f"afterany:{slurm_client.own_job()}" if slurm_client.own_job() in known else None


def _path(run: RunFolder, job: ChainJob) -> Path:
    return run.scripts / f"{job.name}.sbatch"


def _refuse_other_mode(run: RunFolder, live: Mapping[str, SlurmJob], mode: Mode) -> None:
    known = known_jobs(run.journal.events())
    if live and (before := next(iter(known.values()))["mode"]) != mode:
        listed = ", ".join(f"{job.id} ({name})" for name, job in live.items())
        problem = f"has jobs in the queue that were submitted as {before}: {listed}"
        raise UserError(run.path, problem, f"run `{command('cancel', run.path)}` first")


def _orphans(run: RunFolder, jobs: Iterable[ChainJob]) -> list[SlurmJob]:
    """Returns pending jobs missing from the journal, left by an interrupted submission or lost lines."""
    known = {int(event["job"]) for event in run.journal.events() if event["event"] == "submitted"}
    names = {title(run.path, job.name) for job in jobs}
    found = slurm_client.jobs_in(run.path).values()
    return [job for job in found if job.id not in known and job.is_waiting and job.name in names]
