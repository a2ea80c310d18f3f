"""A key that a configuration calls by an old name is called the same in complaints about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.errors import UserError
from tests.small_recipe import SMALL, plan_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_precision_requested_by_amp_is_refused_under_that_name() -> None:
    with pytest.raises(UserError, match=r"^ds\.json: amp: fp16 on cpu: CPUs emulate it; use fp32"):
        plan_of(SMALL, ds_config='{"amp": {"enabled": true}}')
    with pytest.raises(UserError, match=r"ds\.json: amp: asks for fp16, but the recipe's precision is fp32"):
        plan_of(f"{SMALL}precision: fp32\n", ds_config='{"amp": {"enabled": true, "opt_level": "O2"}}')


def test_a_decay_that_erases_the_weights_is_blamed_on_the_key_that_sets_it() -> None:
    asks = '{"optimizer": {"type": "AdamW", "params": {"weight_decay": 5000}}}'
    with pytest.raises(UserError, match=r"ds\.json: optimizer\.params\.weight_decay: is 5000, which at"):
        plan_of(SMALL, ds_config=asks)


def test_the_default_decay_is_never_blamed() -> None:
    plan_of(SMALL.replace("peak: 1e-3", "peak: 1e30"))
