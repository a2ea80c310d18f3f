"""Real DeepSpeed engines: every source topology into every target topology, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stacking.state.consolidate import consolidate
from stacking.state.format import MOMENTS, State
from tests.state.ranks import run_ranks

pytestmark = pytest.mark.distributed

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

WORKER = Path(__file__).with_name("worker.py")
STEPS, MORE_STEPS = 3, 5

ENGINES: dict[str, dict[str, Any]] = {
    "zero0": {"zero": 0},
    "zero1": {"zero": 1},
    "zero2": {"zero": 2},
    "zero3": {"zero": 3},
    "zero2-offload": {"zero": 2, "offload": True},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "zero0-bf16": {"zero": 0, "precision": "bf16"},
    "zero1-bf16": {"zero": 1, "precision": "bf16"},
    "zero1-bf16-fp32grads": {
        "zero": 1, "precision": "bf16", "options": {"data_types": {"grad_accum_dtype": "fp32"}}},
    "zero2-bf16": {"zero": 2, "precision": "bf16"},
    "zero2-bf16-aligned": {"zero": 2, "precision": "bf16", "zero_options": {"parameter_alignment": True}},
    "zero2-bf16-robin": {"zero": 2, "precision": "bf16", "zero_options": {"round_robin_gradients": True}},
    "zero2-offload-bf16": {"zero": 2, "offload": True, "precision": "bf16"},
    "zero3-bf16": {"zero": 3, "precision": "bf16", "zero_options": {"sub_group_size": 200}},
    "zero3-hpz-bf16": {"zero": 3, "precision": "bf16", "zero_options": {"zero_hpz_partition_size": 2}},
    "zero3-offload-bf16": {"zero": 3, "offload": True, "precision": "bf16"},
    "zero0-fp16": {"zero": 0, "precision": "fp16"},
    "zero2-fp16": {"zero": 2, "precision": "fp16"},
    "zero3-fp16": {"zero": 3, "precision": "fp16"},
}  # fmt: skip
TOPOLOGIES = {
    f"{name}-x{ranks}": ({"precision": "fp32", "named": ranks == 2, **engine}, ranks)
    for engines, sizes in ((ENGINES, (1, 2)), (VARIANTS, (2,)))
    for name, engine in engines.items()
    for ranks in sizes
}
FP32 = [name for name, (engine, _) in TOPOLOGIES.items() if engine["precision"] == "fp32"]
NOT_SEEN_RIGHT = "zero2-bf16-robin-x2"
"""DeepSpeed's public calls overlook that this option reorders the parameters; its zero_to_fp32 does not."""
LOW = [name for name in TOPOLOGIES if name not in FP32]
PAIRS = [
    *((source, target) for source in FP32 for target in FP32),
    *((source, "zero2-x1") for source in LOW),
    *(("zero3-x2", target) for target in LOW),
]


def precision_of(topology: str) -> str:
    return str(TOPOLOGIES[topology][0]["precision"])


def steps_of(source: str) -> int:
    """Without ZeRO, DeepSpeed's bf16 and fp16 wrappers step once, on zero gradients, when they are created."""
    return STEPS + (source in LOW and TOPOLOGIES[source][0]["zero"] == 0)


class Laboratory:
    """The output of the ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._states: dict[str, State] = {}

    def state(self, run: str) -> State:
        if run not in self._states:
            self._states[run] = consolidate(self.folder / run, self.folder / "states" / run)
        return self._states[run]

    def probe(self, run: str) -> dict[str, np.ndarray]:
        return dict(np.load(self.folder / f"{run}.npz"))

    def launch(self, jobs: Iterable[tuple[str, str, dict[str, Any]]]) -> None:
        """Run (name, topology, job) on as few launches as there are world sizes."""
        for ranks in (1, 2):
            chosen = [
                {**TOPOLOGIES[topology][0], "save": str(self.folder / run), **job}
                for run, topology, job in jobs
                if TOPOLOGIES[topology][1] == ranks
            ]
            plan = self.folder / f"jobs-{ranks}.json"
            plan.write_text(json.dumps(chosen))
            run_ranks(ranks, WORKER, [plan, "--no-compiling"])


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """Trains on every topology, and loads the result of one into another, as PAIRS says."""
    lab = Laboratory(tmp_path_factory.mktemp("matrix"))
    probe = lambda run: {"probe": str(lab.folder / f"{run}.npz")}  # noqa: E731
    lab.launch(
        [
            *((name, name, {"steps": [0, STEPS], **probe(name)}) for name in TOPOLOGIES),
            *((f"{name}-straight", name, {"steps": [0, MORE_STEPS]}) for name in FP32),
        ]
    )
    path = {name: str(lab.state(name).path) for name in TOPOLOGIES}
    lab.launch(
        [
            *((f"{s}--{t}", t, {"load": path[s], "steps": [0, 0], **probe(f"{s}--{t}")}) for s, t in PAIRS),
            *((f"{name}-begun", name, {"begin": True, "steps": [0, 0]}) for name in LOW),
            *((f"{name}-continued", name, {"load": path[name], "steps": [STEPS, MORE_STEPS]}) for name in FP32),
        ]
    )
    return lab


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_state_is_the_same_after_loading_it_elsewhere(laboratory: Laboratory, source: str, target: str) -> None:
    before, after = laboratory.state(source), laboratory.state(f"{source}--{target}")

    assert after.names == before.names
    assert after.digest == before.digest  # of the bytes of weights, both moments and buffers
    assert after.optimizer_step == before.optimizer_step == steps_of(source)


@pytest.mark.parametrize(("source", "target"), [p for p in PAIRS if p[0] == "zero3-x2" and p[1] != NOT_SEEN_RIGHT])
def test_after_loading_deepspeed_sees_the_state(laboratory: Laboratory, source: str, target: str) -> None:
    """Through its public calls; and the model computes with the masters, rounded to its precision."""
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision_of(target)]
    state, seen = laboratory.state(source), laboratory.probe(f"{source}--{target}")

    for key, value in seen.items():
        kind, name = key.split()
        expected = torch.from_numpy(state.read("weights" if kind == "model" else kind, name))
        expected = expected.to(precision).float() if kind == "model" else expected
        np.testing.assert_array_equal(value.ravel(), expected.numpy(), err_msg=key)


@pytest.mark.parametrize("source", [name for name in TOPOLOGIES if name != NOT_SEEN_RIGHT])
def test_consolidated_tensors_are_those_that_the_engine_held(laboratory: Laboratory, source: str) -> None:
    state, seen = laboratory.state(source), laboratory.probe(source)

    if precision_of(source) == "fp32":
        seen.update({f"weights {name}": seen[f"model {name}"] for name in state.names})
    compared = [key for key in seen if not key.startswith("model ")]
    for key in compared:
        np.testing.assert_array_equal(seen[key].ravel(), state.read(*key.split()), err_msg=key)
    assert compared or source.startswith("zero0")
    assert state.optimizer_step == steps_of(source) and state.moments
    np.testing.assert_array_equal(state.read("buffers", "seen"), [STEPS * 1.5] * 3)
    assert state.read("buffers", "count") == STEPS
    assert "tokens.weight" in state.names and "decoder.weight" not in state.names


@pytest.mark.parametrize("source", [name for name, (engine, _) in TOPOLOGIES.items() if engine["zero"]])
def test_consolidated_weights_match_zero_to_fp32(laboratory: Laboratory, source: str) -> None:
    if "fp32grads" in source:
        pytest.skip("DeepSpeed's own zero_to_fp32 refuses what its BF16_Optimizer saves")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    expected = get_fp32_state_dict_from_zero_checkpoint(str(laboratory.folder / source))
    state = laboratory.state(source)

    for name in state.names:
        assert tuple(expected[name].shape) == state.shape(name)
        np.testing.assert_array_equal(state.read("weights", name), expected[name].detach().numpy().ravel())
    assert set(expected) - set(state.names) == {"decoder.weight", *state.buffers}


@pytest.mark.parametrize("topology", FP32)
def test_training_continues_as_if_it_had_never_stopped(laboratory: Laboratory, topology: str) -> None:
    straight, continued = laboratory.state(f"{topology}-straight"), laboratory.state(f"{topology}-continued")

    assert continued.optimizer_step == MORE_STEPS
    assert continued.digest == straight.digest != laboratory.state(topology).digest


@pytest.mark.parametrize("topology", LOW)
def test_an_engine_begins_with_no_step_made(laboratory: Laboratory, topology: str) -> None:
    begun = laboratory.state(f"{topology}-begun")
    reference = laboratory.state(f"zero2-{precision_of(topology)}-x2-begun")

    assert begun.optimizer_step == 0
    assert not any(begun.read(kind, name).any() for kind in MOMENTS for name in begun.names)
    for name in begun.names:  # the same initial weights, rounded to the precision once, whatever the optimizer
        np.testing.assert_array_equal(begun.read("weights", name), reference.read("weights", name))


def test_topologies_that_shard_differently_really_differ(laboratory: Laboratory) -> None:
    """Otherwise the matrix would prove little."""
    shards = {name: sorted(p.name for p in (laboratory.folder / name / "step").iterdir()) for name in FP32}

    assert len({tuple(files) for files in shards.values()}) == 5  # ZeRO 0; 1 and 2, on 1 or 2 ranks; 3, on 1 or 2
    assert all(laboratory.state(name).read(kind, "tokens.weight").any() for name in FP32 for kind in MOMENTS)
