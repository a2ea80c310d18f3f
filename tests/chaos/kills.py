"""One disturbed chain: signals at random moments until it has ended, then a comparison with the undisturbed one."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos.compare import different_files, leftovers, set_aside
from tests.chaos.processes import ANY, CREATING, FIRST_SECOND, SAVING, TARGETS, Controller, Target, begun, outlived
from tests.chaos.results import Result
from tests.chaos.workshop import SETTINGS, Ended, Workshop

_SIGNALS = {"SIGKILL": 8, "SIGTERM": 5, "SIGINT": 3, "SIGHUP": 2, "SIGUSR1": 2}
"""How often each signal is drawn, by weight."""
_MOMENTS = (
    CREATING,
    "train, before its first update",
    "train",
    SAVING,
    "consolidate",
    "grow",
    "export",
    "report",
)
_MOST_SIGNALS = 14
"""Of one chain."""
_BEFORE_PYTHON_RUNS = 0.5
"""Seconds in which the interpreter may still be starting, where a signal's own effect is all that can be expected."""


@dataclass(frozen=True)
class _Blow:
    """One planned signal."""

    moment: str
    delay: float
    number: signal.Signals
    target: Target
    pick: float
    again: float | None
    """Seconds after which it comes a second time."""


def _draw_blow(draw: random.Random) -> _Blow:
    """A third of the signals are sent in the first second, a third in the next few, a third in a chosen phase."""
    moment = draw.choice([FIRST_SECOND, ANY, draw.choice(_MOMENTS)])
    longest = {FIRST_SECOND: 1.0, ANY: 4.0, "train": 1.0, SAVING: 0.0}.get(moment, 0.3)
    name = draw.choices(list(_SIGNALS), list(_SIGNALS.values()))[0]
    return _Blow(
        moment=moment,
        delay=draw.uniform(0, longest),
        number=signal.Signals[name],
        target=draw.choices(TARGETS, (4, 2, 3))[0],
        pick=draw.random(),
        again=draw.uniform(0, 0.5) if draw.random() < 0.25 else None,
    )


def play(workshop: Workshop, seed: int, number: int) -> list[Result]:
    """Play chain ``number`` of ``seed``; a result for every signal."""
    draw = random.Random(f"kills {seed} {number}")
    setting = draw.choice(SETTINGS)
    workshop.fresh_data()
    reference, recipe, run = workshop.reference(setting), workshop.recipe(setting), workshop.scratch()
    results: list[Result] = []
    done = False
    while not done and len(results) < _MOST_SIGNALS:
        blow = _draw_blow(draw)
        controller = _start(workshop, recipe, run)
        phase, again = _strike(controller, blow)
        since = time.monotonic() - controller.started
        ended = controller.wait()
        done = ended.exit_code == 0
        if phase is not None:
            outcome, message = _judge(ended, blow, since)
            signal_name = blow.number.name
            results.append(
                Result(
                    kind="kill",
                    seed=seed,
                    number=number,
                    setting=str(setting),
                    row=phase,
                    what=f"{signal_name} to {blow.target}{' twice' if again else ''}, {phase}, after {since:.2f} s",
                    column=signal_name,
                    outcome=outcome,
                    message=message,
                )
            )
    ended = _start(workshop, recipe, run).wait() if not done else Ended(0, "")
    return _with_the_end(results, ended, run, reference)


def _start(workshop: Workshop, recipe: Path, run: Path) -> Controller:
    arguments: list[str | Path] = ["resume", run] if begun(run) else ["run", recipe, "--run-dir", run]
    return Controller(run, arguments, workshop.folder / "output")


def _strike(controller: Controller, blow: _Blow) -> tuple[str | None, bool]:
    """The phase in which the signal was sent, None if it was not, and whether it was sent twice."""
    if not controller.wait_for(blow.moment, patience=60):
        return None, False
    time.sleep(blow.delay)
    phase = controller.phase()
    if not controller.running or not controller.send(blow.number, blow.target, blow.pick):
        return None, False
    if blow.again is None:
        return phase, False
    time.sleep(blow.again)
    return phase, controller.running and controller.send(blow.number, blow.target, blow.pick)


def _judge(ended: Ended, blow: _Blow, since: float) -> tuple[str, str]:
    """Whether the controller ended as it should; whether anything was lost is checked at the chain's end."""
    last = (ended.output.strip().splitlines() or [""])[-1]
    if ended.exit_code is None:
        return "hang", last
    if ended.traceback:
        return "crash", last
    if ended.exit_code in _expected(blow, since):
        return "identical", ""
    return "wrong exit code", f"exit code {ended.exit_code}: {last}"


def _expected(blow: _Blow, since: float) -> set[int]:
    """Correct exit codes; 0 where the signal came too late."""
    if blow.target == "rank":
        return {0, 1, 75}
    if blow.number == signal.SIGKILL:
        return {0, -signal.SIGKILL}
    early = {-blow.number} if since < _BEFORE_PYTHON_RUNS else set()
    interrupted = {130} if blow.number == signal.SIGINT else set()
    return {0, 75, *early, *interrupted}


def _with_the_end(results: list[Result], ended: Ended, run: Path, reference: Path) -> list[Result]:
    """The results, all of them bad if the chain did not end as the undisturbed one did."""
    if ended.exit_code != 0:
        outcome = "lost"
        details = [f"the last resume ended with {ended.exit_code}", *ended.output.strip().splitlines()[-1:]]
    else:
        outcome = "different"
        details = different_files(run, reference) + leftovers(run) + set_aside(run)
        details += [f"still running: {name}" for name in outlived(run)]
    if not details:
        return results
    return [replace(result, outcome=outcome, details=details) for result in results]
