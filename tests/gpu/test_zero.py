"""Every ZeRO level trains on the card as the CPU does, in every precision; an update that overflows is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.card import lacks
from tests.gpu.recipes import STEPS, losses, one_stage, records

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.distributed(ranks=1)]

LEVELS = range(4)
TOLERANCE = {"fp32": 1e-3, "fp16": 0.01, "bf16": 0.02}
"""Relative; on the card, fp32 may be computed in TF32."""
FIRST_POWER = 30
"""Of two, of a loss scale with which every update overflows."""


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the CPU in fp32, without ZeRO."""
    folder = tmp_path_factory.mktemp("cpu")
    launch = {"ranks": 1, "accelerator": "cpu"}
    return losses(records(folder, one_stage(folder / "r", data, "fp32", launch=launch)))


@pytest.mark.parametrize("zero", LEVELS)
def test_losses_are_those_of_the_cpu(
    zero: int, precision: str, expected: list[float], data: Path, tmp_path: Path
) -> None:
    found = losses(records(tmp_path, one_stage(tmp_path / "r", data, precision, zero)))
    assert found == pytest.approx(expected, rel=TOLERANCE[precision])


@pytest.mark.parametrize("zero", LEVELS)
def test_an_update_that_overflows_is_skipped_and_the_loss_scale_halved(zero: int, data: Path, tmp_path: Path) -> None:
    if lacks("fp16"):
        pytest.skip("the card does not compute in fp16")
    scale = {"enabled": True, "loss_scale": 0, "initial_scale_power": FIRST_POWER, "hysteresis": 1}
    config = {"zero_optimization": {"stage": zero}, "fp16": scale}
    found = records(tmp_path, one_stage(tmp_path / "r", data, "fp16", zero, ds_config=config))
    updates = [record for record in found if record["kind"] == "train"]
    assert [record["skipped_updates"] for record in updates] == STEPS * [1]
    assert [record["loss_scale"] for record in updates] == [2 ** (FIRST_POWER - step) for step in range(1, STEPS + 1)]
    assert len(set(losses(found, "evaluation"))) == 1  # the weights are what they were
