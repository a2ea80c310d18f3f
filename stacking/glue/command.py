"""Fine-tunes and scores a model on GLUE, here or in SLURM jobs, and continues where an earlier attempt stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from stacking.errors import UserError
from stacking.glue.metrics import require_libraries
from stacking.glue.model_source import ModelSource, find_model
from stacking.glue.recipes import FineTuning, settings
from stacking.glue.results import Results, SeedResult, encoder_file, result_file, write_submission
from stacking.glue.source import Source, hidden_sets, open_source
from stacking.glue.summary import GlueSummary, TaskSummary, summarise, write_summary
from stacking.glue.tasks import FROM_MNLI, TASKS, GlueTask, chosen, folder_of
from stacking.glue.unit import Unit, check_same, run_unit
from stacking.slurm.tasks import submit_tasks
from stacking.storage.files import checksum, disk_errors
from stacking.terminal.progress_bar import bar
from stacking.terminal.units import counted

_MNLI_SEED = 0
"""The run on MNLI from which other tasks start with ``--from-mnli``."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """Holds what the user asks `stacking glue` for."""

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
    submit: bool = False
    site: Path | None = None

    @property
    def source(self) -> str:
        """The data for a process in another folder: an absolute path, or the name of a dataset."""
        folder = Path(self.data)
        return str(folder.resolve()) if folder.is_dir() else self.data


def jobs_of(request: Request, tasks: Sequence[GlueTask]) -> dict[str, list[GlueTask]]:
    """Returns the tasks of each job, by the job's name.

    With ``--from-mnli``, the tasks that start from the model of MNLI are in its job, for they must come after it.
    """
    after = [task for task in tasks if request.from_mnli and task.name in FROM_MNLI]
    return {task.name: [task, *(after if task.name == "MNLI" else [])] for task in tasks if task not in after}


def arguments(request: Request, tasks: Sequence[GlueTask]) -> list[str]:
    """Returns the arguments of `stacking` that train only ``tasks``, from any folder."""
    options = ["--data", request.source, "--out", str(request.out.absolute()), "--recipe", request.recipe]
    options += ["--tasks", ",".join(task.name for task in tasks)]
    options += [word for change in request.changes for word in ("--set", change)]
    options += ["--seeds", str(request.seeds)] if request.seeds is not None else []
    options += ["--tokenizer", str(request.tokenizer.absolute())] if request.tokenizer is not None else []
    return ["glue", str(request.model.absolute()), *options, *(["--from-mnli"] if len(tasks) > 1 else [])]


def score(request: Request, tell: Tell) -> GlueSummary:
    """Trains or submits what is missing, then writes ``glue.json`` and the submission files of what is finished.

    Everything that the user gave is checked before the first training starts.

    Returns:
        The scores of the tasks all of whose runs are finished.

    Raises:
        UserError: model, data, tasks or settings cannot be used, or contradict the results in ``out``.
        StackingError: a training failed, and the message names its log; or SLURM does not answer.
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
        work.missing(task, from_mnli=False)  # rejects results of other settings before anything is trained
    if request.submit:
        _submit(request, work, ordered, tell)
    else:
        for task, from_mnli in work.trainings(ordered):
            work.finish(task, from_mnli)
    summary = GlueSummary(
        model=model.name, recipe=request.recipe, changes=request.changes, tasks=tuple(work.summaries(tasks))
    )
    for task in [task for task in tasks if not work.missing(task, from_mnli=False)]:
        for path in write_submission(results, task, source, work.seeds(task)):
            tell(f"test predictions: {path}")
    write_summary(request.out, summary)
    return summary


def _submit(request: Request, work: _Work, tasks: Sequence[GlueTask], tell: Tell) -> None:
    """Submits the jobs whose tasks are not finished, and says how far each task is."""
    wanted = {
        name: arguments(request, group)
        for name, group in jobs_of(request, tasks).items()
        if any(work.missing(task, from_mnli) for task, from_mnli in work.trainings(group))
    }
    if wanted:
        for line in submit_tasks(request.out.absolute(), wanted, request.site):
            tell(line)
    for task, from_mnli in work.trainings(tasks):
        total = len(work.seeds(task))
        done = total - len(work.missing(task, from_mnli))
        tell(f"{folder_of(task.name, from_mnli)}: {done} of {counted(total, 'run')} finished")


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
        return tuple(range(self._request.seeds or task.seeds))

    def trainings(self, tasks: Sequence[GlueTask]) -> list[tuple[GlueTask, bool]]:
        """Returns what is trained: the tasks, each with whether it starts from MNLI; some do both."""
        from_mnli = [task for task in tasks if self._request.from_mnli and task.name in FROM_MNLI]
        return [(task, False) for task in tasks] + [(task, True) for task in from_mnli]

    def missing(self, task: GlueTask, from_mnli: bool) -> list[int]:
        has_encoder = encoder_file(self._results.place(TASKS["MNLI"])).is_file()
        if from_mnli and not has_encoder:
            return list(self.seeds(task))
        lacks_encoder = self._keeps_encoder(task) and not has_encoder
        done = self._done(task, from_mnli)
        return [seed for seed in self.seeds(task) if seed not in done or (lacks_encoder and seed == _MNLI_SEED)]

    def _keeps_encoder(self, task: GlueTask) -> bool:
        return self._request.from_mnli and task.name == "MNLI"

    def finish(self, task: GlueTask, from_mnli: bool) -> None:
        missing = self.missing(task, from_mnli)
        place, label = self._results.place(task, from_mnli), folder_of(task.name, from_mnli)
        if not missing:
            self._tell(f"{label}: already done")
            return
        self._tell(f"{label}: {counted(len(missing), 'run')}")
        unit = self._unit(task, from_mnli).model_copy(
            update={"seeds": tuple(missing), "keep_encoder": _MNLI_SEED if self._keeps_encoder(task) else None}
        )
        with bar(label) as update:
            run_unit(unit, place, update)

    def summaries(self, tasks: Sequence[GlueTask]) -> list[TaskSummary]:
        """Returns what the seeds of each finished task scored; a later run with fewer seeds leaves the others out."""
        found = []
        for task, from_mnli in self.trainings(tasks):
            if not self.missing(task, from_mnli):
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
        encoder = encoder_file(self._results.place(TASKS["MNLI"]))
        return Unit(
            model=self._model,
            data=self._request.source,
            task=task.name,
            recipe=self._recipes[task.name],
            data_digest=self._digests[task.name],
            seeds=self.seeds(task),
            start=checksum(encoder) if from_mnli else None,
        )
