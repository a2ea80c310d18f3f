"""Records losses, speed and time of training without synchronising the device; rank 0 writes them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from stacking.planning.growth import Rates
from stacking.planning.plan import Plan, StagePlan
from stacking.run.metrics import MetricsWriter
from stacking.state.loss_scale import loss_scale, overflow_warning, smallest_scale
from stacking.train.checkpoint import padded_tokens
from stacking.train.finite import FiniteWatch, applied_norm
from stacking.train.validation import HeldOutLosses


class Recorder:
    """Collects the losses of each update on the device and reads them only when a record is due.

    ``seconds`` is the training time of this stage over all attempts, excluding evaluation and checkpoints.
    ``tokens`` counts the tokens of the whole run, without padding. A record's loss is the mean over its ``updates``,
    also after a restart; its ``tokens_per_second`` only covers the time since the restart.

    Args:
        progress: the result of `restore`.
    """

    def __init__(
        self,
        engine: DeepSpeedEngine,
        plan: Plan,
        stage: StagePlan,
        writer: MetricsWriter | None,
        progress: Mapping[str, Any],
    ) -> None:
        self._plan, self._stage, self._writer, self._monitor = plan, stage, writer, engine.monitor
        self._engine, self._skipped, self._streak = engine, engine.skipped_steps, 0
        self._sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
        self._seconds: float = progress["seconds"]
        self._since, self.tokens = time.perf_counter(), progress["tokens"]
        self._logged_seconds, self._logged_step, self._logged_tokens = self._seconds, -1, self.tokens
        self._losses, self._norms = FiniteWatch(), FiniteWatch(patience=1)
        self._apart = bool(stage.growth and stage.growth.apart)
        self._window: list[tuple[Tensor, int]] = []
        self._carried: list[list[float]] = progress.get("window", [])

    @property
    def seconds(self) -> float:
        """Training time of the stage so far, in seconds."""
        return self._seconds + time.perf_counter() - self._since

    @property
    def lost(self) -> bool:
        """Whether a gradient norm of this rank was not finite, or the losses of several consecutive updates."""
        return self._losses.lost or self._norms.lost

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pauses the training clock."""
        self._seconds = self.seconds
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def add(self, mlm: Tensor, nsp: Tensor) -> None:
        """Adds the summed losses of one micro-batch of this rank."""
        self._sums[0] += mlm.detach()
        self._sums[1] += nsp.detach()

    def update_done(self, step: int, predictions: int, tokens: int, rates: Rates) -> None:
        """Completes update ``step`` (from 1).

        Args:
            predictions: the update's masked positions over all ranks.
            tokens: the update's tokens without padding, over all ranks.
        """
        self.tokens += tokens
        self._losses.note(self._sums)
        if (norm := applied_norm(self._engine)) is not None:
            self._norms.note(norm)
        self._window.append((self._sums, predictions))
        self._sums = torch.zeros_like(self._sums)
        if self._logged_step < 0:
            self._logged_step = step - 1
        if step % self._plan.log_every == 0 or step == self._stage.steps:
            self._write_record(step, rates)

    def window(self) -> list[list[float]]:
        """Returns the two losses of each update since the last record, which a checkpoint carries to the next start.

        All ranks must call this together; it synchronises the device.
        """
        if not self._window:
            return self._carried
        means = torch.stack([s / s.new_tensor([count, self._stage.global_batch]) for s, count in self._window])
        dist.all_reduce(means)
        return self._carried + means.tolist()

    def complete(self, step: int, rates: Rates) -> None:
        """Writes the record of the latest updates, up to ``step``, unless it is written already."""
        if self._logged_step < step:
            self._write_record(step, rates)

    def _write_record(self, step: int, rates: Rates) -> None:
        losses = self.window()
        mlm, nsp = (sum(values) / len(losses) for values in zip(*losses, strict=True))
        seconds = self.seconds
        record = {
            "kind": "train",
            **self._position(step),
            "updates": len(losses),
            "loss": mlm + nsp,
            "mlm_loss": mlm,
            "nsp_loss": nsp,
            "learning_rate": rates.rest,
            **({"added_layers_learning_rate": rates.added} if self._apart else {}),
            "tokens_per_second": (self.tokens - self._logged_tokens) / max(seconds - self._logged_seconds, 1e-9),
            "seconds": seconds,
        }
        self._write({**record, **self._skips(step - self._logged_step)})
        self._logged_step, self._logged_seconds, self._logged_tokens = step, seconds, self.tokens
        self._window, self._carried = [], []

    def _skips(self, updates: int) -> dict[str, Any]:
        """Returns the loss scale and how many of the latest ``updates`` were skipped, with a warning if too many."""
        scale = loss_scale(self._engine).get("cur_scale")
        if scale is None:
            return {}
        skipped, self._skipped = self._engine.skipped_steps - self._skipped, self._engine.skipped_steps
        self._streak = self._streak + skipped if skipped == updates else 0
        warning = overflow_warning(scale, smallest_scale(self._engine), skipped, self._streak)
        return {"loss_scale": scale, "skipped_updates": skipped, **({"warning": warning} if warning else {})}

    def evaluation(self, step: int, losses: HeldOutLosses) -> None:
        """Writes the held-out losses after update ``step``."""
        self._write({"kind": "evaluation", **self._position(step), **losses._asdict()})

    def _position(self, step: int) -> dict[str, int | float]:
        samples = self._stage.first_sample + step * self._stage.global_batch
        return {
            "stage": self._stage.index,
            "step": step,
            "global_step": self._stage.first_step + step,
            "samples": samples,
            "tokens": self.tokens,
            "padded_tokens": padded_tokens(self._plan, self._stage, step),
        }

    def _write(self, record: dict[str, Any]) -> None:
        """Appends the record to ``metrics.jsonl`` and sends it to the monitors of the ds_config (TensorBoard, …)."""
        if self._writer is None:
            return
        self._writer.append({**record, "time": time.time()})
        if self._monitor.enabled:
            values = {name: record[name] for name in _MONITORED if name in record}
            self._monitor.write_events([(f"{record['kind']}/{n}", v, record["samples"]) for n, v in values.items()])


_MONITORED = ("loss", "mlm_loss", "nsp_loss", "learning_rate", "tokens_per_second")
