"""The program's own query of nvidia-smi reads each card of the null GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import tools.null_gpu
from stacking.hardware.nvidia_smi import installed_gpus
from tools.null_gpu.card import CARDS

FOLDER = Path(tools.null_gpu.__file__).parent


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_what_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card = CARDS[name]
    for key, value in card.environment(devices=2).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PATH", f"{FOLDER}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    gpus = installed_gpus()

    assert [(gpu.name, gpu.memory, gpu.capability) for gpu in gpus] == 2 * [
        (card.name, card.memory, card.capability[0] + card.capability[1] / 10)
    ]
