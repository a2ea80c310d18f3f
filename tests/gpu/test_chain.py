"""Two stages with a growth between them, from text to report, on the card."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from stacking.run.metrics import read_metrics
from tests.chain import stacking, write_recipe
from tests.gpu.card import DEVICE
from tests.gpu.recipes import ENVIRONMENT, MODEL

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.distributed(ranks=1)]

STEPS = 20


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in the card's own precision."""
    folder = tmp_path_factory.mktemp("chain")
    rate = {"peak": 1e-3, "warmup_steps": 2}
    recipe = write_recipe(
        folder,
        data,
        precision="auto",
        model=MODEL,
        ds_config=None,
        stages=[
            {"layers": 2, "steps": STEPS, "batch_sequences": 16, "learning_rate": rate},
            {"layers": 4, "steps": STEPS},
        ],
        launch={"ranks": 1, "accelerator": DEVICE.type},
        checkpoint={"every_steps": 10, "keep": 1},
        evaluation={"every_steps": 5, "samples": 64},
    )
    stacking("run", recipe, "--run-dir", folder / "run", environment=ENVIRONMENT)
    return folder / "run"


def losses(run: Path, stage: str, kind: str) -> list[float]:
    return [record["loss"] for record in read_metrics(run / stage / "metrics.jsonl") if record["kind"] == kind]


def test_it_learns_and_goes_on_after_the_growth(run: Path) -> None:
    shallow, deep = (losses(run, stage, "train") for stage in ("0-L2", "1-L4"))
    assert all(map(math.isfinite, [*shallow, *deep])) and len(shallow) == len(deep) == STEPS
    assert losses(run, "1-L4", "evaluation")[-1] < losses(run, "0-L2", "evaluation")[0] - 0.05


def test_it_leaves_a_model_and_a_report(run: Path) -> None:
    assert (run / "report.html").is_file()
    assert json.loads((run / "export" / "config.json").read_text())["num_hidden_layers"] == 4
