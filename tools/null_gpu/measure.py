"""python -m tools.null_gpu.measure RECIPE [KEY=VALUE…]: what one update of a recipe's last stage asks of the device.

Runs on the null GPU. Takes updates of synthetic samples with this project's own training step, and prints JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

from tools.null_gpu import counters

_WARM_UP = 2
"""Updates before the first that counts: enough for both paths of a compiled layer, static and dynamic."""
_COUNTED = 5
_SECTIONS = ("forward", "backward", "optimizer")
_WAITS = (
    *("stream synchronisations", "event synchronisations", "device synchronisations"),
    *("synchronous copies", "pageable copies to the device"),
)
"""Counters of moments at which the host waits for the device."""


class Sections:
    """Counts what every section of an update asks of the device."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Counts the body as part of section ``name``."""
        counters.reset()
        yield
        self.counts.setdefault(name, Counter()).update(counters.counts())

    def of(self, section: str, *names: str) -> int:
        """Returns a sum of counters in one section."""
        return sum(self.counts.get(section, Counter())[name] for name in names)


def measured(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Returns the counts of one update, medians over some.

    ``launches`` are kernels; ``waits`` the host's waits for the device, in forward and backward and in the optimizer's
    step; ``recompiled`` the graphs compiled after the warm-up: all of them with ragged samples. With full samples,
    there are ``launches of full samples``, and ``allocated`` and ``reserved`` as peaks of device memory in bytes;
    ``planned`` is the plan's estimate.
    """
    import torch
    from torch._dynamo.utils import counters as dynamo

    from stacking.bench.contender import Stacking
    from stacking.bench.measure import Batches
    from stacking.bench.targets import Wanted, targets, trial_of
    from stacking.bench.worker import source
    from stacking.train.engine import connect
    from stacking.train.loader import sample_numbers

    wanted = Wanted(target=recipe, ragged=True, overrides=overrides)
    target = targets(wanted)[-1]
    trial = trial_of(target, wanted, ("stacking",), None)
    connect()
    contender = Stacking(trial)
    contender.begin_turn()
    ragged, full = (source(trial.model_copy(update={"ragged": how})) for how in (True, False))

    def update(step: int, batches: Batches = ragged) -> Sections:
        sections = Sections()
        micro_batches = [contender.prepare(batches(rows)) for rows in sample_numbers(trial.planned, step, 0)]
        contender.update(micro_batches, step, sections)
        return sections

    for step in range(_WARM_UP):
        update(step)
    graphs = dynamo["stats"]["unique_graphs"]
    updates = [update(_WARM_UP + step) for step in range(_COUNTED)]
    recompiled = dynamo["stats"]["unique_graphs"] - graphs
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    rectangular = update(_WARM_UP + _COUNTED, full)

    def middle(section: str, *names: str) -> int:
        return int(median(sections.of(section, *names) for sections in updates))

    return {
        "launches": sum(middle(section, "launches") for section in _SECTIONS),
        "waits": middle("forward", *_WAITS) + middle("backward", *_WAITS),
        "waits of the step": middle("optimizer", *_WAITS),
        "recompiled": recompiled,
        "launches of full samples": sum(rectangular.of(section, "launches") for section in _SECTIONS),
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "planned": trial.planned.memory_per_rank,
        **_chosen(contender.chosen()),
    }


def _chosen(chosen: Mapping[str, str]) -> dict[str, str]:
    return {name: chosen[name] for name in ("attention", "compile", "optimizer")}


def join_alone() -> None:
    """Makes this process the only rank."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(alone)


def main(recipe: str, *overrides: str) -> None:
    """Prints the counts as one line of JSON, the last on standard output."""
    join_alone()
    print(json.dumps(measured(recipe, list(overrides))))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the libraries' destructors would ask for the device
