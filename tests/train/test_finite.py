"""Training that produces non-finite numbers is detected: in its losses, and in all that a checkpoint would keep."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stacking.train.finite import PATIENCE, FiniteWatch, applied_norm, diverged, first_not_finite


def engine_after_a_step(dtype: torch.dtype = torch.float32) -> Any:
    """What the check sees of an engine without ZeRO: the optimizer works on the model's own parameters."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3, dtype=dtype)).sum().backward()
    optimizer.step()
    return SimpleNamespace(module=model, optimizer=optimizer, basic_optimizer=optimizer)


def test_a_finite_state_is_fine() -> None:
    assert first_not_finite(engine_after_a_step()) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["weights", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("position", [0, 3])
def test_one_bad_value_is_found_wherever_it_is(value: float, kind: str, position: int) -> None:
    engine = engine_after_a_step()
    parameter = list(engine.module.parameters())[position]
    tensor = parameter.data if kind == "weights" else engine.optimizer.state[parameter][kind]
    tensor.view(-1)[-1] = value
    assert first_not_finite(engine) == position


def test_an_optimizer_that_has_not_stepped_has_no_moments_to_check() -> None:
    engine = engine_after_a_step()
    engine.optimizer.state.clear()
    assert first_not_finite(engine) is None and not engine.optimizer.state


def test_losses_count_as_lost_only_after_several_bad_ones_in_a_row() -> None:
    watch, bad, good = FiniteWatch(), torch.tensor([math.nan, 0.0]), torch.ones(2)
    for losses in [bad] * (PATIENCE - 1) + [good] + [bad] * (PATIENCE - 1):
        watch.note(losses)
        assert not watch.lost
    watch.note(bad)
    assert watch.lost


def test_the_error_names_the_good_checkpoint_and_how_to_go_back(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "0-L1" / "checkpoints"
    stage: Any = SimpleNamespace(name="0-L1")
    assert "no checkpoint yet" in str(diverged("x", stage, folder))
    assert "--from-step" not in str(diverged("x", stage, folder))
    for step in (10, 20):
        (folder / f"global_step{step}").mkdir(parents=True)
    error = diverged("x", stage, folder)
    assert f"{folder / 'global_step20'} is good" in str(error) and "--from-step 20`" in str(error)
    assert error.exit_code == 3


class _Engine:
    """What `applied_norm` reads of a DeepSpeed engine."""

    def __init__(self, norm: Any, applied: bool = True) -> None:
        self._norm, self._applied = norm, applied

    def get_global_grad_norm(self) -> Any:
        return self._norm

    def was_step_applied(self) -> bool:
        return self._applied


@pytest.mark.parametrize("norm", [math.nan, math.inf, -1.0, torch.tensor(-1.0)])
def test_a_norm_that_is_not_finite_stops_training_immediately_unless_the_update_was_skipped(norm: Any) -> None:
    watch = FiniteWatch(patience=1)
    applied = applied_norm(_Engine(norm))
    assert applied is not None
    watch.note(torch.tensor(3.0))
    assert not watch.lost
    watch.note(applied)
    watch.note(torch.tensor(3.0))
    assert watch.lost
    assert applied_norm(_Engine(norm, applied=False)) is None


def test_a_norm_that_is_not_computed_is_not_checked() -> None:
    assert applied_norm(_Engine(None)) is None
    assert applied_norm(_Engine(2.5)) == 2.5
