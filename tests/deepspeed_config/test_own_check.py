"""DeepSpeed's own verdict on a configuration, obtained in a separate process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stacking.config.recipe import load_recipe
from stacking.deepspeed_config import own_check
from stacking.deepspeed_config.findings import FinalConfig
from stacking.deepspeed_config.own_check import check_finals
from stacking.errors import UserError
from stacking.run.create import plan_recipe
from tests.small_recipe import SMALL, plan_of


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def final(user: dict[str, Any], **changes: Any) -> FinalConfig:
    stage = plan_of(SMALL, json.dumps(user)).stages[0]
    return FinalConfig("ds.json", stage.name, {**stage.ds_config, **changes}, stage.ranks)


def test_every_complaint_names_key_and_value() -> None:
    """All in one call, which takes seconds."""
    refused = [
        final({"gradient_allreduce_op": "sum", "zero_optimization": {"stage": 3}}),
        final({"comms_logger": {"enabled": True, "prof_ops": "all"}}),
        final({"data_types": {"grad_accum_dtype": "bf16"}, "zero_optimization": {"stage": 0}}),
        final({"zero_optimization": {"stage": 0, "compute_grad_norm": False}}),
        final({}, train_batch_size=7),
        final({}, prescale_gradients=True),
        final({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}),
        final(
            {"zero_optimization": {"stage": 1, "compute_grad_norm": False}, "gradient_clipping": 0.0},
            gradient_clipping=1.0,
        ),
    ]
    with pytest.raises(UserError) as caught:
        check_finals([*refused, final({})])
    lines = str(caught.value).splitlines()
    assert lines[0] == "ds.json: 8 things do not fit"
    assert caught.value.exit_code == 2
    for line, key, words in zip(
        lines[1:],
        (
            "gradient_allreduce_op",
            "comms_logger.prof_ops",
            "data_types.grad_accum_dtype",
            "zero_optimization.compute_grad_norm",
            "train_batch_size",
            "prescale_gradients",
            "zero_optimization.offload_optimizer.ratio",
            "zero_optimization.compute_grad_norm",
        ),
        ('is "sum": ', 'is "all": ', 'is "bf16": ', "is false: ", "is 7: ", "is true: ", "is 0.5: ", "is false: "),
        strict=True,
    ):
        assert line.split()[0] == key
        assert words in line and "refuses it" in line and "http" not in line


def test_an_accepted_configuration_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    good = final({"zero_optimization": {"stage": 1}})
    check_finals([good])
    monkeypatch.setattr(own_check, "_ask", lambda asked: pytest.fail("asked again"))
    check_finals([good])


def test_its_complaints_are_reported_together_with_ours() -> None:
    """All of them, for every stage, with the command that resolves them; `plan --fast` skips this check."""
    user = {
        "comms_logger": {"enabled": True, "prof_ops": "all"}, "zero_optimization": {"stage": 3}, "stepsperprint": 1,
        "gradient_allreduce_op": "sum", "train_micro_batch_size_per_gpu": 3, "gradient_clipping": 0.3,
    }  # fmt: skip
    Path("ds.json").write_text(json.dumps(user))
    Path("recipe.yaml").write_text(SMALL + "optimizer: {clip: 1.0}\nds_config: ds.json\n")
    recipe = load_recipe("recipe.yaml")
    with pytest.raises(UserError) as caught:
        plan_recipe(recipe)
    lines = str(caught.value).splitlines()
    told = [line.split()[0] for line in lines[1:-1]]
    assert "stacking adopt" in lines[-1] and lines[0].endswith("things do not fit")
    assert {"gradient_clipping", "stepsperprint", "comms_logger.prof_ops", "gradient_allreduce_op"} <= set(told)
    with pytest.raises(UserError) as quick:
        plan_recipe(recipe, fast=True)
    assert "gradient_allreduce_op" not in str(quick.value) and "stepsperprint" in str(quick.value)
