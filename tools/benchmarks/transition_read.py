"""The transition benchmark's loading where no engine fits: every rank's part of the grown state, read into one buffer.

python -m tools.benchmarks.transition_read FOLDER STATE: writes FOLDER/read.json. The ranks are threads here. What an
engine would add is its own memory's first touch, and its low-precision copy of the weights.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from stacking.planning.plan import load_plan
from stacking.state.format import MOMENTS, WEIGHTS, State
from stacking.storage.partition import cut, numel, packed
from stacking.storage.threads import each
from tools.benchmarks.process_watch import peak_memory

_SLICE = 1 << 22


def main(folder: Path, path: Path) -> None:
    plan = load_plan(folder / "plan.json")
    started = time.monotonic()
    state, ranks = State(path), plan.stages[1].ranks
    pieces = packed((name, state.shape(name)) for name in state.names)
    size = -(-sum(numel(state.shape(name)) for name in state.names) // ranks)
    parts = [cut(pieces, rank * size, (rank + 1) * size) for rank in range(ranks)]
    slices = [
        (kind, piece.name, start, min(_SLICE, piece.start + piece.numel - start))
        for part in parts
        for kind in (WEIGHTS, *(MOMENTS if state.moments else ()))
        for piece in part
        for start in range(piece.start, piece.start + piece.numel, _SLICE)
    ]
    buffers = threading.local()

    def read(item: tuple[str, str, int, int]) -> None:
        kind, name, start, count = item
        if not hasattr(buffers, "values"):
            buffers.values = np.empty(_SLICE, np.float32)
        state.fill(kind, name, start, buffers.values[:count])

    each(read, slices)
    said = {"seconds": time.monotonic() - started, "memory": peak_memory()}
    (folder / "read.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
