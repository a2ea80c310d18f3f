"""Implements `stacking submit` and `stacking cancel`."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stacking.config.recipe import Recipe, load_recipe
from stacking.errors import StackingError, UserError
from stacking.launch import slurm_client
from stacking.planning.plan import Plan, check_machine, load_plan
from stacking.run.create import create_run, open_run, plan_recipe
from stacking.run.folder import RunFolder, command, is_locked
from stacking.run.phases import phases
from stacking.run.rewind import refuse_repetition
from stacking.slurm.chain import Mode, chain, ignored
from stacking.slurm.ledger import known_jobs, live_jobs, unreleased
from stacking.slurm.script import script
from stacking.slurm.site import Site, check_programs, load_site
from stacking.slurm.submission import (
    Link,
    avoided_nodes,
    check_recipe,
    links,
    reported_left,
    standing,
    submit_chain,
    submitting,
    verified_left,
)

_END_PATIENCE = 90.0
"""Seconds to wait for cancelled jobs to end; SLURM's KillWait is 30 by default."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Holds the arguments of `stacking submit`."""

    run: RunFolder
    recipe: str | None
    """None: continue the existing run."""
    mode: Mode | None
    """None: the mode used before, or per-stage."""
    site: Path | None
    """None: the site used before, or the defaults."""
    overrides: Sequence[str] = ()
    data: Path | None = None


def submit(request: Request) -> Iterator[str]:
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
    site, mode = _site(request), _mode(request)
    if exists:
        refuse_repetition(run)
    else:
        _, scripts = _design(request, site, mode)
        _check_scripts(scripts)
    with submitting(run):
        live = live_jobs(events := run.journal.events())
        if any(job.id not in unreleased(events, live) for job in live.values()):
            # A job may start at any moment and needs the run's lock, so this must not take it.
            plan = load_plan(run.plan)
            left = reported_left(run, plan)
        else:
            with run.locked():
                if _exists(request):
                    plan = open_run(run)
                else:
                    plan = create_run(str(request.recipe), run, request.overrides, request.data, elsewhere=True)
                left = verified_left(run, plan)
        found = submit_chain(run, plan, site, mode, left)
    yield from _ignored(plan, mode)
    if avoided := avoided_nodes(run, chain(plan, run, site, mode), plan, site):
        yield f"excluded, since ranks failed there twice: {', '.join(avoided)}"
    yield from _answers(run, found)


def _ignored(plan: Plan, mode: Mode) -> Iterator[str]:
    if keys := ignored(plan, mode):
        yield f"one allocation requests launch.resources, so these are ignored: {', '.join(keys)}"


def dry_run(request: Request) -> Iterator[str]:
    """Yields the commands and scripts that `submit` would submit now, going by the journal; writes nothing."""
    run, site, mode = request.run, _site(request), _mode(request)
    if _exists(request):
        refuse_repetition(run)
        plan, live = load_plan(run.plan), live_jobs(run.journal.events())
        left = reported_left(run, plan)
    else:
        plan, scripts = _design(request, site, mode)
        live, left = {}, phases(plan, run)
        yield from _unchecked(scripts)
    yield from (f"# {line}" for line in _ignored(plan, mode))
    before: str | None = None
    for link in links(chain(plan, run, site, mode), left, live):
        if link.id is None:
            path = run.scripts / f"{link.job.name}.sbatch"
            yield f"# {shlex.join(slurm_client.submit_argv(path, run.path, before))}"
            yield script(link.job, plan, run, site)
        before = f"afterok:{link.id or f'JOB_{link.job.name}'}"


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


def _exists(request: Request) -> bool:
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
    if run.recipe.read_bytes() != _recipe(request).to_yaml().encode():
        remedy = f"run `{command('submit --resume', run.path)}` to continue it, or choose another folder"
        raise UserError(run.recipe, "belongs to another recipe, or one with other data or settings", remedy)
    return True


def _require_run(run: RunFolder) -> None:
    if not run.plan.is_file():
        raise UserError(run.path, "is not a run", "submit one with `stacking submit RECIPE --run-dir DIR`")


def _recipe(request: Request) -> Recipe:
    return load_recipe(str(request.recipe), list(request.overrides), request.data)


def _design(request: Request, site: Site, mode: Mode) -> tuple[Plan, dict[str, str]]:
    """The plan and every job's script of a run that can be submitted; nothing is written."""
    recipe = _recipe(request)
    plan, _ = plan_recipe(recipe)
    check_machine(plan, None)
    check_recipe(recipe, plan)
    check_programs(site, str(request.site or "site file"))
    return plan, {job.name: script(job, plan, request.run, site) for job in chain(plan, request.run, site, mode)}


def _unchecked(scripts: Mapping[str, str]) -> Iterator[str]:
    """Let SLURM check the scripts if it is there; yields a comment where it does not answer.

    Raises:
        UserError: SLURM refuses a job.
    """
    if shutil.which("sbatch") is None:
        return
    try:
        _check_scripts(scripts)
    except UserError:
        raise
    except StackingError as error:
        yield f"# SLURM did not check these scripts: {error}"


def _check_scripts(scripts: Mapping[str, str]) -> None:
    """Has SLURM validate every job before anything is written."""
    with tempfile.TemporaryDirectory(prefix="stacking-submit-") as folder:
        for name, text in scripts.items():
            path = Path(folder) / f"{name}.sbatch"
            path.write_text(text, encoding="utf-8")
            _check_syntax(path)
            slurm_client.check(path, Path(folder))


def _check_syntax(path: Path) -> None:
    done = subprocess.run(["/bin/bash", "-n", path], capture_output=True, text=True)
    if done.returncode != 0:
        said = "; ".join(line.removeprefix(f"{path}: ") for line in done.stderr.splitlines())
        raise UserError(path.name, f"is not a bash script: {said}", "correct the site file's prelude or template")


def _changes_anything(request: Request) -> bool:
    """Returns whether the requested site or mode differs from that of the jobs in the queue."""
    kept = request.run.site
    site = request.site is not None and (not kept.is_file() or load_site(kept) != load_site(request.site))
    return site or (request.mode is not None and request.mode != _mode_before(request.run))


def _site(request: Request) -> Site:
    kept = request.run.site if request.run.site.is_file() else None
    return load_site(request.site or kept)


def _mode(request: Request) -> Mode:
    return request.mode or _mode_before(request.run)


def _mode_before(run: RunFolder) -> Mode:
    known = known_jobs(run.journal.events())
    return next(iter(known.values()))["mode"] if known else "per-stage"


def _answers(run: RunFolder, found: Sequence[Link]) -> Iterator[str]:
    if not found:
        yield f"nothing to submit: the run in {run.path} is finished"
        return
    before = None
    for link in found:
        after = f" after {before}" if before and link.is_new else ""
        start = f", expected to start at {link.start.replace('T', ' ')}" if link.start else ""
        yield f"{link.job.name:<18} job {link.id} {'submitted' if link.is_new else 'already queued'}{after}{start}"
        before = link.id
    yield f"`{command('status', run.path)}` shows these jobs, `{command('cancel', run.path)}` ends them"
