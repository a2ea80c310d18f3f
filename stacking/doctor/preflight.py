"""Runs the short check with which a job's script begins; it ends a job that cannot work."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stacking.doctor.examine import ExamineRequest, Visit, visit
from stacking.doctor.ranks import INTERRUPTED
from stacking.doctor.report import as_json
from stacking.errors import StackingError
from stacking.launch.slurm import allocation_facts
from stacking.planning.plan import Plan, load_plan
from stacking.run.folder import RunFolder
from stacking.storage.files import read_json, write_json

NAME = "doctor.json"
_PATIENCE = 300.0
"""Seconds after which the job starts, whatever has been found by then."""
_VALID = 24 * 3600.0
"""Seconds for which a check of the same nodes stays valid, so that a requeued job does not repeat it."""


def before_job(run: RunFolder, environment: Mapping[str, str]) -> int:
    """Checks the nodes of this SLURM job, unless that was done recently, and returns the script's exit code.

    Writes ``RUN/doctor.json``. Only findings that make training impossible end the job, with one line on stderr and an
    event in the run's journal. If the check itself fails or hangs, the job starts anyway.
    """
    about = _about(environment)
    if _is_known(run.path / NAME, about):
        return 0
    try:
        with _watchdog(_PATIENCE):
            plan = load_plan(run.plan)
            many = int(environment.get("SLURM_JOB_NUM_NODES", 1)) > 1
            request = ExamineRequest(folder=run.path, plan=plan, launcher="slurm", collectives=many, quick=True)
            found = visit(request)
            if INTERRUPTED not in found.facts.failures:
                write_json(run.path / NAME, {"job": about, **as_json(found)})
    except Exception as error:
        _say(f"the check of this node failed, continuing without it: {type(error).__name__}: {error}")
        return 0
    return _verdict(run, plan, found, environment)


def _verdict(run: RunFolder, plan: Plan, found: Visit, environment: Mapping[str, str]) -> int:
    errors = [finding for finding in found.findings if finding.level == "error"]
    for finding in found.findings:
        if finding.level == "warning":
            _say(f"warning: {finding.what}: {finding.found}; {finding.advice}")
    if not errors:
        return 0
    first, more = errors[0], f" (and {len(errors) - 1} more in {run.path / NAME})" if errors[1:] else ""
    message = f"{found.facts.host.name}: {first.what}: {first.found}; {first.advice}{more}"
    _say(message)
    run.journal.append("resumed", **allocation_facts(environment))  # whatever ran before has ended
    run.journal.append("failed", phase="doctor", stage=_stage(run, plan), message=message)
    return StackingError.exit_code


def _about(environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a check is valid for: these nodes and this software."""
    return {
        "nodes": environment.get("SLURM_JOB_NODELIST", ""),
        "python": sys.executable,
        "container": environment.get("STACKING_CONTAINER", ""),
    }


def _is_known(path: Path, about: Mapping[str, Any]) -> bool:
    """Whether a recent check of the same nodes found no error."""
    try:
        known = read_json(path)
        fresh = 0 <= time.time() - known["time"] < _VALID
        errors = any(finding["level"] == "error" for finding in known["findings"])
        return known["job"] == about and fresh and not errors
    except (StackingError, OSError, KeyError, TypeError):
        return False


def _stage(run: RunFolder, plan: Plan) -> int:
    """Returns the index of the first untrained stage."""
    events = run.journal.events()
    done = {event["stage"] for event in events if (event["event"], event.get("phase")) == ("finished", "train")}
    return next((stage.index for stage in plan.stages if stage.index not in done), 0)


@contextmanager
def _watchdog(seconds: float) -> Iterator[None]:
    """Ends this process and its children if the block takes longer, for example on a dead file server."""

    def end() -> None:
        _say(f"the check of this node took more than {seconds:g} s, continuing without it")
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(words: str) -> None:
    print(f"stacking doctor: {' '.join(words.split())}", file=sys.stderr, flush=True)
