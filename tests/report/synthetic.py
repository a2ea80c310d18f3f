"""A run directory synthesised from the formats alone: nothing in it was trained, and its numbers mean nothing.

It follows the contract of ``plan.json``, ``journal.jsonl`` and ``metrics.jsonl``, as far as readers use them, and lets
a test say exactly what happened and when: the clock is the writer's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stacking.config.recipe import CheckpointRule, Evaluation, Optimizer
from stacking.model.config import ModelConfig
from stacking.planning.growth import PlannedGrowth
from stacking.planning.plan import Cost, Plan, PlannedData, PlannedLaunch, StagePlan, write_plan
from stacking.run.metrics import MetricsWriter
from stacking.storage.seal import sealed

T0 = 1_700_000_000.0
"""When every synthetic run begins, in unix seconds."""
BATCH, SEQUENCE = 32, 128
TOKENS_PER_STEP = BATCH * SEQUENCE


def synthetic_plan(layers: Sequence[int], steps: Sequence[int]) -> Plan:
    model = ModelConfig(layers=layers[0], hidden=128, heads=2, intermediate=512, vocabulary=8000)
    return Plan(
        name="synthetic",
        seed=7,
        recipe="recipe.yaml",
        data=PlannedData(
            path="/data",
            digest="d1d1",
            samples="sentence-pair",
            sequence_length=SEQUENCE,
            mask_probability=0.15,
            samples_per_epoch=10_000,
            vocabulary=model.vocabulary,
        ),
        model=model,
        start=None,
        start_format=None,
        optimizer=Optimizer(),
        stages=tuple(_stage(index, layers[index], steps) for index in range(len(layers))),
        checkpoint=CheckpointRule(),
        evaluation=Evaluation(),
        log_every=1,
        launch=PlannedLaunch(launcher="local", accelerator="cpu", device="cpu"),
        cost=Cost(flops=1.0, baseline_flops=2.0),
        warnings=(),
    )


def _stage(index: int, layers: int, all_steps: Sequence[int]) -> StagePlan:
    steps, first_step = all_steps[index], sum(all_steps[:index])
    growth = PlannedGrowth(operator="stack", optimizer_state="reset", sources=("0 copy",) * layers)
    return StagePlan(
        index=index,
        name=f"{index}-L{layers}",
        layers=layers,
        steps=steps,
        global_batch=BATCH,
        micro_batch=8,
        accumulation=2,
        ranks=2,
        first_step=first_step,
        first_sample=first_step * BATCH,
        last_sample=(first_step + steps) * BATCH,
        tokens=steps * TOKENS_PER_STEP,
        epochs=None,
        learning_rate=((0, 1e-4), (10, 1e-3), (steps, 5e-4)),
        precision="bf16",
        zero_stage=2,
        ds_config={},
        ds_config_digest="d5d5",
        growth=growth if index else None,
        parameters=4_000_000 + 200_000 * layers,
        flops=1e9 * layers * steps,
        memory_per_rank=1 << 30,
    )


class SyntheticRun:
    """Writes a run directory event by event; ``now`` is its clock, in unix seconds."""

    def __init__(self, path: Path, layers: Sequence[int] = (3, 6, 12), steps: Sequence[int] = (100, 100, 100)) -> None:
        self.path, self.now = path, T0
        self.plan = synthetic_plan(layers, steps)
        path.mkdir(parents=True, exist_ok=True)
        write_plan(path / "plan.json", self.plan)
        self.event("created", plan=self.plan.digest)

    def event(self, event: str, **facts: Any) -> None:
        record = {"time": self.now, "event": event, "host": "node", "pid": 1, **facts}
        with open(self.path / "journal.jsonl", "a") as file:
            file.write(json.dumps(sealed(record)) + "\n")

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def phase(self, phase: str, stage: int, seconds: float, **facts: Any) -> None:
        """A phase other than training, from its start to its end."""
        self.event("started", phase=phase, stage=stage, attempt=1, world_size=1)
        self.wait(seconds)
        self.event("finished", phase=phase, stage=stage, attempt=1, seconds=seconds, **facts)

    def train(
        self,
        stage: int,
        first: int = 1,
        last: int | None = None,
        start_up: float = 5.0,
        evaluate_every: int | None = 25,
        nan_at: Sequence[int] = (),
        attempt: int = 1,
    ) -> None:
        """Updates ``first`` to ``last``, each logged; the phase is begun, and finished if ``last`` is the final one."""
        planned = self.plan.stages[stage]
        last = last if last is not None else planned.steps
        self.event("started", phase="train", stage=stage, attempt=attempt, world_size=2)
        self.wait(start_up)
        begun = self.now
        with MetricsWriter(self.path / planned.name / "metrics.jsonl") as metrics:
            for step in range(first, last + 1):
                self.wait(planned.layers / 10)
                metrics.append(self._trained(planned, step, math.nan if step in nan_at else None))
                if evaluate_every and step % evaluate_every == 0:
                    self.wait(2.0)
                    metrics.append(self._evaluated(planned, step))
        if last == planned.steps:
            self.event("finished", phase="train", stage=stage, attempt=attempt, seconds=self.now - begun + start_up)

    def transition(self, stage: int, consolidate: float = 3.0, grow: float = 1.5) -> None:
        """From the end of ``stage`` to where the next one's training starts."""
        self.phase("consolidate", stage, consolidate, digest=f"state{stage}")
        self.phase("grow", stage + 1, grow, digest=f"start{stage + 1}")

    def whole(self) -> SyntheticRun:
        """Every phase of every stage, nothing going wrong."""
        last = len(self.plan.stages) - 1
        for stage in range(last + 1):
            self.train(stage)
            if stage < last:
                self.transition(stage)
        self.phase("consolidate", last, 3.0)
        self.phase("export", last, 2.0)
        self.phase("report", last, 1.0)
        return self

    def _trained(self, stage: StagePlan, step: int, loss: float | None) -> dict[str, Any]:
        mlm = 3.0 + 6.0 * math.exp(-(stage.first_step + step) / 60) + 0.1 * math.sin(step * 1.7)
        loss = mlm + 0.6 if loss is None else loss
        return {
            "kind": "train",
            **self._where(stage, step),
            "samples": self._where(stage, step)["global_step"] * BATCH,
            "loss": loss,
            "mlm_loss": mlm,
            "nsp_loss": 0.6,
            "learning_rate": 1e-3 * min(step / 10, 1.0) * (1 - step / 200),
            "tokens_per_second": TOKENS_PER_STEP / (stage.layers / 10),
            "seconds": step * stage.layers / 10,
            "time": self.now,
        }

    def _evaluated(self, stage: StagePlan, step: int) -> dict[str, Any]:
        mlm = 3.1 + 6.0 * math.exp(-(stage.first_step + step) / 60)
        losses = {"loss": mlm + 0.6, "mlm_loss": mlm, "nsp_loss": 0.6}
        return {"kind": "evaluation", **self._where(stage, step), **losses, "seconds": 2.0, "time": self.now}

    def _where(self, stage: StagePlan, step: int) -> dict[str, Any]:
        global_step = stage.first_step + step
        return {
            "stage": stage.index,
            "step": step,
            "global_step": global_step,
            "tokens": global_step * TOKENS_PER_STEP,
        }
