"""Recipes: what they may contain, what is refused, and with which message."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.config.recipe import RECIPES, Recipe, WarmupStableDecay, load_recipe
from stacking.errors import UserError
from tests.small_recipe import SMALL

WRONG = {
    "unknown section": (
        "name: small",
        "nmae: small",
        "nmae: is not a known key; did you mean 'name'?",
    ),
    "unknown key": (
        "hidden: 64",
        "hiden: 64",
        "model.hiden: is not a known key; did you mean 'hidden'?",
    ),
    "unknown key far from all": (
        "name: small",
        "zzzzzz: small",
        "zzzzzz: is not a known key; choose one of name, seed, data, model, start, precision, optimizer, "
        "schedule, growth, stages, ds_config, launch, checkpoint, evaluation, attention, log_every",
    ),
    "unknown stage key": (
        "steps: 10}",
        "stpes: 10, steps: 10}",
        "stages[1].stpes: is not a known key; did you mean 'steps'?",
    ),
    "unknown learning-rate key": (
        "peak: 1e-3",
        "peek: 1e-3, peak: 1e-3",
        "stages[0].learning_rate.peek: is not a known key; did you mean 'peak'?",
    ),
    "text for a number": (
        "layers: 4",
        "layers: four",
        'stages[1].layers: is "four", which is not a whole number; give a whole number',
    ),
    "fraction of a layer": (
        "layers: 4",
        "layers: 4.5",
        "stages[1].layers: is 4.5, which is not a whole number; give a whole number",
    ),
    "true for a number": (
        "layers: 4",
        "layers: true",
        "stages[1].layers: is true, which is not a whole number; give a whole number",
    ),
    "negative steps": (
        "layers: 4, steps: 10",
        "layers: 4, steps: -10",
        "stages[1].steps: is -10; give a number greater than 0",
    ),
    "layers missing": (
        "{layers: 4, steps: 10}",
        "{steps: 10}",
        "stages[1].layers: is missing; add it: the number of encoder layers",
    ),
    "no stages": (
        SMALL[SMALL.index("stages:") :],
        "",
        "stages: is missing; add it: a list of stages, shallowest first",
    ),
    "empty stages": (
        SMALL[SMALL.index("stages:") :],
        "stages: []",
        "stages: is empty; add at least one item",
    ),
    "stages not a list": (
        SMALL[SMALL.index("stages:") :],
        "stages: {layers: 3}",
        "stages: is a mapping, which is not a list; give a list",
    ),
    "section not a mapping": (
        "data: {sequence_length: 32}",
        "data: books",
        'data: is "books", which is not keys and values; give keys and values',
    ),
    "no length": (
        "{layers: 4, steps: 10}",
        "{layers: 4}",
        "stages[1]: has no length; give steps, tokens or until",
    ),
    "two lengths": (
        "{layers: 4, steps: 10}",
        "{layers: 4, steps: 10, tokens: 1000}",
        "stages[1]: has both steps and tokens; give one of them",
    ),
    "two batches": (
        "batch_sequences: 8",
        "batch_sequences: 8, batch_tokens: 256",
        "stages[0]: has both batch_sequences and batch_tokens; give one of them",
    ),
    "unknown operator": (
        "name: small",
        "growth: {operator: stak}",
        "growth.operator: is \"stak\"; did you mean 'stack'?",
    ),
    "unknown optimizer state": (
        "name: small",
        "growth: {optimizer_state: zero}",
        'growth.optimizer_state: is "zero"; choose one of reset, reset-keep-step, copy, copy-keep-step, keep-old',
    ),
    "unknown variant": (
        "hidden: 64",
        "variant: postln, hidden: 64",
        "model.variant: is \"postln\"; did you mean 'post_ln'?",
    ),
    "unknown schedule": (
        "name: small",
        "schedule: {kind: cosine}",
        "schedule: has the kind 'cosine'; choose one of stages, warmup-stable-decay, WarmupLR, WarmupDecayLR, "
        "WarmupCosineLR, OneCycle",
    ),
    "schedule key of the other kind": (
        "name: small",
        "schedule: {peak: 1e-3}",
        "schedule.peak: is not a known key; choose one of kind, rewarmup_steps",
    ),
    "schedule without a peak": (
        "name: small",
        "schedule: {kind: warmup-stable-decay}",
        "schedule.peak: is missing; add it: the learning rate of the plateau",
    ),
    "dropout of one": (
        "hidden: 64",
        "dropout: 1.0, hidden: 64",
        "model.dropout: is 1.0; give a number less than 1.0",
    ),
    "betas of one number": (
        "name: small",
        "optimizer: {betas: [0.9]}",
        "optimizer.betas[1]: is missing; add it",
    ),
    "a list for a key": (
        "name: small",
        "? [name]\n: small",
        "line 1: is not YAML (a key must be a name); check the indentation and the colons",
    ),
    "a number for a key": (
        "name: small",
        "1: small",
        "[1]: is not a name; write keys as text",
    ),
    "infinite learning rate": (
        "peak: 1e-3",
        "peak: .inf",
        "stages[0].learning_rate.peak: is Infinity, which is not a finite number; give a finite number",
    ),
    "rise without steps": (
        "peak: 1e-3",
        "peak: 1e-3, start: 1e-4",
        "stages[0].learning_rate: has different start and peak, but no warm-up between them; give warmup_steps",
    ),
    "several mistakes": (
        "hidden: 64, heads: 2",
        "hidden: no, heads: none, dropout: -1",
        "model.hidden: is false, which is not a whole number; give a whole number (and 2 more)",
    ),
    "key given twice": (
        "name: small",
        "name: small\nname: other",
        "line 2: the key 'name' is given twice; keep one of them",
    ),
    "YAML syntax": (
        "stages:",
        "stages: [",
        "line 5: is not YAML (expected the node content, but found '-'); check the indentation and the colons",
    ),
    "a tab": (
        "name: small",
        "name: small\n\tseed: 1",
        "line 2: is not YAML (found character '\\t' that cannot start any token); check the indentation and the colons",
    ),
    "a list for a recipe": (
        SMALL,
        "- 1\n- 2",
        "is [1, 2] where keys and values are expected; start it with lines like 'key: value'",
    ),
    "nested too deeply": (
        SMALL,
        "[" * 5000,
        "is nested too deeply; check its brackets",
    ),
    "a width that no machine has": (
        "hidden: 64",
        "hidden: 1e300",
        "model.hidden: is 1e+300; give a number at most 1,000,000",
    ),
    "a depth that no machine has": (
        "layers: 4",
        "layers: 2000000",
        "stages[1].layers: is 2000000; give a number at most 10,000",
    ),
    "steps without end": (
        "layers: 4, steps: 10",
        "layers: 4, steps: 99999999999999999999",
        "stages[1].steps: is 99999999999999999999; give a number at most 1,000,000,000,000",
    ),
    "a seed of too many bits": (
        "name: small",
        "seed: 99999999999999999999999999",
        "seed: is 99999999999999999999999999; give a number less than 9,223,372,036,854,775,808",
    ),
    "sequences without room for a pair": (
        "sequence_length: 32",
        "sequence_length: 7",
        "data.sequence_length: is 7; give a number at least 8",
    ),
    "an empty file": (
        SMALL,
        "",
        "is empty where keys and values are expected; start it with lines like 'key: value'",
    ),
    "ds_config is a number": (
        "steps: 10}",
        "steps: 10, ds_config: 3}",
        "stages[1].ds_config: is neither a path nor a mapping; give the path of a JSON file, or its content",
    ),
}
"""Name: what to replace in the recipe, by what, and the line that must come out, after ``recipe.yaml: ``."""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def small(text: str = SMALL, overrides: list[str] | None = None, data: Path | None = None) -> Recipe:
    Path("recipe.yaml").write_text(text)
    return load_recipe("recipe.yaml", overrides, data)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_gives_one_line(name: str) -> None:
    old, new, line = WRONG[name]
    assert old in SMALL
    with pytest.raises(UserError) as caught:
        small(SMALL.replace(old, new, 1))
    assert str(caught.value) == f"recipe.yaml: {line}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("absent.yaml", "absent.yaml: does not exist; check the path"),
        ("deom", "deom: is neither a file nor a shipped recipe; did you mean 'demo'?"),
        ("folder", "folder: is a folder; give a file"),
        ("latin.yaml", "latin.yaml: is not UTF-8 (byte 8); save it as UTF-8"),
    ],
)
def test_a_recipe_that_cannot_be_read_gives_one_line(name: str, line: str) -> None:
    Path("folder").mkdir()
    Path("latin.yaml").write_bytes(b"name: na\xefve")
    with pytest.raises(UserError) as caught:
        load_recipe(name)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "--set seed: is not KEY=VALUE; write it like stages[1].steps=200"),
        ("stages[7].steps=1", "--set stages[7].steps=1: there is no item 7; the last one is 1"),
        ("name.first=1", "--set name.first=1: 'first' is not in the recipe; name an existing key"),
        ("seed=[", "--set seed=[: line 1: is not YAML (expected the node content, but found '<stream end>'); "
         "check the indentation and the colons"),
        ("sead=1", "recipe.yaml: sead: is not a known key; did you mean 'seed'?"),
    ],
)  # fmt: skip
def test_a_wrong_override_gives_one_line(override: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        small(overrides=[override])
    assert str(caught.value) == line


def test_an_exponent_without_a_dot_is_a_number() -> None:
    recipe = small(SMALL.replace("seed: 0", "") + "optimizer: {eps: 1e-8}\n")
    assert recipe.optimizer.eps == 1e-8
    assert recipe.stages[0].learning_rate is not None
    assert recipe.stages[0].learning_rate.peak == 1e-3


def test_a_whole_number_may_have_an_exponent() -> None:
    assert small(SMALL.replace("steps: 10}", "tokens: 1e9}")).stages[1].tokens == 1_000_000_000


def test_overrides_reach_into_lists_and_new_sections() -> None:
    recipe = small(overrides=["stages[1].steps=20", "stages.0.layers=1", "optimizer.clip=0.0", "precision=bf16"])
    assert (recipe.stages[1].steps, recipe.stages[0].layers) == (20, 1)
    assert (recipe.optimizer.clip, recipe.precision) == (0.0, "bf16")


def test_data_given_in_addition_to_the_recipe_wins() -> None:
    assert small(data=Path("a folder: here")).data.path == "a folder: here"


def test_a_recipe_without_a_name_takes_the_name_of_its_file() -> None:
    assert small(SMALL.replace("name: small\n", "")).name == "recipe"


def test_a_recipe_with_its_defaults_written_out_is_the_same_recipe() -> None:
    for text in (SMALL, *(path.read_text() for path in RECIPES.glob("*.yaml"))):
        recipe = small(text)
        assert small(recipe.to_yaml()) == recipe


def test_the_schedule_kind_chooses_its_keys() -> None:
    schedule = small(SMALL + "schedule: {kind: warmup-stable-decay, peak: 1e-3}\n").schedule
    assert isinstance(schedule, WarmupStableDecay)
    assert schedule.decay_share == 0.2


def test_every_shipped_recipe_is_found_by_its_name() -> None:
    names = {path.stem for path in RECIPES.glob("*.yaml")}
    assert {"demo", "books-cpu", "bert-base-p40", "bert-base-v100", "bert-large-a100"} <= names
    assert {load_recipe(name).name for name in names} == names


def test_a_folder_does_not_hide_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert load_recipe("demo").name == "demo"
