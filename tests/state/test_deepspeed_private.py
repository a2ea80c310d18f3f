"""What `deepspeed_private` relies on exists in the installed DeepSpeed, and does what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stacking.state import deepspeed_private as private
from stacking.state.deepspeed_optimizers import ADAPTERS
from stacking.state.loss_scale import as_backward_takes_it
from tests.train.ranks import run_ranks

Found = dict[str, dict[str, Any]]
NATIVE = "FP16_Optimizer"
pytestmark = pytest.mark.distributed(ranks=1)


@pytest.fixture(scope="module")
def found() -> Found:
    result: Found = json.loads(run_ranks(1, "tests.state.private_worker")[0].splitlines()[-1])
    return result


def test_every_wrapping_optimizer_is_known_and_tested(found: Found) -> None:
    assert {facts["class"] for facts in found.values() if facts["wraps"]} == set(ADAPTERS) - {"plain", NATIVE}
    assert not found["plain"]["wraps"] and not any(facts["nvme"] for facts in found.values())


def test_no_engine_loads_torchs_compiler_for_muon(found: Found) -> None:
    assert not any(facts["compiler"] for facts in found.values())


def test_deepspeeds_muon_asks_its_own_module_to_compile() -> None:
    import deepspeed

    muon = Path(deepspeed.__file__).parent / "runtime" / "zero" / "muon" / "original_muon.py"
    assert "@compiler.compile()" in muon.read_text() and "@torch.compile" not in muon.read_text()


@pytest.mark.parametrize("kind", ["unfused", "zero", "bf16", "stage3"])
def test_the_groups_hold_every_parameter(found: Found, kind: str) -> None:
    assert found[kind]["held"] == found[kind]["parameters"] == found["plain"]["parameters"]


def test_masters_are_refreshed_from_the_weights(found: Found) -> None:
    assert found["unfused"]["refreshed"]


def test_the_optimizer_around_a_native_adam_keeps_flat_masters() -> None:
    """`test_native_adam` has such an engine, for which a compiler is needed."""
    from deepspeed.runtime.fp16 import fused_optimizer

    source = Path(fused_optimizer.__file__).read_text()
    assert f"class {NATIVE}" in source
    assert all(
        text in source for text in ("self.fp16_groups = ", "self.fp32_groups_flat = ", "def refresh_fp32_params(")
    )


@pytest.mark.parametrize("kind", ["zero", "bf16", "stage3"])
def test_weights_are_made_from_the_masters(found: Found, kind: str) -> None:
    assert found[kind]["gathered"]


@pytest.mark.parametrize("kind", ["zero", "bf16"])
def test_public_calls_see_the_current_adam_state(found: Found, kind: str) -> None:
    assert found[kind]["linked"] and found[kind]["fits"]


def test_zero_holds_all_ranks_parts_of_the_weights_and_bf16_none(found: Found) -> None:
    assert found["zero"]["low"] and set(found["zero"]["low"]) == {1} and found["bf16"]["low"] is None


def test_stage_3_shards_what_every_rank_held_whole(found: Found) -> None:
    assert found["stage3"]["released"] and sorted(set(found["stage3"]["group"])) == [0, 1]


@pytest.mark.parametrize("kind", ["unfused", "stage3"])
def test_fp16_has_a_loss_scale_and_its_smallest_value(found: Found, kind: str) -> None:
    assert found[kind]["scale"][0] and found[kind]["scale"][1] > 0


def test_without_zero_the_scale_that_deepspeed_forgets_is_in_the_gradients(found: Found) -> None:
    assert found["unfused"]["unscaled"]
    assert found["unfused"]["gradient"] == pytest.approx(1)


def test_an_engine_that_lets_the_optimizer_scale_gets_the_loss_as_it_is() -> None:
    class Optimizer:
        loss_scale_config = SimpleNamespace(use_grad_scaling=True, cur_scale=4)

    class Engine:
        optimizer = Optimizer()
        fp16_enabled = staticmethod(lambda: True)

        def backward(self, loss: Any) -> None:
            self.optimizer.backward(loss)

    assert as_backward_takes_it(Engine(), torch.tensor(3.0)) == 3


def test_a_dynamic_loss_scale_has_all_saved_values_and_raises_at_its_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    scaler = DynamicLossScaler(
        init_scale=4, scale_window=4, min_scale=2, delayed_shift=1, consecutive_hysteresis=False,
        raise_error_at_min_scale=True, dtype=torch.half,
    )  # fmt: skip
    assert all(hasattr(scaler, field) for field in private.LOSS_SCALE_FIELDS)
    assert private.smallest_loss_scale(scaler) == 2
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 1)  # rank 0 logs
    scaler.update_scale(overflow=True)
    with pytest.raises(Exception) as caught:
        scaler.update_scale(overflow=True)
    assert private.is_at_smallest_scale(caught.value) and not private.is_at_smallest_scale(ValueError("another"))


def test_the_bias_correction_of_the_native_adam_is_counted_up() -> None:
    calls = []

    class Native:
        def adam_update(self, *arguments: Any) -> None:
            calls.append(arguments[:4])

    class Optimizer:
        param_groups = ({"betas": (0.9, 0.98), "eps": 1e-8, "bias_correction": True},)
        ds_opt_adam, opt_id = Native(), 3

    private.count_bias_correction(Optimizer(), [2, 2])
    assert calls == [(3, 1, 0.0, 0.9), (3, 2, 0.0, 0.9)]
    calls.clear()
    private.count_bias_correction(Optimizer(), [5, 2])
    assert [step for _, step, *_ in calls] == [4, 1, 5, 2]
    import deepspeed.ops.adam.cpu_adam

    source = Path(deepspeed.ops.adam.cpu_adam.__file__).read_text()
    assert {"self.ds_opt_adam.adam_update(", "self.opt_id"} <= set(re.findall(r"self\.[a-z_.]+(?:\()?", source))


def test_deepspeed_has_a_list_of_compatible_operations() -> None:
    import deepspeed.ops

    assert "__compatible_ops__" in Path(deepspeed.ops.__file__).read_text()


def test_no_other_file_uses_a_private_attribute() -> None:
    root = Path(private.__file__).parents[1]
    own = set(re.findall(r"optimizer\.(\w+)|\"(\w+)\", \[?None|\.(_\w+)", Path(private.__file__).read_text()))
    names = {name for match in own for name in match if name.startswith("_") or "groups" in name or "partition" in name}
    assert len(names) > 10
    for path in root.rglob("*.py"):
        if path.name != "deepspeed_private.py" and "bench" not in path.parts:
            used = {name for name in names - {"param_groups"} if f".{name}" in path.read_text()}
            assert not used, (path, used)
