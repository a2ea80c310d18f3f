"""Two cards that share a batch through NCCL lose what one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.card import DEVICE
from tests.gpu.recipes import losses, one_stage, records

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    if DEVICE.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("there is only one card")
    folder = tmp_path_factory.mktemp("alone")
    return losses(records(folder, one_stage(folder / "r", data, "fp32")))


@pytest.mark.parametrize("zero", range(4))
def test_the_losses_do_not_depend_on_the_number_of_cards(
    zero: int, alone: list[float], data: Path, tmp_path: Path
) -> None:
    found = losses(records(tmp_path, one_stage(tmp_path / "r", data, "fp32", zero, ranks=2)))
    assert found == pytest.approx(alone, rel=1e-3)
