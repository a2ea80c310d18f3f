"""A chain on a SLURM of several nodes that are killed, preempted and cut off at random moments."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.chaos.compare import different_files, leftovers, set_aside
from tests.chaos.results import Result
from tests.chaos.workshop import SETTINGS, Workshop
from tests.slurm_lab.jobs import processes
from tests.slurm_lab.lab import TOOL, Lab
from tests.slurm_lab.submitted import Submitted

_NODES = (2, 3, 4)
_MOST_OF_A_CHAIN = 4
"""Disturbances: fewer than a site's `mends` allows of any one kind."""
_LONGEST_PAUSE = 12.0
_LONGEST_ABSENCE = 20.0
_OUTAGE = "slurmctld away for two minutes"
_CHAINS_PER_OUTAGE = 10
"""An outage outlasts phases, and whole jobs; as it takes long, it is not drawn but begins every tenth chain."""
_PATIENCE = 600.0


def possible() -> bool:
    """Whether SLURM can be started here."""
    return subprocess.run([sys.executable, str(TOOL), "check"], capture_output=True).returncode == 0


def play(workshop: Workshop, seed: int, number: int) -> list[Result]:
    """Play chain ``number`` of ``seed``; a result for every disturbance. The chain has to finish without help."""
    draw = random.Random(f"cluster {seed} {number}")
    setting, nodes = draw.choice(SETTINGS), draw.choice(_NODES)
    workshop.fresh_data()
    reference, folder = workshop.reference(setting), workshop.folder / "cluster"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    results: list[Result] = []
    with _cluster(nodes) as lab:
        chain = Submitted(lab, folder, workshop.recipe(setting))
        chain.submit()
        for name in disturbances(draw, number):
            time.sleep(draw.uniform(0, _LONGEST_PAUSE))
            running = _running(chain)
            if _live(chain) and (what := _DISTURBANCES[name](chain, draw)):
                results.append(
                    Result(
                        kind="cluster",
                        seed=seed,
                        number=number,
                        setting=f"{setting}, {nodes} nodes",
                        row=name,
                        what=f"{what}, while {', '.join(running) or 'nothing'} ran",
                        column=name,
                        outcome="identical",
                    )
                )
        outcome, details = _end(chain)
    details += different_files(chain.run, reference) + leftovers(chain.run) + set_aside(chain.run)
    if details:
        return [replace(result, outcome=outcome or "different", details=details) for result in results]
    return results


def disturbances(draw: random.Random, number: int) -> list[str]:
    """The names of the disturbances of chain ``number``, in order."""
    drawn = [draw.choice([name for name in _DISTURBANCES if name != _OUTAGE]) for _ in range(_MOST_OF_A_CHAIN)]
    return [_OUTAGE, *drawn[1:]] if number % _CHAINS_PER_OUTAGE == 0 else drawn


@contextmanager
def _cluster(nodes: int) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="chaos-slurm-") as folder:
        lab = Lab(Path(folder), "--nodes", str(nodes))
        try:
            yield lab
        finally:
            lab.stop()


def _end(chain: Submitted) -> tuple[str, list[str]]:
    """Wait until the queue is empty; return what is wrong if the chain has not finished by itself."""
    deadline = time.monotonic() + _PATIENCE
    # A watcher whose shell was killed still submits the rest, although SLURM no longer has a job for it.
    while processes(chain.run, "stacking.slurm.watcher") or _live(chain):
        if time.monotonic() > deadline:
            return "hang", [f"jobs left: {', '.join(_live(chain))}"]
        time.sleep(1)
    status = chain.status()
    if status["state"] == "finished":
        return "", []
    return "lost", [f"the chain ended as {status['state']}", *(str(status.get("error") or "").splitlines()[-1:])]


def _live(chain: Submitted) -> list[str]:
    """The names of the chain's pending or running jobs."""
    return _queue(chain, "PENDING,RUNNING,COMPLETING,CONFIGURING,SUSPENDED,REQUEUED,REQUEUE_HOLD,SPECIAL_EXIT")


def _running(chain: Submitted) -> list[str]:
    return _queue(chain, "RUNNING")


def _queue(chain: Submitted, states: str) -> list[str]:
    """The run's own names for its jobs in these states."""
    live = set(chain.lab.run("squeue", "-h", "-o", "%A", "-t", states, check=False).split())
    return [name for name, job in chain.jobs().items() if str(job) in live]


def _pick(chain: Submitted, draw: random.Random) -> str | None:
    running = _running(chain)
    return str(chain.jobs()[draw.choice(running)]) if running else None


def _preempt(chain: Submitted, draw: random.Random) -> str | None:
    nodes = len(chain.lab.run("sinfo", "-h", "-N", "-p", "high").splitlines())
    chain.lab.sbatch(f"--nodes={nodes}", "--exclusive", "--partition=high", "--output=/dev/null", "--wrap=sleep 1")
    return "a job of high priority on all nodes"


def _requeue(chain: Submitted, draw: random.Random) -> str | None:
    job = _pick(chain, draw)
    return job and (chain.lab.run("scontrol", "requeue", job, check=False) or "scontrol requeue")


def _warn(chain: Submitted, draw: random.Random) -> str | None:
    job = _pick(chain, draw)
    return job and (chain.lab.run("scancel", "--batch", "--signal=USR1", job, check=False) or "the warning USR1")


def _kill_shell(chain: Submitted, draw: random.Random) -> str | None:
    job = _pick(chain, draw)
    return job and (chain.lab.run("scancel", "--batch", "--signal=KILL", job, check=False) or "SIGKILL to the shell")


def _kill(module: str) -> Callable[[Submitted, random.Random], str | None]:
    def kill(chain: Submitted, draw: random.Random) -> str | None:
        if not (found := processes(chain.run, module)):
            return None
        try:
            os.kill(draw.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            return None
        return f"SIGKILL to {module}"

    return kill


def _kill_node(chain: Submitted, draw: random.Random) -> str | None:
    node = draw.choice(chain.lab.run("sinfo", "-h", "-N", "-p", "low", "-o", "%N").split())
    chain.lab.tool("kill", node)
    time.sleep(draw.uniform(1, 10))
    chain.lab.tool("revive", node)
    return f"{node} killed and revived"


def _stop_slurmctld(shortest: float, longest: float) -> Callable[[Submitted, random.Random], str | None]:
    def stop(chain: Submitted, draw: random.Random) -> str | None:
        seconds = draw.uniform(shortest, longest)
        chain.lab.tool("kill", "slurmctld")
        time.sleep(seconds)
        chain.lab.tool("revive", "slurmctld")
        chain.lab.wait_until(lambda: "low" in chain.lab.run("sinfo", "-h", check=False))
        return f"slurmctld away for {seconds:.0f} s"

    return stop


_DISTURBANCES: Mapping[str, Callable[[Submitted, random.Random], str | None]] = {
    "preemption": _preempt,
    "requeue": _requeue,
    "warning": _warn,
    "killed shell": _kill_shell,
    "killed controller": _kill("stacking"),
    "killed rank": _kill("stacking.train.worker"),
    "killed node": _kill_node,
    "slurmctld away": _stop_slurmctld(1, _LONGEST_ABSENCE),
    _OUTAGE: _stop_slurmctld(120, 120),
}
