"""How stages grow: operators, explicit lists, and how the added layers are trained."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.config.recipe import NewLayers
from stacking.errors import UserError
from stacking.planning.growth import PlannedGrowth
from tests.small_recipe import SMALL, plan_of

pytestmark = pytest.mark.usefixtures("in_tmp_path")
LAST = "{layers: 4, steps: 10}"


@pytest.fixture
def in_tmp_path(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))


def growth_of(last: str, text: str = "") -> PlannedGrowth:
    growth = plan_of(SMALL.replace(LAST, last) + text).stages[1].growth
    assert growth is not None
    return growth


def test_the_sources_of_every_layer_are_planned() -> None:
    growth = growth_of(LAST)
    assert growth.sources == ("0 copy", "1 copy", "0 copy", "1 copy")
    assert growth.added == {2, 3} and growth.apart == set()


def test_a_stage_may_list_its_layers() -> None:
    growth = growth_of("{layers: 5, steps: 10, growth: {layers_from: [0, 1, 1 silent, 0, 1]}}")
    assert growth.operator == "layers_from"
    assert growth.sources == ("0 copy", "1 copy", "1 silent", "0 copy", "1 copy")
    assert growth.added == {2, 3, 4}


def test_gradual_growth_is_a_list_or_middle_in_each_stage() -> None:
    """Two layers at a time; between growths of one size, `middle` is MIDAS."""
    stages = "  - {layers: 6, steps: 10}\n  - {layers: 8, steps: 10, growth: {layers_from: [0, 1, 2, 3, 4, 5, 4, 5]}}\n"
    plan = plan_of(SMALL + stages + "growth: {operator: middle}\n")
    assert [[int(s.split()[0]) for s in stage.growth.sources] for stage in plan.stages[1:] if stage.growth] == [
        [0, 1, 0, 1], [0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 4, 5],
    ]  # fmt: skip


def test_a_stage_overrides_how_new_layers_are_trained() -> None:
    everywhere = "growth: {new_layers: {rewarmup_steps: 4}}\n"
    assert growth_of(LAST, everywhere).new_layers == NewLayers(rewarmup_steps=4)
    own = growth_of("{layers: 4, steps: 10, growth: {new_layers: {alone_steps: 3}}}", everywhere)
    assert own.new_layers == NewLayers(alone_steps=3) and own.apart == {2, 3}


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("layers_from: [0, 1]", r"growth\.layers_from: lists 2 layers, but the stage has 4; list 4"),
        (
            "layers_from: [0, 1, 2, 0]",
            r"layer 2 does not exist: the model has the layers 0 to 1; give numbers from 0",
        ),
        ("layers_from: [0, 1, top, 0]", r"'top' is neither a layer number nor one followed by 'silent'"),
        ("layers_from: [0, 1, 0, 1], operator: stack", r"growth: has both operator and layers_from; give one of them"),
        ("new_layers: {alone_steps: 11}", r"growth\.new_layers\.alone_steps: is 11, but stages\[1\] has 10 steps"),
        ("new_layers: {rewarmup_steps: 11}", r"new_layers\.rewarmup_steps: is 11, but stages\[1\] has 10 steps"),
        ("new_layers: {peak_factor: 0}", r"new_layers\.peak_factor"),
        ("new_layers: {warmup: 3}", r"new_layers\.warmup"),
    ],
)
def test_mistakes_are_named(last: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        growth_of(f"{{layers: 4, steps: 10, growth: {{{last}}}}}")


def test_settings_without_effect_are_refused() -> None:
    same = "{layers: 2, steps: 10, growth: {new_layers: {alone_steps: 3}}}"
    with pytest.raises(UserError, match=r"growth\.new_layers: has no effect: the stage keeps its 2 layers"):
        plan_of(SMALL.replace(LAST, same))
    first = SMALL.replace("{layers: 2, ", "{layers: 2, growth: {layers_from: [0, 1]}, ")
    with pytest.raises(UserError, match=r"stages\[0\]\.growth\.layers_from: has no effect: there is no model to grow"):
        plan_of(first)


TRIAL = "growth: {operator: trial, trial: {steps: 3}}\n"


def test_a_trial_tries_every_operator_with_a_distinct_effect() -> None:
    trial = growth_of(LAST, TRIAL).trial
    assert trial is not None
    assert list(trial.sources) == ["stack", "interleave", "identity", "block-expansion"]  # middle is stack here
    assert trial.sources["interleave"] == ("0 copy", "0 copy", "1 copy", "1 copy")
    own = "{layers: 4, steps: 10, growth: {operator: trial, trial: {steps: 5, operators: [identity, stack]}}}"
    growth = growth_of(own)
    assert growth.trial is not None and list(growth.trial.sources) == ["identity", "stack"]
    assert growth.by("stack").sources == ("0 copy", "1 copy", "0 copy", "1 copy")


def test_a_trial_is_included_in_the_cost() -> None:
    fixed, tried = plan_of(SMALL), plan_of(SMALL + TRIAL)
    last = fixed.stages[1].flops
    assert tried.stages[1].flops == last and tried.stages[1].trial_updates == 4 * 3
    assert tried.cost.flops == pytest.approx(fixed.cost.flops + 12 / 10 * last)
    assert tried.flops_done(0, 10) == fixed.flops_done(0, 10)
    assert tried.flops_done(1, 10) == pytest.approx(tried.cost.flops)


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        ("{operator: trial}", r"growth\.trial: is missing; give trial: \{steps: N\}"),
        ("{trial: {steps: 3}, operator: stack}", r"growth\.trial: is given, but the operator is not trial"),
        ("{operator: trial, trial: {steps: 11}}", r"growth\.trial\.steps: is 11, but stages\[1\] has 10; give fewer"),
        ("{operator: trial, trial: {}}", r"growth\.trial\.steps"),
        ("{operator: trial, trial: {steps: 3, operators: [stack]}}", r"growth\.trial\.operators"),
        ("{operator: trial, trial: {steps: 3, operators: [stack, trial]}}", r"growth\.trial\.operators"),
        (
            "{operator: trial, trial: {steps: 3, operators: [stack, stack]}}",
            r"operators: leaves stack, stack to grow",
        ),
    ],
)
def test_mistakes_in_a_trial_are_named(growth: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        growth_of(f"{{layers: 4, steps: 10, growth: {growth}}}")


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0.1, 3), st.integers(0, 49))
def test_the_added_layers_rate_rises_and_joins_the_schedule_at_the_end(
    alone: int, rise: int, peak: float, step: int
) -> None:
    new = NewLayers(alone_steps=alone, rewarmup_steps=rise, peak_factor=peak)
    growth = PlannedGrowth(operator="stack", optimizer_state="reset", sources=("0 copy", "0 copy"), new_layers=new)

    added, rest = growth.rates(step, 50, 1e-3)

    assert rest == (0 if step < alone else 1e-3)
    assert 0 <= added <= 1e-3 * max(peak, 1) * (1 + 1e-9)
    if rise < 50:
        assert growth.rates(50, 50, 1e-3).added == pytest.approx(1e-3)
        assert growth.rates(rise, 50, 1e-3).added == pytest.approx(peak * 1e-3)
