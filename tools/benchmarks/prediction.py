"""Compares a prediction with the time that a finished run took."""

from __future__ import annotations

from dataclasses import dataclass

from stacking.errors import UserError
from stacking.estimate.prediction import Basis, Prediction, StagePrediction, predict
from stacking.report.run import Run
from stacking.report.timeline import account, attempts, evaluation_seconds, training_seconds, transition


@dataclass(frozen=True)
class CheckRow:
    """One time span."""

    what: str
    predicted: float
    actual: float
    counts: bool
    """Whether the span matters for the accuracy of the prediction, rather than being a small part of one that does."""

    @property
    def error(self) -> float:
        """Relative error: 0.1 means predicted 10 % too long."""
        return self.predicted / self.actual - 1 if self.actual else float("inf")


def check(run: Run, setting: Basis) -> list[CheckRow]:
    """Compares the training of every stage, the overhead, and the whole run.

    Raises:
        UserError: the run is unfinished, or was interrupted, so that its time is not that of a single run.
    """
    ended = [(attempt.phase, attempt.ending) for attempt in attempts(run)]
    if ("report", "finished") not in ended:
        raise UserError(run.folder.path, "is not finished", "finish it with `stacking resume`")
    if any(ending != "finished" for _, ending in ended):
        raise UserError(run.folder.path, "was interrupted", "give a run that finished without interruption")
    prediction = predict(run.plan, setting)
    rows = [row for index, stage in enumerate(prediction.stages) for row in _stage(run, index, stage)]
    return [*rows, _training(run, prediction), CheckRow("whole run", prediction.seconds, account(run).total, True)]


def as_text(rows: list[CheckRow]) -> str:
    """Tabulates predicted and actual seconds and the relative error."""
    width = max(len(row.what) for row in rows)
    lines = [f"{'seconds':{width}} {'predicted':>10} {'actual':>10} {'error':>8}"]
    lines += [f"{row.what:{width}} {row.predicted:10.2f} {row.actual:10.2f} {row.error:+8.1%}" for row in rows]
    return "\n".join(lines) + "\n"


def worst(rows: list[CheckRow]) -> CheckRow:
    """Returns the largest error of the rows that matter."""
    return max((row for row in rows if row.counts), key=lambda row: abs(row.error))


def _stage(run: Run, index: int, stage: StagePrediction) -> list[CheckRow]:
    between, outside = transition(run, index), stage.outside
    trained, evaluated = training_seconds(run, index), evaluation_seconds(run, index)
    start_up = between.start_up or 0.0
    saved = _phase(run, "train", index) - start_up - trained - evaluated
    grown = _phase(run, "grow", index) + _phase(run, "consolidate", index)
    return [
        CheckRow(f"{stage.name} training", stage.training_seconds + outside.warm_up, trained, True),
        CheckRow(f"{stage.name} start-up", outside.start_up, start_up, False),
        CheckRow(f"{stage.name} evaluations", outside.evaluations, evaluated, False),
        CheckRow(f"{stage.name} checkpoints, ending", outside.checkpoints, saved, False),
        CheckRow(f"{stage.name} grow, consolidate", outside.transitions, grown, False),
    ]


def _training(run: Run, prediction: Prediction) -> CheckRow:
    predicted = prediction.training_seconds + sum(stage.outside.warm_up for stage in prediction.stages)
    actual = sum(training_seconds(run, index) for index in range(len(prediction.stages)))
    return CheckRow("training", predicted, actual, True)


def _phase(run: Run, name: str, stage: int) -> float:
    return sum(attempt.seconds for attempt in attempts(run) if (attempt.phase, attempt.stage) == (name, stage))
