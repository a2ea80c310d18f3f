"""Whole runs through the command line, with stages that differ in everything that a cluster can change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stacking.run.metrics import read_metrics
from stacking.state.format import WEIGHTS, State
from tests.chain import prepare_text, stacking, write_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

MIXED: dict[str, Any] = {
    "stages": [
        {
            "layers": 1,
            "steps": 4,
            "batch_sequences": 8,
            "learning_rate": {"peak": 1e-3},
            "ds_config": {"zero_optimization": {"stage": 3}, "bf16": {"enabled": False}},
        },
        {
            "layers": 2,
            "steps": 4,
            "ranks": 1,
            "batch_sequences": 12,
            "micro_batch": 4,
            "ds_config": {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}},
        },
        {
            "layers": 6,
            "steps": 4,
            "growth": {"operator": "interleave"},
            "ds_config": {
                "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
                "bf16": {"enabled": False},
            },
        },
    ],
    "precision": "auto",
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ZeRO-3 on two ranks, then ZeRO-1 in bf16 on one, then ZeRO-2 with its optimizer on the CPU on two."""
    folder = tmp_path_factory.mktemp("mixed")
    recipe = write_recipe(folder, prepare_text(folder), **MIXED)
    stacking("run", recipe, "--run-dir", folder / "run")
    return folder / "run"


def train_records(run: Path, stage: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run / stage / "metrics.jsonl") if record["kind"] == "train"]


def test_samples_and_tokens_continue_across_stages(mixed: Path) -> None:
    samples = [record["samples"] for stage in ("0-L1", "1-L2", "2-L6") for record in train_records(mixed, stage)]
    assert samples == [8, 16, 24, 32, 44, 56, 68, 80, 92, 104, 116, 128]
    last = train_records(mixed, "2-L6")[-1]
    assert (last["global_step"], last["padded_tokens"]) == (12, 128 * 32)
    assert 128 * 8 < last["tokens"] < 128 * 32


@pytest.mark.parametrize("kind", ["weights", "exp_avg", "exp_avg_sq"])
def test_the_grown_state_holds_exact_copies_of_the_shallow_layers(mixed: Path, kind: str) -> None:
    shallow, grown = State(mixed / "1-L2" / "state"), State(mixed / "2-L6" / "start")
    assert len(grown.names) > len(shallow.names)
    for name in grown.names:
        tensor = grown.read(kind, name)
        head, _, rest = name.partition(".")
        if head == "layers":
            layer, _, part = rest.partition(".")
            name = f"layers.{int(layer) // 3}.{part}"
        assert tensor.tobytes() == shallow.read(kind, name).tobytes()


def test_the_deep_model_starts_near_where_the_shallow_one_ended(mixed: Path) -> None:
    before, after = train_records(mixed, "1-L2")[-1], train_records(mixed, "2-L6")[0]
    assert after["loss"] < before["loss"] + 0.5


def test_the_status_and_the_report_show_that_it_is_finished(mixed: Path) -> None:
    assert json.loads(stacking("status", mixed, "--json").stdout)["state"] == "finished"
    assert "3 layers" not in (mixed / "report.html").read_text()
    assert "2 → 6 layers" in (mixed / "report.html").read_text()


def test_a_run_may_start_from_a_hugging_face_model_and_deepen_it(mixed: Path, tmp_path: Path) -> None:
    one_stage = {"layers": 12, "steps": 2, "batch_sequences": 8, "learning_rate": {"peak": 1e-3}}
    recipe = write_recipe(
        tmp_path, mixed.parent / "data", start=str(mixed / "export"), stages=[one_stage], model={}, growth={}
    )
    run = tmp_path / "run"
    stacking("run", recipe, "--run-dir", run)
    imported, grown = (State(run / part) for part in ("start", "0-L12/start"))
    for layer in range(12):
        name = "attention.qkv.weight"
        copied = imported.read(WEIGHTS, f"layers.{layer % 6}.{name}")
        assert grown.read(WEIGHTS, f"layers.{layer}.{name}").tobytes() == copied.tobytes()
    exported = json.loads((run / "export" / "config.json").read_text())
    assert exported["num_hidden_layers"] == 12
