"""The host's time of updates of full or ragged samples, with changes of the recipe.

python -m tools.null_gpu.host_worker LAYERS MICRO_BATCH ACCUMULATION REPEATS full|ragged [KEY=VALUE…]

Runs on the null GPU, where contenders take turns. Prints JSON: for each contender, seconds of an update by section,
repeat after repeat.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from stacking.bench.contender import Contender, Stacking
from stacking.bench.hugging_face import HuggingFace
from stacking.bench.targets import Wanted, targets, trial_of
from stacking.bench.trial import Trial
from stacking.bench.worker import source
from stacking.train.engine import connect
from stacking.train.loader import sample_numbers
from tools.null_gpu.measure import join_alone

_WARM_UP = 6
"""Updates before the first that counts, which compile."""
_UPDATES = 10
"""Of one contender in one repeat."""
CONTENDERS: Mapping[str, Callable[[Trial], Contender]] = {
    "stacking": Stacking,
    "hugging-face": HuggingFace,
    "hugging-face-compiled": partial(HuggingFace, compiled=True),
}


class Sections:
    """The processor time that sections take, of all threads of this process: others may keep the machine busy."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times the body as part of section ``name``."""
        started = time.process_time()
        yield
        self.seconds[name] += time.process_time() - started  # type: ignore[assignment]


def measured(wanted: Wanted, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Returns seconds of an update by section, for every contender and repeat."""
    trial = trial_of(targets(wanted)[0], wanted, ("stacking",), None)
    join_alone()
    connect()
    contenders = {name: make(trial) for name, make in CONTENDERS.items()}
    for contender in contenders.values():
        _updates(contender, trial, 0, _WARM_UP)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name, contender in contenders.items():
            found[name].append(_updates(contender, trial, _WARM_UP + repeat * _UPDATES, _UPDATES))
    return found


def _updates(contender: Contender, trial: Trial, first_step: int, updates: int) -> dict[str, float]:
    """Takes updates of batches that are ready, and returns the seconds of one by section."""
    batches, sections = source(trial), Sections()
    contender.begin_turn()
    steps = range(first_step, first_step + updates)
    ready = [[contender.prepare(batches(rows)) for rows in sample_numbers(trial.planned, step, 0)] for step in steps]
    for step, micro_batches in zip(steps, ready, strict=True):
        contender.update(micro_batches, step, sections)
    return {name: seconds / updates for name, seconds in sections.seconds.items()}


def main(layers: str, micro_batch: str, accumulation: str, repeats: str, kind: str, *overrides: str) -> None:
    """Prints the seconds as one line of JSON, the last on standard output."""
    size = int(micro_batch)
    wanted = Wanted(
        target="bert-large",
        layers=(int(layers),),
        micro_batch=size,
        batch=size * int(accumulation),
        ragged=kind == "ragged",
        overrides=overrides,
    )
    print(json.dumps(measured(wanted, int(repeats))))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the libraries' destructors would ask for the device
