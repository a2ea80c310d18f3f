"""Measures transitions between stages (consolidating, growing, loading) against cp and DeepSpeed's converters.

Everything runs in processes of its own, in turns, on one checkpoint. The checkpoint is DeepSpeed's own: saved by an
engine, or, where no engine of that size fits into memory, by torch.save in the form that an engine has (see
`transition_checkpoint`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from stacking.config.recipe import Recipe
from stacking.errors import StackingError, UserError
from stacking.hardware.machine import find_machine
from stacking.launch.job import Job
from stacking.launch.local import Local
from stacking.launch.outcome import describe
from stacking.model.size import count_parameters
from stacking.planning.make_plan import make_plan
from stacking.planning.plan import Plan, write_plan
from stacking.run.checkpoints import tag
from tools.benchmarks.process_watch import (
    Observation,
    available_memory,
    back_memory,
    forget,
    observe,
    observe_job,
    remember,
)

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "hidden": 64, "heads": 2, "vocabulary": 1_000},
    "14M": {"layers": 4, "hidden": 256, "heads": 4, "vocabulary": 30_522},
    "110M": {"layers": 12, "hidden": 768, "heads": 12, "vocabulary": 30_522},
    "340M": {"layers": 24, "hidden": 1024, "heads": 16, "vocabulary": 30_522},
    "1.3B": {"layers": 24, "hidden": 2048, "heads": 32, "vocabulary": 30_522},
}
"""BERT's, by their parameters."""
STATE_BYTES = 12
"""Of a parameter in a state: its master weight and both moments."""
_ENGINE_BYTES = 26
"""Of a parameter, most that two ranks on one computer take while they start and load or save."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Holds the command-line arguments."""

    ranks: int = 2
    zero_stage: int = 2
    precision: str = "bf16"
    optimizer_state: str = "copy-keep-step"
    """Treatment of Adam's moments; if copied, they are two thirds of what loading reads."""
    repeats: int = 3
    cache: str = "warm"
    """Whether the checkpoint's bytes are in memory before every measurement: ``warm`` or ``cold``."""
    deepspeed: bool = True
    """Whether its converters are measured, too."""


@dataclass
class Measured:
    """Of one contender, all repeats."""

    seconds: list[float] = field(default_factory=list)
    startup: list[float] = field(default_factory=list)
    """From the start of its process to the beginning of its work, and from its end to that of the process."""
    memory: int = 0
    """Peak resident bytes of all of its processes."""
    disk: int = 0
    """Peak bytes written, including temporary files."""
    note: str = ""

    def add(self, seen: Observation, seconds: float | None = None) -> None:
        work = seen.seconds if seconds is None else seconds
        self.seconds.append(work)
        self.startup.append(seen.seconds - work)
        self.memory, self.disk = max(self.memory, seen.memory), max(self.disk, seen.disk)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Of one shape."""

    shape: str
    layers: tuple[int, int]
    """Depths before and after growing."""
    parameters: tuple[int, int]
    checkpoint_bytes: int
    made_by: str
    measured: dict[str, Measured]

    @property
    def state_bytes(self) -> int:
        return STATE_BYTES * self.parameters[0]

    @property
    def transition(self) -> list[float]:
        """Seconds of consolidating, growing and loading, start-ups left out."""
        return [sum(parts) for parts in zip(*(self.measured[name].seconds for name in OURS), strict=True)]

    @property
    def memory(self) -> int:
        """Bytes resident at most in any of the three parts."""
        return max(self.measured[name].memory for name in OURS)

    @property
    def disk(self) -> int:
        """Bytes written beyond the checkpoint, when the grown state is there."""
        return max(self.measured[name].disk for name in OURS)

    def ratio(self, name: str, to: str = "cp") -> float:
        ours = self.transition if name == "transition" else self.measured[name].seconds
        return median(ours) / median(self.measured[to].seconds)


OURS = ("consolidate", "grow", "load")
DEEPSPEED = ("zero_to_fp32", "ds_to_universal")


def measure(shape: str, folder: Path, wanted: Wanted) -> Result:
    """Makes a checkpoint of ``shape`` in ``folder`` and measures everything on it; the folder is left empty.

    Raises:
        UserError: the disk has too little room, or no checkpoint of this kind can be made here.
        StackingError: a contender failed; says where its words are.
    """
    plan = _plan(shape, wanted)
    before, after = (count_parameters(plan.model.with_layers(stage.layers)) for stage in plan.stages)
    _check_room(folder, before, wanted)
    bench = _Bench(plan, folder, wanted, fits=_fits(before, wanted), grown_fits=_fits(after, wanted))
    try:
        bench.make()
        for _ in range(wanted.repeats):
            bench.take_turns()
        return Result(
            shape=shape,
            layers=(plan.stages[0].layers, plan.stages[1].layers),
            parameters=(before, after),
            checkpoint_bytes=sum(p.stat().st_size for p in bench.checkpoint.iterdir()),
            made_by="an engine" if bench.fits else "torch.save, as an engine would",
            measured=bench.measured,
        )
    finally:
        bench.clear()


class _Bench:
    """One shape's folder: the checkpoint, and the outputs of one contender at a time."""

    def __init__(self, plan: Plan, folder: Path, wanted: Wanted, fits: bool, grown_fits: bool) -> None:
        self.plan, self.folder, self.wanted = plan, folder, wanted
        self.fits, self.grown_fits = fits, grown_fits
        self.checkpoints, self.out, self.logs = folder / "checkpoints", folder / "out", folder / "logs"
        self.checkpoint = self.checkpoints / tag(plan.stages[0].steps)
        names = ("cp", "cp, then fsync", *OURS, *(DEEPSPEED if wanted.deepspeed else ()))
        self.measured = {name: Measured() for name in names}

    def make(self) -> None:
        """The checkpoint that everything is measured on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_plan(self.folder / "plan.json", self.plan)
        how = "engine" if self.fits else "enlarged"
        self._ranks("checkpoint", "tools.benchmarks.transition_checkpoint", how)

    def take_turns(self) -> None:
        self._clean()
        self.measured["cp"].add(self._observe(["cp", "-r", "--reflink=never", str(self.checkpoint), str(self.out)]))
        self._clean()
        self.measured["cp, then fsync"].add(self._observe(durable_copy(self.checkpoint, self.out)))
        self._clean()
        self._ours()
        for name in DEEPSPEED if self.wanted.deepspeed else ():
            self._clean()
            self._child(name, self.checkpoints, self.out)

    def _ours(self) -> None:
        state, start = self.out / "state", self.out / "start"
        growth = self.plan.stages[1].growth
        assert growth is not None
        self._child("consolidate", self.checkpoint, state)
        self._child("grow", state, start, self.plan.stages[1].layers, growth.operator, growth.optimizer_state)
        self._load(start)

    def _load(self, start: Path) -> None:
        measured = self.measured["load"]
        if self.grown_fits:
            seen = self._ranks("load", "tools.benchmarks.transition_load", str(start), watched=self.out)
            ranks = [self._said(f"load.{rank}") for rank in range(self.wanted.ranks)]
            measured.note = "into an engine; memory beyond what the engine keeps"
        else:
            argv = [sys.executable, "-m", "tools.benchmarks.transition_read", str(self.folder), str(start)]
            seen = self._observe(argv)
            ranks = [self._said("read")]
            measured.note = "every rank's part read into one buffer: no engine of this size fits into memory here"
        measured.add(seen, max(said["seconds"] for said in ranks))
        measured.memory = max(said["memory"] for said in ranks)

    def _child(self, name: str, *arguments: object) -> None:
        said = self.folder / f"{name}.json"
        argv = [sys.executable, "-m", "tools.benchmarks.transition_child", str(said), name, *map(str, arguments)]
        seen = self._observe(argv)
        self.measured[name].add(seen, self._said(name)["seconds"])

    def _observe(self, argv: list[str]) -> Observation:
        self.logs.mkdir(exist_ok=True)
        return observe(argv, self.out, self.logs / "contender.log")

    def _ranks(self, name: str, module: str, *arguments: str, watched: Path | None = None) -> Observation:
        argv = [sys.executable, "-m", module, str(self.folder), *arguments]
        accelerator = self.plan.launch.accelerator
        job = Job(name=name, argv=argv, ranks=self.wanted.ranks, logs=self.logs, accelerator=accelerator)
        seen, outcome = observe_job(Local().start(job), watched)
        if outcome.exit_code:
            raise StackingError(f"{describe(outcome)}")
        return seen

    def _said(self, name: str) -> dict[str, Any]:
        said: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return said

    def _clean(self) -> None:
        """The same disk and page cache before every contender."""
        shutil.rmtree(self.out, ignore_errors=True)
        os.sync()
        files = [path for path in self.checkpoint.iterdir() if path.is_file()]
        (remember if self.wanted.cache == "warm" else forget)(files)
        size = sum(path.stat().st_size for path in files)
        back_memory(2 * size)

    def clear(self) -> None:
        for path in (self.out, self.checkpoints):
            shutil.rmtree(path, ignore_errors=True)


def durable_copy(checkpoint: Path, copy: Path) -> list[str]:
    """Returns a command that ends when a copy of a checkpoint's files is on the disk."""
    return ["sh", "-c", 'cp -r --reflink=never "$0" "$1" && sync "$1"/*', str(checkpoint), str(copy)]


def recipe_of(shape: str, wanted: Wanted) -> dict[str, Any]:
    """Two stages, the second twice as deep, which takes everything of the first.

    Raises:
        UserError: ``shape`` is not known.
    """
    if shape not in SHAPES:
        raise UserError("--shape", f"{shape!r} is not known", f"give {', '.join(SHAPES)}")
    sizes = SHAPES[shape]
    model = {**sizes, "max_positions": 512, "dropout": 0.0, "attention_dropout": 0.0}
    stage = {"steps": 1, "batch_sequences": wanted.ranks, "micro_batch": 1, "learning_rate": {"peak": 1e-4}}
    return {
        "name": f"transition-{shape}",
        "model": {name: value for name, value in model.items() if name != "layers"},
        "data": {"sequence_length": 128},
        "precision": wanted.precision,
        "growth": {"operator": "stack", "optimizer_state": wanted.optimizer_state},
        "stages": [{"layers": sizes["layers"], **stage}, {"layers": 2 * sizes["layers"], **stage}],
        "ds_config": {"zero_optimization": {"stage": wanted.zero_stage}},
        "launch": {"ranks": wanted.ranks},
    }


def _plan(shape: str, wanted: Wanted) -> Plan:
    return make_plan(Recipe.model_validate(recipe_of(shape, wanted)), None, None, find_machine())


def _fits(parameters: int, wanted: Wanted) -> bool:
    """Whether engines with so many parameters, all ranks on this computer, leave a tenth of the free memory."""
    per_rank = 10 * parameters * (wanted.ranks - 2)
    return _ENGINE_BYTES * parameters + per_rank < 0.9 * available_memory()


def _check_room(folder: Path, parameters: int, wanted: Wanted) -> None:
    """Twice the checkpoint, for cp; three times where ds_to_universal writes its temporary files."""
    needed = (3 if wanted.deepspeed else 2) * 16 * parameters
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        problem = f"has {free / 1e9:.0f} GB free where the benchmark needs {needed / 1e9:.0f} GB"
        raise UserError(folder, problem, "choose another --folder or a smaller --shape")


def results_of(shapes: tuple[str, ...], folder: Path, wanted: Wanted) -> Iterator[Result]:
    """Measures every shape in turn."""
    for shape in shapes:
        yield measure(shape, folder / shape, wanted)
