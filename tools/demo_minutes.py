"""Estimates how long the demo takes on this machine, from a few measured updates.

tools/demo_minutes.py [--set KEY=VALUE ...]
"""

import argparse
import time

import torch

from stacking.config.recipe import load_recipe
from stacking.model.bert import build
from stacking.model.kernels import kernels_for, use
from stacking.model.tokens import padded_tokens
from stacking.planning.plan import Plan, StagePlan
from stacking.run.create import plan_recipe
from stacking.terminal.units import counted

_UPDATES = 5
_OTHER_RANKS = 1.4
"""Time of an update on two ranks with DeepSpeed, relative to one rank without it."""
_AROUND = 40.0
"""Seconds for text preparation, start-ups, evaluations and reports, if an update takes `_UPDATE`."""
_UPDATE = 0.06
"""Seconds of a 12-layer update (forward and backward) on the machine where these constants were measured."""


def seconds_per_update(plan: Plan, stage: StagePlan) -> float:
    """Measures forward, backward and Adam of one rank on random tokens; returns the fastest of a few updates."""
    model = build(plan.model.with_layers(stage.layers))
    use(model, kernels_for(torch.device("cpu"), torch.float32, plan.model.hidden // plan.model.heads, 0.0))
    optimizer = torch.optim.AdamW(model.parameters())
    shape = (stage.micro_batch, plan.data.sequence_length)
    ids = torch.randint(5, 1000, shape)
    masked = torch.arange(0, ids.numel(), 7)
    tokens = padded_tokens(ids.numpy(), torch.zeros_like(ids).numpy(), torch.ones_like(ids).numpy(), masked.numpy())
    best = float("inf")
    for _ in range(_UPDATES):
        started = time.perf_counter()
        loss, _ = model(tokens, ids.flatten()[masked])
        (loss / len(masked)).backward()
        optimizer.step()
        optimizer.zero_grad()
        best = min(best, time.perf_counter() - started)
    return best


torch.set_num_threads(1)
parser = argparse.ArgumentParser()
parser.add_argument("--set", action="append", default=[], dest="overrides")
plan, _ = plan_recipe(load_recipe("demo", ["model.vocabulary=1024", *parser.parse_args().overrides]))
if plan.launch.accelerator == "cuda":
    print("This takes a few minutes.")
else:
    updates = [seconds_per_update(plan, stage) for stage in plan.stages]
    training = sum(_OTHER_RANKS * stage.steps * update for stage, update in zip(plan.stages, updates, strict=True))
    minutes = (2 * training + _AROUND * updates[-1] / _UPDATE) / 60
    about = counted(max(1, round(minutes)), "minute")
    print(f"This takes about {about} here: a 12-layer update takes {updates[-1] * 1e3:.0f} ms.")
