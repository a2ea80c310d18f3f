"""Shows a run's progress: bars on a terminal, a periodic line elsewhere.

Reads only the plan and the stages' ``metrics.jsonl``, so it needs no connection to the workers.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.table import Column

from stacking.planning.plan import Plan
from stacking.run.metrics import Record
from stacking.terminal.lenient import lenient
from stacking.terminal.units import count, counted, duration, loss

_WINDOW = 20
"""Number of records over which the speed is measured."""
_DOING = {
    "import": "importing the model",
    "grow": "growing",
    "attention-grown": "measuring attention",
    "attention-trained": "measuring attention",
    "train": "training",
    "consolidate": "consolidating",
    "export": "exporting",
    "report": "writing the report",
}


@dataclass(frozen=True)
class TimeLeft:
    """Remaining seconds of training, excluding evaluations and transitions."""

    stage: float
    run: float


class Speedometer:
    """Measures the training speed and estimates the remaining time.

    Future stages are assumed to reach the current stage's FLOPs per second. Deeper stages are usually slightly faster,
    so the estimate is on the high side.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._points: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._stage = -1

    def update(self, record: Record) -> None:
        """Adds a ``train`` record; an earlier step or another stage restarts the measurement."""
        if record["stage"] != self._stage or (self._points and record["step"] <= self._points[-1][0]):
            self._points.clear()
            self._stage = record["stage"]
        self._points.append((record["step"], record["seconds"]))

    def time_left(self) -> TimeLeft | None:
        """Returns the estimate, in seconds; None before the first record."""
        if not self._points:
            return None
        stage = self.plan.stages[self._stage]
        (first, began), (step, now) = self._points[0], self._points[-1]
        per_step = (now - began) / (step - first) if len(self._points) > 1 else now / step
        in_stage = (stage.steps - step) * per_step
        flops_to_come = sum(later.all_flops for later in self.plan.stages[self._stage + 1 :])
        return TimeLeft(stage=in_stage, run=in_stage + flops_to_come / (stage.flops / stage.steps) * per_step)


class Progress:
    """Shows a run's progress; use it as a context manager.

    Args:
        stream: where to write, by default stderr: bars on a terminal, plain lines otherwise.
        every: seconds between two plain lines of training.
    """

    def __init__(self, plan: Plan, stream: TextIO | None = None, every: float = 10.0) -> None:
        stream = lenient(stream if stream is not None else sys.stderr)
        self._plan = plan
        self._display: _Bars | _PlainProgress = (
            _Bars(plan, stream) if stream.isatty() else _PlainProgress(plan, stream, every)
        )
        self._speed = Speedometer(plan)
        self._since = time.time()
        self._warned = False

    def update(self, record: Record) -> None:
        """Shows one record of ``metrics.jsonl``; a record older than the phase only counts towards the speed."""
        training = record["kind"] == "train"
        if training:
            self._speed.update(record)
        if record["time"] < self._since:
            return
        if training:
            self._display.trained(record, self._speed.time_left())
            self._warn(record)
        else:
            where = f"{_layers(self._plan, record['stage'])}: step {record['step']:,}"
            self.note(f"{where}, held-out loss {loss(record['loss'])}")

    def _warn(self, record: Record) -> None:
        """Shows a record's warning, once for consecutive records with warnings."""
        warning = record.get("warning")
        if warning and not self._warned:
            self.note(f"{_layers(self._plan, record['stage'])}: step {record['step']:,}, {warning}")
        self._warned = bool(warning)

    @contextmanager
    def phase(self, name: str, stage: int, step: int = 0) -> Iterator[None]:
        """Shows that a phase is running, and its duration when it has ended.

        Args:
            step: training only: the update of the checkpoint to continue from. Earlier records are not shown again.
        """
        begun, self._since = time.monotonic(), time.time()
        what = f"{_layers(self._plan, stage)}: {_DOING.get(name, name)}"
        self._display.phase_started(f"{what} again from step {step:,}" if step else what)
        try:
            yield
        finally:
            self._display.phase_ended(what, time.monotonic() - begun)

    def note(self, text: str) -> None:
        """Shows one permanent line, such as a restart or a damaged checkpoint."""
        self._display.note(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._display.close()


class _PlainProgress:
    """Prints plain lines: one every few seconds of training, and one for each other event."""

    def __init__(self, plan: Plan, stream: TextIO, every: float) -> None:
        self.plan, self.stream, self.every = plan, stream, every
        self._shown = -math.inf

    def trained(self, record: Record, left: TimeLeft | None) -> None:
        if not _is_last(self.plan, record) and time.monotonic() - self._shown < self.every:
            return
        self._shown = time.monotonic()
        where = f"{_layers(self.plan, record['stage'])}: step {_step(self.plan, record)}"
        facts = [where, *_facts(record)]
        if left is not None and left.run > 0:
            in_stage = f"{duration(left.stage)} left in this stage, " if left.stage > 0 else ""
            facts.append(f"{in_stage}{duration(left.run)} {'in all' if in_stage else 'left in all'}")
        self.note(", ".join(facts))

    def phase_started(self, what: str) -> None:
        self.note(f"{what} ...")

    def phase_ended(self, what: str, seconds: float) -> None:
        self.note(f"{what} took {duration(seconds)}")

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        pass


class _Bars:
    """Shows one bar for the run, in FLOPs, one per stage, in updates, and a line above them for each other event."""

    def __init__(self, plan: Plan, stream: TextIO) -> None:
        self.plan = plan
        self._bars = rich.progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True)),
            console=Console(file=stream),
            expand=True,
        )
        self._run = self._bars.add_task("run", total=sum(stage.all_flops for stage in plan.stages), facts="")
        self._stages: dict[int, TaskID] = {}
        self._other: TaskID | None = None
        self._bars.start()

    def trained(self, record: Record, left: TimeLeft | None) -> None:
        stage = record["stage"]
        if stage not in self._stages:
            total = self.plan.stages[stage].steps
            self._stages[stage] = self._bars.add_task(_layers(self.plan, stage), total=total, facts="")
        facts = [_step(self.plan, record), *_facts(record)]
        if left is not None and left.stage > 0:
            facts.append(f"{duration(left.stage)} left")
        self._bars.update(self._stages[stage], completed=record["step"], facts="  ".join(facts))
        if left is not None:
            done = self.plan.flops_done(record["stage"], record["step"])
            self._bars.update(self._run, completed=done, facts=f"{duration(left.run)} left")

    def phase_started(self, what: str) -> None:
        self._other = self._bars.add_task(what, total=None, facts="")

    def phase_ended(self, what: str, seconds: float) -> None:
        if self._other is not None:
            self._bars.remove_task(self._other)
            self._other = None
        self.note(f"{what} took {duration(seconds)}")

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()


def _layers(plan: Plan, stage: int) -> str:
    return counted(plan.stages[stage].layers, "layer")


def _step(plan: Plan, record: Record) -> str:
    return f"{record['step']:,}/{plan.stages[record['stage']].steps:,}"


def _is_last(plan: Plan, record: Record) -> bool:
    return bool(record["step"] == plan.stages[record["stage"]].steps)


def _facts(record: Record) -> list[str]:
    return [f"loss {loss(record['loss'])}", f"{count(record['tokens_per_second'])} tokens/s"]
