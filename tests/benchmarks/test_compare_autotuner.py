"""The comparison with DeepSpeed's autotuner: what each of its experiments runs."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stacking.planning.plan import write_plan
from tests.chain import ENVIRONMENT
from tests.small_recipe import SMALL, plan_of

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "compare_autotuner"


@pytest.mark.slow
@pytest.mark.distributed(ranks=1)
def test_an_experiment_trains_the_stage_with_the_given_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = "model={hidden: 32, heads: 2, vocabulary: 1000, max_positions: 64}"
    plan = plan_of(SMALL, overrides=[model, "precision=fp32", "launch={ranks: 1}"])
    write_plan(tmp_path / "plan.json", plan)
    monitor = {"enabled": True, "output_path": str(tmp_path / "csv"), "job_name": "job"}
    config = {**plan.stages[0].ds_config, "csv_monitor": monitor}
    argument = base64.urlsafe_b64encode(json.dumps(config).encode()).decode()
    argv = [sys.executable, TOOL, tmp_path, "0", "--deepspeed_config", argument, "--local_rank=0"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment = {**ENVIRONMENT, **rank, "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rates = tmp_path / "csv" / "job" / "Train_Samples_lr.csv"
    samples = [int(line.split(",")[0]) for line in rates.read_text().splitlines()[1:]]
    assert samples == [8 * update for update in range(1, 51)]


def test_without_a_recipe_the_usage_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, TOOL], capture_output=True, text=True, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1 and done.stderr.startswith("usage: tools/compare_autotuner RECIPE OUT")
