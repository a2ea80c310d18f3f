"""Makes an update with every plan of a folder, in ranks that survive a configuration that would end them."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from stacking.planning.plan import load_plan
from stacking.train.engine import connect, start_engine
from tests.model.conftest import example


def take_update(path: Path) -> str:
    """Train the last stage of a plan for one update; returns ``trained``, or the exception that ends a rank."""
    plan = load_plan(path)
    stage = plan.stages[-1]
    inputs = example()
    try:
        engine = start_engine(plan, stage)
        for _ in range(stage.accumulation):
            mlm, nsp = engine(*inputs.arguments)
            engine.backward(mlm + nsp)
            engine.step()
        steps = engine.global_steps
        engine.destroy()
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return "trained" if steps == 1 else f"{steps} updates"


if __name__ == "__main__":
    connect()
    for file in sorted(Path(sys.argv[1]).glob("*.json")):
        print(f"{file.stem}\t{take_update(file)}", flush=True)
        gc.collect()
