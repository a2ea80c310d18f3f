"""A candidate changes how an update is computed, and never what it computes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.config.recipe import load_recipe
from stacking.planning.plan import Plan
from stacking.tune.candidate import DIMENSIONS, Candidate, Setting
from stacking.tune.space import base_candidate, micro_batches
from stacking.tune.variant import Variants
from tests.small_recipe import MACHINE, MANIFEST, SAMPLES

RECIPE = """\
name: small
model: {hidden: 64, heads: 2, max_positions: 64}
data: {sequence_length: 32}
precision: bf16
optimizer: {weight_decay: 0.05, clip: 0.5}
ds_config: ds.json
stages:
  - {layers: 2, steps: 10, batch_sequences: 96, micro_batch: 4, learning_rate: {peak: 1e-3}}
  - {layers: 4, tokens: 61440}
  - {layers: 8, steps: 10, batch_sequences: 24, ds_config: {zero_optimization: {stage: 1, overlap_comm: true}}}
"""
DS_CONFIG = {
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 50_000},
    "communication_data_type": "fp32",
}
SETTINGS = st.builds(Setting, **{name: st.sampled_from(values) for name, values in DIMENSIONS.items()}).filter(
    lambda setting: setting.possible
)


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variants]:
    folder, before = tmp_path_factory.mktemp("recipe"), Path.cwd()
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "ds.json").write_text(json.dumps(DS_CONFIG))
    os.chdir(folder)
    yield Variants(load_recipe("recipe.yaml"), MANIFEST, SAMPLES, MACHINE)
    os.chdir(before)


def candidates(variants: Variants, index: int) -> st.SearchStrategy[Candidate]:
    stage = variants.base.stages[index]
    rungs = micro_batches(stage.global_batch // stage.ranks, stage.micro_batch)
    return st.builds(Candidate, micro_batch=st.sampled_from(rungs), setting=SETTINGS)


def mathematics(plan: Plan) -> dict[str, object]:
    """Everything in a plan that decides what an update computes, and when."""
    facts = plan.model_dump(exclude={"stages", "warnings", "cost"})
    for stage in plan.stages:
        kept = stage.model_dump(exclude={"micro_batch", "accumulation", "zero_stage", "memory_per_rank", "kernels"})
        config = dict(kept.pop("ds_config"))
        del kept["ds_config_digest"]
        for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "zero_optimization"):
            config.pop(key, None)
        config.pop("zero_force_ds_cpu_optimizer", None)  # which of two programs of the same Adam runs on a host
        facts[stage.name] = (kept, config)
    return facts


@settings(deadline=None)
@given(st.data())
def test_the_global_batch_and_the_mathematics_stay_those_of_the_recipe(variants: Variants, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, 2))
    candidate = data.draw(candidates(variants, index))
    plan = variants.plan(index, candidate)
    stage, own = plan.stages[index], variants.base.stages[index]
    assert stage.micro_batch * stage.accumulation * stage.ranks == stage.global_batch == own.global_batch
    assert mathematics(plan) == mathematics(variants.base)


@settings(deadline=None)
@given(st.data())
def test_the_plan_does_what_the_candidate_says(variants: Variants, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, 2))
    candidate = data.draw(candidates(variants, index))
    assert base_candidate(variants.plan(index, candidate).stages[index]) == candidate


@settings(deadline=None)
@given(st.data())
def test_other_stages_are_unchanged(variants: Variants, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, 2))
    plan = variants.plan(index, data.draw(candidates(variants, index)))
    assert [s for s in plan.stages if s.index != index] == [s for s in variants.base.stages if s.index != index]


@settings(deadline=None)
@given(st.data())
def test_a_trial_has_whole_micro_steps_and_never_more_than_an_update(variants: Variants, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, 2))
    candidate, share = data.draw(candidates(variants, index)), data.draw(st.integers(1, 200))
    stage, own = variants.trial(index, candidate, share).stages[index], variants.base.stages[index]
    assert stage.micro_batch * stage.accumulation * stage.ranks == stage.global_batch <= own.global_batch
    assert stage.global_batch // stage.ranks <= max(share, stage.micro_batch)
    assert stage.ds_config["train_batch_size"] == stage.global_batch
    assert stage.ds_config["gradient_accumulation_steps"] == stage.accumulation


def test_other_keys_of_the_users_configuration_are_kept(variants: Variants) -> None:
    config = variants.config(0, Candidate(micro_batch=8, setting=Setting(zero_stage=3)))
    assert config["communication_data_type"] == "fp32"
    assert config["zero_optimization"] == {"stage": 3, "reduce_bucket_size": 50_000}
    assert config["bf16"] == {"enabled": True}


def test_offload_is_written_only_where_it_is_chosen(variants: Variants) -> None:
    setting = Setting(zero_stage=3, offload="optimizer+param")
    zero = variants.config(2, Candidate(micro_batch=1, setting=setting))["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu" and zero["overlap_comm"]
