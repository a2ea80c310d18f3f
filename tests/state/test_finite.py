"""Nothing is made from a state that is not finite, unless the user asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stacking.errors import UserError
from stacking.growth.apply import grow
from stacking.huggingface.export import export
from stacking.model.config import ModelConfig
from stacking.state.consolidate import consolidate
from stacking.state.finite import _all_finite, was_checked
from stacking.state.format import State
from tests.state.checkpoints import shard_file, write_checkpoint
from tests.states import SMALL, random_weights, write_state

CONFIG = ModelConfig(**SMALL)


def state_with(folder: Path, value: float, name: str = "layers.1.attention.output.bias") -> Path:
    weights = random_weights(CONFIG)
    weights[name].view(-1)[-1] = value
    return write_state(folder, CONFIG, weights)


@pytest.mark.parametrize("kind", ["weights", "exp_avg", "exp_avg_sq"])
def test_a_checkpoint_that_is_not_finite_is_refused_with_its_first_bad_tensor(tmp_path: Path, kind: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    file = shard_file(folder, 1)
    shard = torch.load(file, weights_only=False)
    saved = shard["optimizer_state_dict"]
    tensors = {"weights": saved["single_partition_of_fp32_groups"][1], **saved["base_optimizer_state"]["state"][1]}
    tensors[kind][0] = math.nan
    torch.save(shard, file)

    with pytest.raises(UserError, match=rf"checkpoint: holds NaN or infinity, first in \S*bias \({kind}\)"):
        consolidate(folder, tmp_path / "state")
    assert not (tmp_path / "state").exists()

    state = consolidate(folder, tmp_path / "state", allow_non_finite=True)
    assert np.isnan(state.read(kind, "layers.0.up.bias")).sum() == 1 and not was_checked(state.manifest)


MAKERS: dict[str, Callable[[Path, Path, bool], object]] = {
    "grow": lambda state, out, allow: grow(state, out, 4, allow_non_finite=allow),
    "grow --share": lambda state, out, allow: grow(state, out, 4, share=True, allow_non_finite=allow),
    "export": lambda state, out, allow: export(state, out, allow_non_finite=allow),
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("maker", MAKERS)
def test_growing_and_exporting_refuse_a_state_that_is_not_finite(tmp_path: Path, maker: str, value: float) -> None:
    state = state_with(tmp_path / "state", value)
    with pytest.raises(
        UserError, match=r"first in layers\.1\.attention\.output\.bias \(weights\); .*--allow-non-finite"
    ):
        MAKERS[maker](state, tmp_path / "out", False)
    assert not (tmp_path / "out").exists()
    MAKERS[maker](state, tmp_path / "out", True)
    assert (tmp_path / "out").is_dir()


def test_a_checked_state_and_those_grown_from_it_are_marked_as_checked(tmp_path: Path) -> None:
    checked = consolidate(write_checkpoint(tmp_path / "checkpoint"), tmp_path / "state")
    assert was_checked(checked.manifest)
    grown = grow(write_state(tmp_path / "s", CONFIG, random_weights(CONFIG)), tmp_path / "g", 4, share=True)
    assert was_checked(grown.manifest)
    allowed = grow(state_with(tmp_path / "bad", math.nan), tmp_path / "b", 4, allow_non_finite=True)
    assert not was_checked(State(allowed.path).manifest)


@given(st.lists(st.floats(width=32), max_size=40))
def test_a_sum_that_overflows_is_no_reason_to_refuse(values: list[float]) -> None:
    assert _all_finite(np.array(values, np.float32)) == all(map(math.isfinite, values))
