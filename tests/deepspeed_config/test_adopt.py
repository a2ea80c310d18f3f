"""`stacking adopt`: a row for every key, and files that a plan takes as they are."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stacking.config.recipe import load_recipe, recipe_from
from stacking.deepspeed_config.examination import leaves
from stacking.deepspeed_config.facts import SECTIONS, TOP
from stacking.deepspeed_config.own_check import Final, check_finals
from stacking.errors import UserError
from stacking.hardware.machine import Machine
from stacking.hardware.presets import DEVICE_CLASSES
from stacking.planning.adopt import CONFIG, RECIPE, Adopted, adopt, adopt_content, table
from stacking.planning.make_plan import make_plan
from tests.deepspeed_config.people import CONFIGS
from tests.small_recipe import MACHINE, SMALL

V100S = Machine(accelerators=8, device=DEVICE_CLASSES["v100"], memory=16 << 30, cores=8)
A100S = Machine(accelerators=8, device=DEVICE_CLASSES["a100"], memory=40 << 30, cores=8, has_nvcc=True)


@pytest.fixture(autouse=True)
def in_a_folder_with_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL.replace("batch_sequences: 8, ", ""))


def adopted(content: dict[str, Any], machine: Machine = V100S, recipe: str | None = "small.yaml") -> Adopted:
    return adopt_content(copy.deepcopy(content), recipe, None, machine, "ds.json")


def verdicts(result: Adopted) -> dict[str, str]:
    return {row.key: row.verdict for row in result.rows}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("machine", [MACHINE, V100S, A100S], ids=["cpu", "v100", "a100"])
def test_what_people_have_is_planned_after_one_adopt_with_a_row_for_every_key(name: str, machine: Machine) -> None:
    for recipe in (None, "small.yaml"):
        result = adopted(CONFIGS[name], machine, recipe)  # ends with a plan
        keys = [row.key for row in result.rows]
        assert len(keys) == len(set(keys))
        assert {path for path, _ in leaves(CONFIGS[name])} <= set(keys)
        assert adopted(result.config, machine, recipe).config == result.config


VALUES = st.sampled_from(
    [True, False, None, "auto", 0, 1, 2, 4.0, "2", "true", "cpu", "fp16", [], {}, -1, float("inf")]
)
KEYS = sorted(
    {
        *TOP,
        *(key for section in SECTIONS.values() for key in section),
        "stge",
        "_c",
        "amp",
        "bfloat16",
        "",
        "a.b",
        "fp16.enabled",
    }
)
ANY_CONFIG = st.recursive(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), VALUES | inner, max_size=5),
    max_leaves=12,
)


@given(ANY_CONFIG)
def test_whatever_a_file_holds_each_key_has_a_row_and_a_plan_is_made(content: dict[str, Any]) -> None:
    result = adopted(content)
    assert {path for path, _ in leaves(content)} <= {row.key for row in result.rows}


def test_what_is_written_is_planned_as_it_is(tmp_path: Path) -> None:
    Path("ds.json").write_text(json.dumps(CONFIGS["Megatron, cosine"]))
    adopt(Path("ds.json"), "small.yaml", 4, Path("out"))
    recipe = load_recipe("out/" + RECIPE)
    plan = make_plan(recipe, None, None, MACHINE)
    stage = plan.stages[0]
    assert (stage.global_batch, stage.micro_batch, stage.ranks) == (256, 4, 4)
    assert plan.optimizer.betas == (0.9, 0.95) and plan.optimizer.eps == 1e-8
    assert recipe.schedule.kind == "WarmupCosineLR"
    assert json.loads((Path("out") / CONFIG).read_text())["fp16"]["initial_scale_power"] == 11
    with pytest.raises(UserError, match="exists already"):
        adopt(Path("ds.json"), "small.yaml", 4, Path("out"))


def test_a_file_that_is_no_configuration_is_refused() -> None:
    Path("tune.json").write_text('{"trials": [1, 2], "winner": {"speed": 3}}')
    with pytest.raises(UserError, match=r"tune.json: has no key that DeepSpeed knows; give a DeepSpeed configuration"):
        adopt(Path("tune.json"), "small.yaml", 4, Path("out"))
    assert not Path("out").exists()


def test_the_size_of_an_update_is_kept_where_the_gpus_allow_it() -> None:
    content = {"train_batch_size": 96, "train_micro_batch_size_per_gpu": 16}
    result = adopt_content(content, "small.yaml", 8, V100S, "ds.json")
    assert (result.recipe["stages"][0]["batch_sequences"], result.recipe["stages"][0]["micro_batch"]) == (96, 12)
    result = adopt_content({"train_batch_size": 100}, "small.yaml", 8, V100S, "ds.json")
    assert result.recipe["stages"][0]["batch_sequences"] == 96
    assert verdicts(result)["train_batch_size"] == "impossible"


def test_verdicts_of_one_file() -> None:
    assert verdicts(adopted(CONFIGS["bing_bert, LAMB"], A100S)) == {
        "train_batch_size": "moved to the recipe",
        "train_micro_batch_size_per_gpu": "moved to the recipe",
        "optimizer.type": "impossible",
        "optimizer.params.lr": "without meaning here",
        "optimizer.params.weight_decay": "moved to the recipe",
        "optimizer.params.bias_correction": "kept",
        "optimizer.params.max_coeff": "without meaning here",
        "optimizer.params.min_coeff": "without meaning here",
        "fp16.enabled": "moved to the recipe",
        "sparse_attention.mode": "impossible",
        "sparse_attention.block": "impossible",
    }


def test_accelerates_own_file_is_read() -> None:
    Path("accelerate.yaml").write_text(
        "mixed_precision: bf16\ndeepspeed_config: {zero_stage: 2, gradient_clipping: 0.5, "
        "gradient_accumulation_steps: 1, offload_optimizer_device: none, zero3_init_flag: false}\n"
    )
    result = adopt(Path("accelerate.yaml"), "small.yaml", None, Path("out"))
    assert result.config["zero_optimization"]["stage"] == 2
    assert result.recipe["optimizer"]["clip"] == 0.5
    assert yaml.safe_load((Path("out") / RECIPE).read_text())["ds_config"] == CONFIG


def test_what_deepspeed_alone_refuses_is_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("ds.json").write_text('{"gradient_allreduce_op": "sum", "zero_optimization": {"stage": 3}}')
    result = adopt(Path("ds.json"), "small.yaml", None, Path("out"))
    assert result.config == {"zero_optimization": {"stage": 3}}
    (row,) = [row for row in result.rows if row.key == "gradient_allreduce_op"]
    assert row.verdict == "impossible" and "not supported with ZeRO stage 3" in row.problem
    check_finals(result.finals)


def test_a_misspelt_key_is_told_as_what_it_is_read_as() -> None:
    rows = adopted({"flops_profiler": {"enabled": True, "profil_step": 2}}).rows
    assert "is not a key of flops_profiler; read as flops_profiler.profile_step" in table(rows)


def test_deepspeed_accepts_everything_that_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one process; the ranks would die at what it refuses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    finals = []
    for name, content in CONFIGS.items():
        for machine in (MACHINE, V100S, A100S):
            result = adopted(content, machine)
            recipe = recipe_from({**copy.deepcopy(result.recipe), "ds_config": result.config}, Path("recipe.yaml"))
            stage = make_plan(recipe, None, None, machine).stages[-1]
            finals.append(Final(f"{name} on {machine.device.name}", stage.name, stage.ds_config, stage.ranks))
    check_finals(finals)
