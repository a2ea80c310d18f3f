"""Makes the checkpoint of the transition benchmark, one process a rank.

python -m tools.benchmarks.transition_checkpoint FOLDER engine|enlarged

``engine``: a DeepSpeed engine holds a made-up state and saves it as in training. ``enlarged``: that is done with a
small model of the same kind; then its files are written again, by torch.save, with the tensors of the large one in the
place of the small one's, so that only one rank's tensors are ever in memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stacking.launch.rendezvous import rendezvous
from stacking.planning.plan import Plan, load_plan
from stacking.state.load import load
from stacking.train.checkpoint import Saver
from stacking.train.engine import connect, start_engine
from stacking.train.rank_sync import Agreement
from tools.benchmarks.enlarge import enlarge
from tools.benchmarks.noise import NoisyState

_SMALL = {"layers": 2, "hidden": 64, "heads": 2, "intermediate": 256, "vocabulary": 1_000}


def save_with_engine(plan: Plan, checkpoints: Path) -> None:
    """Saves the first stage's last checkpoint; all ranks call this."""
    stage = plan.stages[0]
    engine = start_engine(plan, stage, drawn=False)
    load(engine, NoisyState(plan.model.with_layers(stage.layers)))
    engine.global_steps = stage.steps
    saver = Saver(engine, plan, stage, checkpoints, Agreement(), works=lambda engine: True)
    saver.save(stage.steps, seconds=1.0, tokens=0, window=[])


def small(plan: Plan) -> Plan:
    """The same plan for a model that fits anywhere."""
    first = plan.stages[0].model_copy(update={"layers": _SMALL["layers"]})
    model = plan.model.model_copy(update=_SMALL)
    return plan.model_copy(update={"model": model, "stages": (first, *plan.stages[1:])})


def main(folder: Path, how: str) -> None:
    os.environ.update(rendezvous(os.environ))
    plan, checkpoints = load_plan(folder / "plan.json"), folder / "checkpoints"
    connect()
    save_with_engine(plan if how == "engine" else small(plan), checkpoints)
    if how == "enlarged" and os.environ["RANK"] == "0":
        enlarge(checkpoints, plan)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)
