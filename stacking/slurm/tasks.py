"""Submits independent tasks that need one node each, such as fine-tunings.

Only SLURM keeps a record: a task's job is found again by its name and its working folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stacking.errors import UserError
from stacking.launch import slurm_client
from stacking.slurm.script import check_options, cores, gpus, in_quotes, interpreter, rendered, requested, title
from stacking.slurm.site import Site, check_programs, load_site
from stacking.slurm.submission import submitting
from stacking.storage.files import write_atomically


def submit_tasks(folder: Path, tasks: Mapping[str, Sequence[str]], site_file: Path | None) -> Iterator[str]:
    """Submits a job for every task that has none in the queue.

    Args:
        folder: the absolute path of the jobs' working folder, with their scripts and logs in ``slurm/``.
        tasks: the arguments of `stacking` for each task, by its name.
        site_file: None: the defaults.

    Yields:
        A line about each task.

    Raises:
        UserError: the site file is invalid, or SLURM rejects a job; then none is submitted.
        StackingError: SLURM does not answer.
    """
    slurm_client.require()
    site, where = load_site(site_file), str(site_file or "site file")
    check_programs(site, where)
    scripts = {name: task_script(folder, name, arguments, site) for name, arguments in tasks.items()}
    with submitting(folder / "slurm"):
        queued = {job.name: job for job in slurm_client.jobs_in(folder).values()}
        there = {name: queued[title(folder, name)] for name in tasks if title(folder, name) in queued}
        missing = {name: folder / "slurm" / f"{name}.sbatch" for name in tasks if name not in there}
        for name, path in missing.items():
            write_atomically(path, scripts[name])
            _check(name, path, folder, where)
        for name in tasks:
            if name in there:
                yield f"{name}: job {there[name].id} is {there[name].state.lower()}"
            else:
                yield f"{name}: job {slurm_client.submit(missing[name], folder, hold=False)} submitted"


def task_script(folder: Path, name: str, arguments: Sequence[str], site: Site) -> str:
    """Returns the sbatch script of a task, which requests what the site file gives to one rank.

    Raises:
        UserError: the template or the folder's path is unusable, or an option contradicts a key.
    """
    values = requested(folder, name, site, site) | {
        "cores_per_task": cores(site, 1),
        "gpus": gpus(site, 1),
        "again": not site.requeue,
        "command": _command(arguments, site),
    }
    check_options(name, site, values)
    return rendered("task", values, site)


def _command(arguments: Sequence[str], site: Site) -> str:
    """Returns the call of `stacking` for the job's shell, inside the site's container if there is one."""
    container = [in_quotes(word, "container") for word in site.container]
    inside = site.container and site.container_python
    return " ".join(
        [*container, shlex.quote(inside) if inside else interpreter(site), "-m stacking", shlex.join(arguments)]
    )


def _check(name: str, script: Path, folder: Path, where: str) -> None:
    try:
        slurm_client.check(script, folder)
    except UserError as error:
        raise UserError(where, f"job {name}: {error.problem}", "correct it") from None
