"""Which GPU a rank uses."""

from __future__ import annotations

import os

import pytest

from stacking.errors import UserError
from stacking.launch.rank import own_gpu


@pytest.mark.parametrize(("local_rank", "visible", "device"), [("0", 4, 0), ("3", 4, 3), ("1", 1, 0), ("0", 1, 0)])
def test_a_rank_uses_the_gpu_of_its_number_or_the_only_visible_one(
    monkeypatch: pytest.MonkeyPatch, local_rank: str, visible: int, device: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert own_gpu(visible) == device
    assert os.environ["LOCAL_RANK"] == str(device)  # DeepSpeed takes the device from here


@pytest.mark.parametrize(("local_rank", "visible"), [("2", 2), ("0", 0)])
def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, local_rank: str, visible: int) -> None:
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(UserError, match=f"LOCAL_RANK: is {local_rank}, but this rank sees {visible} GPUs"):
        own_gpu(visible)
