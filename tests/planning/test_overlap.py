"""How many initial updates two plans share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.planning.overlap import Overlap, overlap
from stacking.planning.plan import Plan
from tests.small_recipe import plan_of

RECIPE = """\
name: overlapping
model: {hidden: 64, heads: 2, max_positions: 64}
data: {sequence_length: 32}
schedule: {kind: warmup-stable-decay, peak: 1e-3, warmup_steps: 10, decay_share: 0.2}
growth: {operator: stack}
stages:
  - {layers: 2, batch_sequences: 8, steps: 60}
  - {layers: 4, steps: 20}
  - {layers: 8, steps: 20}
"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def changed(*pairs: tuple[str, str]) -> Plan:
    text = RECIPE
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return plan_of(text)


def test_a_plan_shares_all_updates_with_itself() -> None:
    assert overlap(changed(), changed()) == Overlap((60, 20, 20), "")


DIFFERENCES: dict[str, tuple[tuple[str, str], Overlap]] = {
    "another growth": (
        ("layers: 8,", "layers: 8, growth: {operator: interleave},"),
        Overlap((60, 20), "stages[2].growth"),
    ),
    "another depth": (("layers: 4", "layers: 8"), Overlap((60,), "stages[1].name")),
    "another batch": (("batch_sequences: 8", "batch_sequences: 16"), Overlap((), "stages[0].global_batch")),
    "another model": (("hidden: 64", "hidden: 128"), Overlap((), "model")),
    "another rate": (("peak: 1e-3", "peak: 2e-3"), Overlap((), "stages[0].ds_config")),
    "another seed": (("name: overlapping", "seed: 1\nname: overlapping"), Overlap((), "seed")),
    "another evaluation": (("growth:", "evaluation: {every_steps: 7}\ngrowth:"), Overlap((), "evaluation")),
    "another name": (("name: overlapping", "name: other"), Overlap((60, 20, 20), "")),
    "more checkpoints": (("growth:", "checkpoint: {keep: 9}\ngrowth:"), Overlap((60, 20, 20), "")),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_plans_diverge_at_their_first_difference(difference: str) -> None:
    change, expected = DIFFERENCES[difference]
    assert overlap(changed(change), changed()) == expected
    assert overlap(changed(), changed(change)) == expected


def test_a_short_and_a_long_training_share_the_updates_before_the_decay_of_the_short_one() -> None:
    short = changed(("layers: 8, steps: 20", "layers: 8, steps: 10"))  # 90 updates, decay after 72 of them
    assert overlap(short, changed()) == Overlap((60, 13), "the learning rate of stages[1], after 13 updates")


@settings(max_examples=20)
@given(first=st.integers(1, 90), second=st.integers(1, 90))
def test_shared_updates_have_the_same_rates_and_samples(first: int, second: int) -> None:
    one, other = (changed(("steps: 60", f"steps: {steps}")) for steps in (first, second))
    shared = overlap(one, other).updates
    for updates, mine, theirs in zip(shared, one.stages, other.stages, strict=False):
        assert updates <= min(mine.steps, theirs.steps)
        assert mine.first_sample == theirs.first_sample
        assert [mine.rates_at(step) for step in range(updates)] == [theirs.rates_at(step) for step in range(updates)]
        if updates < min(mine.steps, theirs.steps):
            assert mine.rates_at(updates) != theirs.rates_at(updates)


def test_a_stage_that_ends_on_a_plateau_is_shared_only_if_it_ends_at_the_same_update() -> None:
    automatic = changed(
        ("steps: 60", "until: {plateau: 0.1, at_most: 60}"), ("growth:", "evaluation: {every_steps: 5}\ngrowth:")
    )
    settled = automatic.stages[0].model_copy(update={"steps": 40})
    other = automatic.model_copy(update={"stages": (settled, *automatic.stages[1:])})
    assert overlap(automatic, automatic).updates == (60, 20, 20)
    assert overlap(automatic, other) == Overlap((), "stages[0].until, which decides its length as it trains")
