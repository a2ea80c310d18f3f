"""Fine-tunes and scores a model on GLUE, task by task, and goes on where an earlier attempt stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from stacking.errors import UserError
from stacking.glue.metrics import require_libraries
from stacking.glue.model_source import ModelSource, find_model
from stacking.glue.recipes import FineTuning, settings
from stacking.glue.results import Results, SeedResult, encoder_file, result_file
from stacking.glue.source import Source, hidden_sets, open_source
from stacking.glue.submission import write_submission
from stacking.glue.summary import GlueSummary, TaskSummary, summarise, write_summary
from stacking.glue.tasks import FROM_MNLI, TASKS, GlueTask, chosen, folder_of
from stacking.glue.unit import Unit, check_same, run_unit
from stacking.storage.files import checksum, disk_errors
from stacking.terminal.progress_bar import bar
from stacking.terminal.units import counted

_MNLI_SEED = 0
"""The run on MNLI from which other tasks start with ``--from-mnli``."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    model: Path
    data: str
    out: Path
    tasks: tuple[str, ...]
    """Empty: all but WNLI."""
    recipe: str
    changes: tuple[str, ...]
    seeds: int | None
    """None: each task's default."""
    from_mnli: bool
    tokenizer: Path | None


def score(request: Request, tell: Tell) -> GlueSummary:
    """Trains what is missing, then writes ``glue.json`` and the submission files, and returns the scores.

    Everything that the user gave is checked before the first training starts.

    Raises:
        UserError: model, data, tasks or settings cannot be used, or contradict the results in ``out``.
        StackingError: a training failed; the message names its log.
    """
    require_libraries()
    recipes = settings(request.recipe, request.changes)
    tasks = chosen(request.tasks) if request.tasks else [task for task in TASKS.values() if task.in_average]
    _check_mnli(request, tasks)
    model, source = find_model(request.model, request.tokenizer), open_source(request.data)
    digests = {task.name: _digest(source, task) for task in tasks}
    results = Results(request.out)
    with disk_errors(request.out):
        request.out.mkdir(parents=True, exist_ok=True)
    work = _Work(request, model, recipes, digests, results, tell)
    ordered = sorted(tasks, key=lambda task: task.name != "MNLI") if request.from_mnli else tasks
    for task in ordered:
        work.check(task)
    for task in ordered:
        work.finish(task, from_mnli=False)
    for task in [task for task in tasks if request.from_mnli and task.name in FROM_MNLI]:
        work.finish(task, from_mnli=True)
    summary = GlueSummary(
        model=model.name, recipe=request.recipe, changes=request.changes, tasks=tuple(work.summaries(tasks))
    )
    for task in tasks:
        for path in write_submission(results, task, source, work.seeds(task)):
            tell(f"test predictions: {path}")
    write_summary(request.out, summary)
    return summary


def _check_mnli(request: Request, tasks: Sequence[GlueTask]) -> None:
    names = {task.name for task in tasks}
    if request.from_mnli and ("MNLI" not in names or not names & set(FROM_MNLI)):
        problem = f"needs MNLI and at least one of {', '.join(FROM_MNLI)}"
        raise UserError("--from-mnli", problem, "add them to --tasks, or omit the option")


def _digest(source: Source, task: GlueTask) -> str:
    """Reads all of a task's examples, so that mistakes in them show now; returns what identifies them."""
    parts = [source.train(task).digest(), *(source.dev(task, held).digest() for held in task.held)]
    hidden_sets(source, task)
    return xxhash.xxh3_128(" ".join(parts).encode()).hexdigest()


class _Work:
    """What is to be trained, and with which settings."""

    def __init__(
        self,
        request: Request,
        model: ModelSource,
        recipes: dict[str, FineTuning],
        digests: dict[str, str],
        results: Results,
        tell: Tell,
    ) -> None:
        self._request, self._model, self._recipes = request, model, recipes
        self._digests, self._results, self._tell = digests, results, tell

    def seeds(self, task: GlueTask) -> tuple[int, ...]:
        """Returns the seeds of a task."""
        return tuple(range(self._request.seeds or task.seeds))

    def check(self, task: GlueTask) -> None:
        """Rejects results of other settings before anything is trained."""
        self._done(task, from_mnli=False)

    def finish(self, task: GlueTask, from_mnli: bool) -> None:
        """Trains the seeds that are missing."""
        missing = [seed for seed in self.seeds(task) if seed not in self._done(task, from_mnli)]
        place, label = self._results.place(task, from_mnli), folder_of(task.name, from_mnli)
        keeps = self._request.from_mnli and task.name == "MNLI"
        if keeps and not encoder_file(place).is_file():
            missing = sorted({*missing, _MNLI_SEED})
        if not missing:
            self._tell(f"{label}: done already")
            return
        self._tell(f"{label}: {counted(len(missing), 'run')}")
        unit = self._unit(task, from_mnli).model_copy(
            update={"seeds": tuple(missing), "keep_encoder": _MNLI_SEED if keeps else None}
        )
        with bar(label) as update:
            run_unit(unit, place, update)

    def summaries(self, tasks: Sequence[GlueTask]) -> list[TaskSummary]:
        """Returns what the seeds of each task scored; a later run with fewer seeds leaves the others out."""
        found = []
        for from_mnli in (False, True):
            for task in tasks:
                if from_mnli and not (self._request.from_mnli and task.name in FROM_MNLI):
                    continue
                done = self._done(task, from_mnli)
                found.append(summarise([done[seed] for seed in self.seeds(task)], from_mnli))
        return found

    def _done(self, task: GlueTask, from_mnli: bool) -> dict[int, SeedResult]:
        """Returns the finished runs of a task, by seed."""
        place, unit = self._results.place(task, from_mnli), self._unit(task, from_mnli)
        done = {}
        for result in self._results.of(task, from_mnli):
            if result.seed in self.seeds(task):
                check_same(result, unit, result_file(place, result.seed))
                done[result.seed] = result
        return done

    def _unit(self, task: GlueTask, from_mnli: bool) -> Unit:
        data = Path(self._request.data)
        encoder = encoder_file(self._results.place(TASKS["MNLI"]))
        return Unit(
            model=self._model,
            data=str(data.resolve()) if data.is_dir() else self._request.data,
            task=task.name,
            recipe=self._recipes[task.name],
            data_digest=self._digests[task.name],
            seeds=self.seeds(task),
            start=checksum(encoder) if from_mnli else None,
        )
