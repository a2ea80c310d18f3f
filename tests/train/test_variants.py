"""Variants of their own class: a run on two ranks, with a growth and another ZeRO stage between any two stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stacking.evaluate.mlm import evaluate_state
from stacking.growth.operators import layer_sources, listed_sources
from stacking.huggingface.importing import import_hugging_face
from stacking.run.create import create_run
from stacking.run.folder import RunFolder
from stacking.run.metrics import read_metrics
from stacking.state.format import MOMENTS, WEIGHTS, State
from stacking.state.layers import origins
from tests.chain import write_recipe
from tests.train.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

VARIANTS = ["macaron", "modern"]
LISTED = [1, 0, "2 silent", 2]
STAGES: list[dict[str, Any]] = [
    {"layers": 1, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}},
    {"layers": 2, "growth": {"operator": "interleave"}},
    {"layers": 3, "growth": {"operator": "middle"}},
    {"layers": 4, "growth": {"layers_from": LISTED}},
]
GROWN = [layer_sources("interleave", 1, 2), layer_sources("middle", 2, 3), listed_sources(LISTED)]
NAMES = ["0-L1", "1-L2", "2-L3", "3-L4"]


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The finished run of each variant, whose stages train with ZeRO 0, 1, 2 and 3 on the same two ranks."""
    found = {}
    for variant in VARIANTS:
        folder = tmp_path_factory.mktemp(variant)
        model = {"variant": variant, "hidden": 32, "heads": 2, "intermediate": 64, "max_positions": 64}
        stages = [
            {**stage, "steps": 3, "ds_config": {"zero_optimization": {"stage": zero}}}
            for zero, stage in enumerate(STAGES)
        ]
        recipe = write_recipe(folder, data, model=model, stages=stages)
        found[variant] = folder / "run"
        create_run(str(recipe), RunFolder(found[variant]))
    run_ranks(2, "tests.train.variants_worker", [list(found.values())] * 2, timeout=600)
    return found


@pytest.fixture(params=VARIANTS)
def run(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Path:
    """The folder of one of the runs."""
    return runs[request.param]


@pytest.mark.parametrize("name", NAMES)
def test_the_consolidated_state_scores_the_same_as_the_ranks(run: Path, data: Path, name: str) -> None:
    *_, scored = (record for record in read_metrics(run / name / "metrics.jsonl") if record["kind"] == "evaluation")
    scores = evaluate_state(run / name / "state", data, samples=16, seed=7, sequence_length=32)
    found = [scored["mlm_loss"], scored["nsp_loss"]]
    assert found == pytest.approx([scores.mlm_loss, scores.nsp_loss], rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_stage_begins_with_copies_of_the_layers_that_the_operator_names(run: Path, stage: int) -> None:
    shallow, grown = State(run / NAMES[stage - 1] / "state"), State(run / NAMES[stage] / "start")
    for name, origin in origins(shallow.names, GROWN[stage - 1]).items():
        for kind in (WEIGHTS, *MOMENTS):
            expected = shallow.read(kind, origin.name)
            assert np.array_equal(grown.read(kind, name), np.zeros_like(expected) if origin.zero else expected)


def test_the_export_is_the_last_state(run: Path, tmp_path: Path) -> None:
    last = State(run / NAMES[-1] / "state")
    import_hugging_face(run / "export", tmp_path / "back")
    back = State(tmp_path / "back")
    assert back.names == last.names
    assert all(np.array_equal(back.read(WEIGHTS, name), last.read(WEIGHTS, name)) for name in last.names)
