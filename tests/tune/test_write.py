"""The files: configurations with a reason for every value, a recipe that runs, a page and a picture (FAKE search)."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import yaml

from stacking.config.recipe import load_recipe
from stacking.planning.adopt import adopt_content
from stacking.planning.make_plan import make_plan
from stacking.tune.candidate import DIMENSIONS, Candidate, Setting
from stacking.tune.explain import gain, reasons
from stacking.tune.picture import picture
from stacking.tune.runoff import decide
from stacking.tune.search import SearchResult
from stacking.tune.space import Space
from stacking.tune.variant import Variants
from stacking.tune.write import TunedStage, page, tuned_configs, write_recipe
from tests.small_recipe import MACHINE, MANIFEST, SAMPLES
from tests.tune.fakes import FakeRounds, FakeTrials, needed, peaked, search

RECIPE = """\
name: small
model: {hidden: 64, heads: 2, max_positions: 64}
data: {sequence_length: 32}
ds_config: ds.json
stages:
  - {layers: 2, steps: 10, batch_sequences: 64, micro_batch: 4, learning_rate: {peak: 1e-3}}
  - {layers: 4, steps: 10}
  - {layers: 8, steps: 10, batch_sequences: 32}
"""
DS_CONFIG = '{"zero_optimization": {"stage": 2, "reduce_bucket_size": 50000}, "gradient_clipping": "auto"}'


@pytest.fixture
def variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Variants:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "ds.json").write_text(DS_CONFIG)
    (tmp_path / "out").mkdir()
    return Variants(load_recipe("recipe.yaml"), MANIFEST, SAMPLES, MACHINE)


def tuned(variants: Variants, index: int, real_limit: int | None = None) -> TunedStage:
    """A stage after a search in which compiled ZeRO 1 with micro-batch 8 is fastest."""
    space = Space(Candidate(micro_batch=4, setting=Setting(zero_stage=2)), (1, 2, 4, 8, 16, 32), DIMENSIONS, {})
    found = search(FakeTrials(peaked(8, zero_1=0.2, compile=0.3), real_limit=real_limit), space)
    rounds = {tried.candidate: [tried.tokens_per_second] * 3 for tried in found.measured}
    return TunedStage(variants.base.stages[index], found, decide(found, FakeRounds(rounds)))


def leaves(value: object, place: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [place]
    return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{place}.{key}" if place else key)]


def test_every_value_has_its_reason(variants: Variants) -> None:
    config = tuned_configs(variants, [tuned(variants, 0)])[0]
    why = config["stacking"].pop("why")
    assert set(leaves(config)) <= set(why) and all(why.values())
    assert why["train_batch_size"] == "the recipe's batch, which tuning never changes"
    assert why["gradient_accumulation_steps"] == "64 = 8 x 4 x 2 ranks"
    assert "ZeRO 2 -" in why["zero_optimization.stage"] and "not compiled -" in why["stacking.compile"]
    assert "memory did not limit" in why["stacking.activation_checkpointing"]


def test_reasons_name_what_ran_out_of_memory(variants: Variants) -> None:
    one = tuned(variants, 0, real_limit=900)
    assert one.final is not None
    config = variants.config(0, one.final.winner.candidate)
    why = reasons(one.stage, config, one.found, one.final)
    assert "ran out of memory" in why["train_micro_batch_size_per_gpu"]
    assert needed(one.final.winner.candidate) <= 900


def test_the_tuned_recipe_is_the_original_with_the_tuned_configurations(
    variants: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = tuned_configs(variants, [tuned(variants, 0), tuned(variants, 2)])
    names = {0: "0-L2.json", 2: "2-L8.json"}
    for index, name in names.items():
        (tmp_path / "out" / name).write_text(json.dumps(configs[index]))
    path = write_recipe(tmp_path / "out", variants, names)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert path.name == "recipe.tuned.yaml"
    plan = make_plan(load_recipe(path), MANIFEST, SAMPLES, MACHINE)
    assert plan.name == "small" and plan.stages[1] == variants.base.stages[1]
    for index in names:
        stage, own = plan.stages[index], variants.base.stages[index]
        assert (stage.micro_batch, stage.zero_stage, stage.ranks) == (8, 1, own.ranks)
        assert stage.kernels.compile
        same = ("global_batch", "steps", "learning_rate", "first_sample", "last_sample", "precision")
        assert all(getattr(stage, key) == getattr(own, key) for key in same)


def test_paths_in_the_tuned_recipe_are_valid_wherever_it_is_used(tmp_path: Path, variants: Variants) -> None:
    Path("recipe.yaml").write_text(RECIPE.replace("data: {", "data: {path: data, "))
    pathed = Variants(load_recipe("recipe.yaml"), MANIFEST, SAMPLES, MACHINE)
    written = yaml.safe_load(write_recipe(tmp_path / "out", pathed, {}).read_text())
    assert written["data"]["path"] == str(tmp_path / "data")
    assert written["ds_config"]["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 50000}


def test_the_page_has_every_stage_its_choice_its_reasons_and_every_trial(variants: Variants) -> None:
    stages = [
        tuned(variants, 0, real_limit=2000),
        TunedStage(variants.base.stages[1], SearchResult(None, (), "x", False), None),
    ]  # type: ignore[arg-type]
    configs = tuned_configs(variants, stages)
    text = page(variants.base, stages, {0: "0-L2.json"}, configs)
    assert "## 0-L2" in text and "## 1-L4" in text and "Nothing could be measured" in text
    assert "**micro-batch 8, ZeRO 1, compiled**" in text and "times the recipe's own setting" in text
    assert text.count("| **chosen**") == 1 and text.count("the recipe's own |") == 1
    assert all(f"| {tried.candidate.micro_batch} |" in text for tried in stages[0].found.tried)


def test_the_gain_is_relative_to_the_recipes_own_setting(variants: Variants) -> None:
    one = tuned(variants, 0)
    assert one.final is not None
    assert gain(one.found, one.final) == pytest.approx(1.5 / 0.9)


def test_the_picture_is_a_png_as_wide_as_there_are_stages(variants: Variants) -> None:
    widths = []
    for count in (1, 3):
        head = picture(variants.base, [tuned(variants, i, real_limit=2000) for i in range(count)])[:24]
        assert head.startswith(b"\x89PNG")
        widths.append(struct.unpack(">I", head[16:20])[0])
    assert widths[1] > 2 * widths[0]


def test_a_tuned_recipe_keeps_the_decisions_of_the_users_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace(", learning_rate: {peak: 1e-3}", ""))
    user = {
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "eps": 1e-8, "weight_decay": 0.1}},
        "gradient_clipping": 0.5,
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 4}},
    }
    (tmp_path / "ds.json").write_text(json.dumps(user))
    variants = Variants(load_recipe("recipe.yaml"), MANIFEST, SAMPLES, MACHINE)
    for index in range(2):
        config = tuned_configs(variants, [tuned(variants, index)])[index]
        (tmp_path / "out" / f"stage-{index}.json").write_text(json.dumps(config))
    path = write_recipe(tmp_path / "out", variants, {0: "stage-0.json", 1: "stage-1.json"})
    again = make_plan(load_recipe(path), MANIFEST, SAMPLES, MACHINE)
    for before, after in zip(variants.base.stages, again.stages, strict=True):
        assert after.learning_rate == before.learning_rate
        assert after.ds_config["optimizer"] == before.ds_config["optimizer"]
        assert after.ds_config["gradient_clipping"] == 0.5


def test_adopt_leaves_a_tuned_file_unchanged(variants: Variants) -> None:
    """With a row for every key, and the tuned stage; a recipe that it does not match gets what it says."""
    one = tuned(variants, 0)
    config = tuned_configs(variants, [one])[0]
    stages = {"stages": [{"layers": 2, "steps": 10, "batch_sequences": 64, "learning_rate": {"peak": 1e-3}}]}
    Path("one.yaml").write_text(yaml.safe_dump({**yaml.safe_load(RECIPE), "ds_config": None, **stages}))
    result = adopt_content(config, "one.yaml", None, MACHINE, "0-L2.json")
    assert result.config == config
    assert {row.verdict for row in result.rows} == {"kept"}
    assert set(leaves(config)) == {row.key for row in result.rows}
    tuned_stage = result.finals[0].config
    assert tuned_stage["train_micro_batch_size_per_gpu"] == 8 and tuned_stage["zero_optimization"]["stage"] == 1
    other = adopt_content(config, "one.yaml", 1, MACHINE, "0-L2.json")
    assert (other.recipe["launch"]["ranks"], other.recipe["stages"][0]["batch_sequences"]) == (1, 64)
    assert other.config["stacking"] == config["stacking"]
