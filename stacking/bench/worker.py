"""Measures one trial; a launcher starts this process on every rank.

`stacking.bench.trial.run_trial` starts it as `python -m stacking.bench.worker FOLDER`.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from stacking.bench.hardware import gemm_tflops, hardware
from stacking.bench.measure import Batches, measure
from stacking.bench.synthetic import SyntheticSampler
from stacking.bench.trial import OUT_OF_MEMORY, PROFILE, RESULT, STARTING, Trial, TrialResult, read_trial
from stacking.data.arrays import mapped_array
from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS
from stacking.launch.mpi import log_to_file
from stacking.launch.rank import run_rank
from stacking.storage.files import write_atomically
from stacking.train.engine import connect

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_cpu", "CUBLAS_STATUS_ALLOC")
"""How torch, CUDA and the C library report it in errors of other types."""


def source(trial: Trial) -> Batches:
    """Returns the source of samples: the plan's data, or synthetic samples."""
    plan = trial.plan
    data = plan.data
    if data.path is None:
        sampler = SyntheticSampler(
            plan.model.vocabulary,
            data.sequence_length,
            plan.seed,
            data.mask_probability,
            ragged=trial.ragged,
            pairs=SAMPLERS[data.samples].pairs,
            padding_id=plan.model.padding_id,
        )
        return sampler.unpadded
    assert trial.samples is not None
    rows = mapped_array(Path(trial.samples))
    corpus = Corpus(Path(data.path), split="train")
    return SAMPLERS[data.samples](corpus, rows, data.sequence_length, plan.seed, data.mask_probability).unpadded


def main(folder: Path) -> None:
    """Measures, and lets rank 0 write the result."""
    trial = read_trial(folder)
    connect()
    device = torch.device(get_accelerator().current_device_name())
    gemm = gemm_tflops(device, trial.planned.precision)

    def starting(name: str) -> None:
        if dist.get_rank() == 0:
            write_atomically(folder / STARTING, name)

    measured = measure(trial, source(trial), device, starting)
    found = hardware(device, trial.planned, gemm)
    if dist.get_rank() == 0:
        if trial.profile:
            tables = (f"{name}\n{table}\n" for name, (_, table) in measured.items())
            write_atomically(folder / PROFILE, "\n".join(tables))
        measurements = {name: measurement for name, (measurement, _) in measured.items()}
        result = TrialResult(outcome="measured", measurements=measurements, hardware=found)
        write_atomically(folder / RESULT, result.model_dump_json(indent=2) + "\n")
    dist.barrier()


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device or the host is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _NO_MEMORY)


def failure(error: Exception) -> int:
    """Returns the exit code for an unexpected error: `OUT_OF_MEMORY` if memory ran out, otherwise 1."""
    return OUT_OF_MEMORY if ran_out_of_memory(error) else 1


if __name__ == "__main__":
    log_to_file(os.environ)
    run_rank(partial(main, Path(sys.argv[1])), failure)
