"""Implements `stacking submit` and `stacking cancel`."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stacking.config.recipe import Recipe, load_recipe
from stacking.errors import StackingError, Unreachable, UserError
from stacking.launch import slurm_client
from stacking.planning.plan import Plan, check_machine
from stacking.run.create import create_run, open_run, plan_recipe
from stacking.run.decisions import settled_plan
from stacking.run.folder import RunFolder, command, is_locked
from stacking.run.kept import kept_recipe
from stacking.run.phases import phases
from stacking.run.rewind import refuse_repetition
from stacking.slurm.amendment import (
    chosen_recipe,
    current_recipe,
    is_same_run,
    resources_of,
    with_resources,
    write_amendment,
)
from stacking.slurm.chain import WATCHER, ChainJob, Mode, chain, ignored
from stacking.slurm.ledger import known_jobs, live_jobs, queue, unreleased
from stacking.slurm.refusal import refusal
from stacking.slurm.script import script
from stacking.slurm.site import Site, check_programs, check_warning, load_site
from stacking.slurm.submission import (
    PendingJob,
    avoided_nodes,
    check_recipe,
    links,
    reported_left,
    standing,
    submit_chain,
    submitting,
    verified_left,
)
from stacking.storage.files import read_sealed_text

_TIME = re.compile(r"^#SBATCH (?:--time=|-t)", re.MULTILINE)
_PARTITION = re.compile(r"^#SBATCH --partition=(\S+)", re.MULTILINE)
_SITE_FILE = "site file"
_END_PATIENCE = 90.0
"""Seconds to wait for cancelled jobs to end; SLURM's KillWait is 30 by default."""


@dataclass(frozen=True, kw_only=True)
class SubmitRequest:
    """Holds what the user asks `stacking submit` for."""

    run: RunFolder
    recipe: str | None
    """None: continue the existing run."""
    mode: Mode | None
    """None: the mode used before, or per-stage."""
    site: Path | None
    """None: the site used before, or the defaults."""
    overrides: Sequence[str] = ()
    data: Path | None = None


def submit(request: SubmitRequest) -> Iterator[str]:
    """Submits the chain of a new run, or the missing jobs of an existing one.

    Yields:
        The lines to print.

    Raises:
        UserError: the recipe, the site file or the run is invalid, or SLURM rejects a job.
        StackingError: SLURM does not answer.
    """
    run = request.run
    slurm_client.require()
    exists = _exists(request)
    if exists and not _changes_anything(request) and (there := standing(run)):
        yield from (f"{name:<18} job {job.id} is {job.state.lower()}" for name, job in there.items())
        yield "nothing to submit: the whole chain is queued or running"
        return
    site, mode, recipe = _site(request), _mode(request), _resourced(request, exists)
    if exists:
        refuse_repetition(run)
    else:
        _, jobs, scripts = _design(request, recipe, site, mode)
        _check_scripts(request, recipe, site, jobs, scripts)
    with submitting(run.scripts):
        live = live_jobs(events := run.journal.events())
        if any(job.id not in unreleased(events, live) for job in live.values()):
            # A job may start at any moment and needs the run's lock, so this must not take it.
            plan = settled_plan(run)
            left = reported_left(run, plan)
        else:
            with run.locked():
                if _exists(request):
                    plan = open_run(run)
                else:
                    plan = create_run(str(request.recipe), run, request.overrides, request.data, elsewhere=True)
                left = verified_left(run, plan)
        plan = with_resources(plan, recipe)
        with _naming(request):
            found = submit_chain(run, plan, site, mode, left, partial(_check_scripts, request, recipe, site))
        if resources_of(recipe) != resources_of(current_recipe(run)):
            write_amendment(run, recipe)
    queue(run, run.journal.events())  # what `status` shows if SLURM does not answer then
    yield from _ignored(plan, mode)
    if avoided := avoided_nodes(run, chain(plan, run, site, mode), plan, site):
        yield f"excluded, since ranks failed there twice: {', '.join(avoided)}"
    yield from _answers(run, found)


def _ignored(plan: Plan, mode: Mode) -> Iterator[str]:
    if keys := ignored(plan, mode):
        yield f"one allocation requests launch.resources, so these are ignored: {', '.join(keys)}"


def dry_run(request: SubmitRequest) -> Iterator[str]:
    """Yields the commands and scripts that `submit` would submit now, going by the journal; writes nothing."""
    run, site, mode = request.run, _site(request), _mode(request)
    exists = _exists(request)
    recipe = _resourced(request, exists)
    if exists:
        refuse_repetition(run)
        plan = with_resources(settled_plan(run), recipe)
        jobs, live, left = chain(plan, run, site, mode), live_jobs(run.journal.events()), reported_left(run, plan)
    else:
        plan, jobs, scripts = _design(request, recipe, site, mode)
        live, left = {}, phases(plan, run)
        yield from _unchecked(request, recipe, site, jobs, scripts)
    yield from (f"# {line}" for line in _ignored(plan, mode))
    before: int | str | None = None
    for link in links(jobs, left, live):
        if link.id is None:
            path = run.scripts / f"{link.job.name}.sbatch"
            after = link.job.after(before) if before else None
            yield f"# {shlex.join(slurm_client.submit_argv(path, run.path, after))}"
            yield script(link.job, plan, run, site)
        before = link.id or f"JOB_{link.job.name}"


def cancel(run: RunFolder) -> Iterator[str]:
    """Cancels every job of the run, pending ones first so that none of them starts in the meantime.

    Yields:
        The lines to print.

    Raises:
        UserError: there is no run.
        StackingError: SLURM does not answer, or the jobs do not end.
    """
    _require_run(run)
    live = sorted(live_jobs(run.journal.events()).values(), key=lambda job: (not job.is_waiting, -job.id))
    if not live:
        yield "nothing to cancel: no job of this run is queued or running"
        return
    # Recorded first, so that a controller that receives the signal knows not to requeue its job.
    run.journal.append("cancelled", jobs=[job.id for job in live])
    slurm_client.cancel([job.id for job in live])
    for job in live:
        yield f"cancelled job {job.id} ({job.name})"
    deadline = time.monotonic() + _END_PATIENCE
    while live_jobs(run.journal.events()) or is_locked(run.lock):
        if time.monotonic() > deadline:
            raise StackingError(f"{run.path}: jobs did not end in {_END_PATIENCE:.0f} s; `stacking status` shows them")
        time.sleep(0.5)
    yield f"run `{command('submit --resume', run.path)}` to continue"


def _exists(request: SubmitRequest) -> bool:
    """Returns whether the run exists already.

    Raises:
        UserError: it must exist and does not, or it was created from another recipe.
    """
    run = request.run
    if request.recipe is None:
        _require_run(run)
    if not run.plan.is_file():
        return False
    if request.recipe is None or not run.recipe.is_file():
        return True
    if not is_same_run(kept_recipe(run.recipe), _recipe(request)):
        remedy = f"run `{command('submit --resume', run.path)}` to continue it, or choose another folder"
        raise UserError(run.recipe, "belongs to another recipe, or one with other data or settings", remedy)
    return True


def _require_run(run: RunFolder) -> None:
    if not run.plan.is_file():
        raise UserError(run.path, "is not a run", "submit one with `stacking submit RECIPE --run-dir DIR`")


def _recipe(request: SubmitRequest) -> Recipe:
    return load_recipe(str(request.recipe), list(request.overrides), request.data)


def _resourced(request: SubmitRequest, exists: bool) -> Recipe:
    """Returns the recipe whose resources the jobs will request."""
    if not exists:
        return _recipe(request)
    if request.recipe is None:
        return current_recipe(request.run, request.overrides)
    return chosen_recipe(request.run, _recipe(request))


def _design(
    request: SubmitRequest, recipe: Recipe, site: Site, mode: Mode
) -> tuple[Plan, list[ChainJob], dict[str, str]]:
    """Returns the plan, the jobs and their scripts after checking that the run can be submitted; writes nothing."""
    plan, _ = plan_recipe(recipe)
    check_machine(plan, None)
    check_recipe(recipe, plan)
    check_programs(site, str(request.site or "site file"))
    jobs = chain(plan, request.run, site, mode)
    with _naming(request):
        return plan, jobs, {job.name: script(job, plan, request.run, site) for job in jobs}


@contextmanager
def _naming(request: SubmitRequest) -> Iterator[None]:
    """Puts the path of the site file into errors that only say ``site file``."""
    try:
        yield
    except UserError as error:
        if request.site is None or not error.where.startswith(_SITE_FILE):
            raise
        where = error.where.replace(_SITE_FILE, str(request.site), 1)
        raise UserError(where, error.problem, error.remedy) from None


def _unchecked(
    request: SubmitRequest, recipe: Recipe, site: Site, jobs: Sequence[ChainJob], scripts: Mapping[str, str]
) -> Iterator[str]:
    """Lets SLURM check the scripts if it is installed; yields a comment if it does not answer.

    Raises:
        UserError: SLURM rejects a job.
    """
    if shutil.which("sbatch") is None:
        return
    try:
        _check_scripts(request, recipe, site, jobs, scripts)
    except Unreachable as error:
        yield f"# SLURM did not check these scripts: {error}"


def _check_scripts(
    request: SubmitRequest, recipe: Recipe, site: Site, jobs: Sequence[ChainJob], scripts: Mapping[str, str]
) -> dict[str, str | None]:
    """Has SLURM validate every job before anything is written; returns their expected starts."""
    starts = {}
    with tempfile.TemporaryDirectory(prefix="stacking-submit-") as folder:
        for job in jobs:
            path = Path(folder) / f"{job.name}.sbatch"
            path.write_text(scripts[job.name], encoding="utf-8")
            _check_syntax(path)
            try:
                starts[job.name] = slurm_client.check(path, Path(folder))
            except UserError as error:
                raise refusal(error, job, recipe, request.site) from None
            if not _TIME.search(scripts[job.name]):
                _check_default_limit(request, site, job, scripts[job.name])
    return starts


def _check_default_limit(request: SubmitRequest, site: Site, job: ChainJob, script: str) -> None:
    """Checks the warning against the partition's own time limit, for a job that requests none."""
    partition = _PARTITION.search(script)
    with _naming(request):
        hours = slurm_client.default_hours(partition.group(1) if partition else None)
        check_warning(site, hours, f"job {job.name}, with its partition's limit,")


def _check_syntax(path: Path) -> None:
    done = subprocess.run(["/bin/bash", "-n", path], capture_output=True, text=True)
    if done.returncode != 0:
        said = "; ".join(line.removeprefix(f"{path}: ") for line in done.stderr.splitlines())
        raise UserError(path.name, f"is not a bash script: {said}", "correct the site file's prelude or template")


def _changes_anything(request: SubmitRequest) -> bool:
    """Returns whether the requested site, mode or resources differ from those of the jobs in the queue."""
    site = request.site is not None and _kept_site(request.run) != load_site(request.site)
    mode = request.mode is not None and request.mode != _mode_before(request.run)
    return site or mode or resources_of(_resourced(request, True)) != resources_of(current_recipe(request.run))


def _site(request: SubmitRequest) -> Site:
    return (_kept_site(request.run) if request.site is None else None) or load_site(request.site)


def _kept_site(run: RunFolder) -> Site | None:
    if not run.site.is_file():
        return None
    read_sealed_text(run.site)
    return load_site(run.site)


def _mode(request: SubmitRequest) -> Mode:
    return request.mode or _mode_before(request.run)


def _mode_before(run: RunFolder) -> Mode:
    known = known_jobs(run.journal.events())
    return next(iter(known.values()))["mode"] if known else "per-stage"


def _answers(run: RunFolder, found: Sequence[PendingJob]) -> Iterator[str]:
    if not found:
        yield f"nothing to submit: the run in {run.path} is finished"
        return
    before = None
    for link in found:
        what = "submitted" if link.is_new else "already running" if link.is_running else "already queued"
        order = "after" if link.job.name != WATCHER else "in case of"
        after = f" {order} {before}" if before and link.is_new else ""
        start = f", expected to start at {link.start.replace('T', ' ')}" if link.start else ""
        yield f"{link.job.name:<18} job {link.id} {what}{after}{start}"
        before = link.id
    yield f"`{command('status', run.path)}` shows these jobs, `{command('cancel', run.path)}` ends them"
