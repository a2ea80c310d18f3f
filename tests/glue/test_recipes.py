from __future__ import annotations

import pytest

from stacking.errors import UserError
from stacking.glue.recipes import RECIPES, settings
from stacking.glue.tasks import TASKS


def test_the_original_recipe_has_settings_per_task() -> None:
    """Epochs, batch and learning rate of the scripts that Gong et al. published."""
    found = {name: (s.epochs, s.batch, s.learning_rate) for name, s in settings("original").items()}
    expected = dict.fromkeys(("CoLA", "MRPC", "SST-2", "MNLI"), (3, 16, 5e-5))
    expected |= {"QNLI": (3, 32, 5e-5), "RTE": (4, 16, 3e-5), "WNLI": (4, 16, 3e-5)}
    expected |= dict.fromkeys(("STS-B", "QQP"), (4, 32, 5e-5))
    assert found == expected
    original = settings("original")
    assert {(s.weight_decay, s.warmup, s.head) for s in original.values()} == {(0.01, 0.1, "zero")}
    assert {name for name, s in original.items() if s.swap_pairs} == {"MRPC", "STS-B", "QQP"}
    assert {name for name, s in original.items() if s.standardise} == {"STS-B"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_every_task(recipe: str) -> None:
    assert list(settings(recipe)) == list(RECIPES[recipe])
    assert set(settings(recipe)) == set(TASKS)


def test_set_changes_one_task_or_all() -> None:
    found = settings("run_glue", ["batch=8", "cola.epochs=10", "learning_rate=1e-4"])
    assert {s.batch for s in found.values()} == {8}
    assert (found["CoLA"].epochs, found["RTE"].epochs) == (10, 3)
    assert found["RTE"].learning_rate == 1e-4


@pytest.mark.parametrize(
    ("recipe", "change", "expected"),
    [
        ("paper", "batch=8", "--recipe: is 'paper'; choose one of original, run_glue"),
        ("original", "batch", "--set batch: has no value; write KEY=VALUE or TASK.KEY=VALUE"),
        ("original", "bacth=8", "bacth: is not a known key; did you mean 'batch'?"),
        ("original", "batch=0", "batch: is 0; give a number at least 1"),
        ("original", "batch=two", 'batch: is "two", which is not a whole number'),
        ("original", "MRCP.batch=2", "--set MRCP.batch: names the task 'MRCP'; did you mean 'MRPC'?"),
        ("original", "head=one", 'head: is "one"; choose one of zero, normal'),
    ],
)
def test_an_invalid_change_is_reported_in_one_line(recipe: str, change: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        settings(recipe, [change])
    assert expected in str(caught.value)
