"""Loading into an engine: what is refused, and what of the engine's state is kept. (Real engines: test_matrix.)"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stacking.errors import UserError
from stacking.state.format import State, new_state

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")
from stacking.state.load import load  # noqa: E402
from stacking.state.loss_scale import loss_scale, overflow_warning, set_loss_scale  # noqa: E402


def engine_of(model: Any, optimizer: type | None = None) -> Any:
    """What `load` sees of an engine without ZeRO, in fp32."""
    inner = (optimizer or torch.optim.AdamW)(model.parameters(), lr=0.1)
    return SimpleNamespace(module=model, optimizer=inner, basic_optimizer=inner)


def state_of(path: Path, shapes: dict[str, tuple[int, ...]], moments: bool = True, step: int = 4) -> State:
    kinds = ("weights", "exp_avg", "exp_avg_sq") if moments else ("weights",)
    with new_state(path, shapes, moments=moments, optimizer_step=step) as append:
        for value, kind in enumerate(kinds, 1):
            for name, shape in shapes.items():
                append(kind, name, np.full(int(np.prod(shape)), value, np.float32))
    return State(path)


def test_weights_moments_and_step_are_loaded(tmp_path: Path) -> None:
    engine = engine_of(torch.nn.Linear(3, 2))

    load(engine, state_of(tmp_path / "s", {"weight": (2, 3), "bias": (2,)}))

    for parameter in engine.module.parameters():
        state = engine.optimizer.state[parameter]
        assert (parameter == 1).all() and (state["exp_avg"] == 2).all() and (state["exp_avg_sq"] == 3).all()
        assert state["step"] == 4 and state["step"].dtype == torch.float32
        assert state["exp_avg"].shape == parameter.shape and not state["exp_avg"].requires_grad


def test_without_moments_they_start_at_zero_even_in_a_used_optimizer(tmp_path: Path) -> None:
    engine = engine_of(torch.nn.Linear(3, 2))
    engine.module(torch.ones(1, 3)).sum().backward()
    engine.optimizer.step()

    load(engine, state_of(tmp_path / "s", {"weight": (2, 3), "bias": (2,)}, moments=False, step=0))

    for state in engine.optimizer.state.values():
        assert not state["exp_avg"].any() and not state["exp_avg_sq"].any() and state["step"] == 0


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({"weight": (2, 3)}, "it has no parameter bias"),
        ({"weight": (3, 2), "bias": (2,)}, r"weight has shape \(3, 2\), but the model has \(2, 3\)"),
        ({"weight": (2, 3), "bias": (2,), "gate": (1,)}, "it has a parameter gate"),
    ],
)
def test_a_state_of_another_model_is_refused_and_changes_nothing(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], problem: str
) -> None:
    engine = engine_of(torch.nn.Linear(3, 2))
    before = {name: value.clone() for name, value in engine.module.state_dict().items()}

    with pytest.raises(UserError, match=f"s: is of another model: {problem}"):
        load(engine, state_of(tmp_path / "s", shapes))

    assert all(torch.equal(value, before[name]) for name, value in engine.module.state_dict().items())


def test_a_state_without_the_models_buffers_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    model.register_buffer("seen", torch.zeros(1))

    with pytest.raises(UserError, match="only one of the two has a buffer seen"):
        load(engine_of(model), state_of(tmp_path / "s", {"weight": (2, 3), "bias": (2,)}))


def test_an_optimizer_that_is_not_adam_is_refused(tmp_path: Path) -> None:
    state = state_of(tmp_path / "s", {"weight": (2, 3), "bias": (2,)})

    with pytest.raises(UserError, match=r"ds_config: optimizer.type: is SGD; choose one of Adam, AdamW"):
        load(engine_of(torch.nn.Linear(3, 2), torch.optim.SGD), state)


def test_the_loss_scale_continues_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 1)  # rank 0 logs

    def engine(fp16: bool = True) -> Any:
        scaler = DynamicLossScaler(
            init_scale=2**16, scale_window=4, min_scale=1, delayed_shift=2, consecutive_hysteresis=False,
            raise_error_at_min_scale=False, dtype=torch.half,
        )  # fmt: skip
        return SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler), fp16_enabled=lambda: fp16)

    straight, resumed = engine(), engine()
    for overflow in (True, True, False, False):
        straight.optimizer.loss_scaler.update_scale(overflow)
    set_loss_scale(resumed, loss_scale(straight))
    for overflow in (False, False, True, False, False, False, False):
        straight.optimizer.loss_scaler.update_scale(overflow)
        resumed.optimizer.loss_scaler.update_scale(overflow)
        assert loss_scale(resumed) == loss_scale(straight)
    assert loss_scale(engine(fp16=False)) == {}


@pytest.mark.parametrize(
    ("scale", "skipped", "streak", "words"),
    [
        (65536, 0, 0, None),
        (256, 10, 16, None),
        (1, 0, 0, None),
        (1, 3, 0, "at its minimum of 1"),
        (256, 10, 20, "no progress, the last 20 updates were skipped"),
    ],
)
def test_overflows_are_reported_once_they_are_not_part_of_the_scale_search(
    scale: float, skipped: int, streak: int, words: str | None
) -> None:
    warning = overflow_warning(scale, 1.0, skipped, streak)
    assert warning is None if words is None else words in (warning or "")
