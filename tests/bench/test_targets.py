"""From options to plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.bench.targets import CPU_TOKENS, Wanted, targets
from stacking.errors import UserError
from tests.small_recipe import SMALL


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)


def test_a_named_model_is_planned_separately_at_each_depth() -> None:
    found = targets(Wanted(target="bert-base", layers=(12, 3), dropout=0.0))
    assert [target.plan.stages[target.stage].layers for target in found] == [12, 3]
    model, stage = found[0].plan.model, found[0].plan.stages[0]
    assert (model.hidden, model.heads, model.vocabulary, model.dropout) == (768, 12, 30_522, 0.0)
    assert (stage.ranks, stage.global_batch) == (1, CPU_TOKENS // 128)


def test_a_width_is_enough_to_name_a_model() -> None:
    found = targets(Wanted(hidden=256, sequence_length=512, micro_batch=2, ranks=3, precision="bf16"))
    assert [target.plan.stages[0].layers for target in found] == [3, 12]
    stage = found[0].plan.stages[0]
    assert (found[0].plan.model.heads, stage.micro_batch, stage.global_batch, stage.precision) == (4, 2, 6, "bf16")


def test_a_recipe_is_measured_stage_by_stage_with_options_overriding_its_keys() -> None:
    found = targets(Wanted(target="small.yaml", batch=4, micro_batch=1, dropout=0.2, overrides=["precision=bf16"]))
    assert [target.stage for target in found] == [0, 1]
    plan = found[0].plan
    assert [(s.global_batch, s.micro_batch, s.precision) for s in plan.stages] == [(4, 1, "bf16")] * 2
    assert (plan.model.dropout, plan.model.attention_dropout) == (0.2, 0.2)


@pytest.mark.parametrize(("stages", "chosen"), [((), [0, 1]), (("1",), [1]), (("1-L4", "0"), [0, 1])])
def test_stages_are_chosen_by_number_or_name(stages: tuple[str, ...], chosen: list[int]) -> None:
    assert [target.stage for target in targets(Wanted(target="small.yaml", stages=stages))] == chosen


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (Wanted(), "TARGET: is missing"),
        (Wanted(target="bert-bas"), "bert-bas: is neither a recipe nor a named model; did you mean 'bert-base'"),
        (Wanted(target="bert-base", stages=("0",)), "--stages: is for recipes"),
        (Wanted(target="small.yaml", layers=(3,)), "--layers: is for named models"),
        (Wanted(target="small.yaml", stages=("7",)), "--stages: '7' is not a stage of small; it has 0-L2, 1-L4"),
        (Wanted(hidden=64, overrides=("model.depth=2",)), "hidden-64: model.depth: is not a known key"),
        (
            Wanted(target="bert-base", sequence_length=1024, overrides=("model.max_positions=512",)),
            "--sequence-length: is 1024",
        ),
    ],
)
def test_mistakes_are_named(wanted: Wanted, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        targets(wanted)


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (Wanted(hidden=64, micro_batch=3, batch=4), "--batch: is 4, not a multiple of 1 rank x micro-batch 3 = 3"),
        (Wanted(hidden=64, micro_batch=3, ranks=2, batch=6, dropout=0.1, precision="fp16"), "--precision: "),
        (Wanted(target="demo", sequence_length=100_000), "--sequence-length: is 100000"),
    ],
)
def test_a_mistake_in_an_option_names_the_option(wanted: Wanted, line: str) -> None:
    with pytest.raises(UserError) as caught:
        targets(wanted)
    assert line in str(caught.value) and "stages[0]" not in str(caught.value)
