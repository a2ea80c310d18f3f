"""The modules train under every ZeRO stage as they do without DeepSpeed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CASE = """
import json, sys
import deepspeed, torch
from stacking.model.bert import build
from stacking.state.deepspeed_private import compile_no_operations, leave_muon_uncompiled
from tests.model.conftest import CONFIGS, example

zero_stage, bf16 = int(sys.argv[1]), sys.argv[2] == "bf16"
adam = {"lr": 1e-3, "weight_decay": 0.1}
ds_config = {
    "train_micro_batch_size_per_gpu": 3,
    "optimizer": {"type": "AdamW", "params": {**adam, "torch_adam": True}},
    "zero_optimization": {"stage": zero_stage, "stage3_param_persistence_threshold": 0},
    "bf16": {"enabled": bf16},
    "gradient_clipping": 0.0,  # DeepSpeed clips at 1.0 unless told otherwise
}
compile_no_operations()
leave_muon_uncompiled()
deepspeed.init_distributed("gloo")
losses = []
for config in CONFIGS.values():
    config = config.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    plain, model = (torch.manual_seed(0) and build(config) for _ in range(2))
    optimizer = torch.optim.AdamW(plain.parameters(), **adam)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=ds_config)
    for inputs in (example(), example(), example()._replace(nsp_labels=None)):
        loss, expected = sum(engine(*inputs.arguments)), sum(plain(*inputs.arguments))
        losses.append([loss.item(), expected.item()])
        engine.backward(loss)
        engine.step()
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
print("losses", json.dumps(losses))
"""


@pytest.mark.distributed(ranks=1)
@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "precision", "tolerance"), [(3, "fp32", 1e-5), (3, "bf16", 1e-2)])
def test_losses_under_zero_match_plain_training(zero_stage: int, precision: str, tolerance: float) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ran = subprocess.run(
        [sys.executable, "-c", CASE, str(zero_stage), precision],
        env={**os.environ, **rank, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("losses ")]
    for loss, expected in json.loads(line.removeprefix("losses ")):
        assert loss == pytest.approx(expected, rel=tolerance)
