"""DeepSpeed configurations: what is refused before anything starts, and what DeepSpeed gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stacking.deepspeed_config.ds_config import offloads, precision, zero_stage
from stacking.errors import UserError
from tests.small_recipe import SMALL, plan_of

WRONG = {
    "unknown key": (
        '{"train_batchsize": 8}',
        "ds.json: train_batchsize: is not a key of DeepSpeed; did you mean 'train_batch_size'?",
    ),
    "removed key": (
        '{"sparse_attention": {"mode": "fixed"}}',
        "ds.json: sparse_attention: was removed from DeepSpeed, which rejects it (0.19.8); remove it",
    ),
    "elasticity": (
        '{"elasticity": {"enabled": true}}',
        "ds.json: elasticity: was removed from DeepSpeed, which rejects it (0.19.8); remove it: a run here "
        "resumes on any number of ranks",
    ),
    "removed ZeRO key": (
        '{"zero_optimization": {"stage": 3, "mics_shard_size": 2}}',
        "ds.json: zero_optimization.mics_shard_size: was removed from DeepSpeed (0.19.8); remove it",
    ),
    "unknown ZeRO key": (
        '{"zero_optimization": {"stge": 2}}',
        "ds.json: zero_optimization.stge: is not a key of zero_optimization; did you mean 'stage'?",
    ),
    "ZeRO stage 4": (
        '{"zero_optimization": {"stage": 4}}',
        "ds.json: zero_optimization.stage: is 4; give 0, 1, 2 or 3",
    ),
    "bucket is text": (
        '{"zero_optimization": {"stage": 2, "reduce_bucket_size": "large"}}',
        'ds.json: zero_optimization.reduce_bucket_size: is "large"; give a whole number',
    ),
    "auto where nothing fills it in": (
        '{"zero_optimization": {"stage": "auto"}}',
        "ds.json: zero_optimization.stage: is 'auto', which is not supported here; give a value or remove it",
    ),
    "auto at the top": (
        '{"prescale_gradients": "auto"}',
        "ds.json: prescale_gradients: is 'auto', which is not supported here; give a value or remove it",
    ),
    "offload without ZeRO": (
        '{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}',
        "ds.json: zero_optimization.offload_optimizer: needs ZeRO stage 1 or more, but the stage is 0; raise "
        "the stage or remove it",
    ),
    "offload to nvme": (
        '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}',
        'ds.json: zero_optimization.offload_optimizer.device: is "nvme", from which checkpoints cannot be '
        "consolidated here; give 'cpu' or 'none'",
    ),
    "1-bit Adam": (
        '{"optimizer": {"type": "OneBitAdam"}}',
        "ds.json: optimizer.type: OneBitAdam was removed from DeepSpeed (0.19.8); use 'AdamW'",
    ),
    "LAMB": (
        '{"optimizer": {"type": "Lamb"}}',
        'ds.json: optimizer.type: is "Lamb", which is the recipe\'s choice; write optimizer: {type: lamb} there',
    ),
    "optimizer lr": (
        '{"optimizer": {"type": "AdamW", "params": {"lr": 5e-5}}}',
        "ds.json: optimizer.params.lr: is 5e-05, but the recipe says 0.001; remove it here or change the recipe",
    ),
    "optimizer parameter unknown": (
        '{"optimizer": {"type": "AdamW", "params": {"beta": [0.9, 0.99]}}}',
        "ds.json: optimizer.params.beta: is not a parameter of Adam; did you mean 'betas'?",
    ),
    "scheduler": (
        '{"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 100}}}',
        "ds.json: scheduler.params.warmup_num_steps: is 100, but the recipe's schedule decides the learning "
        'rate; remove scheduler, or write "auto"',
    ),
    "both precisions": (
        '{"fp16": {"enabled": true}, "bf16": {"enabled": true}}',
        "ds.json: bf16.enabled: is true and so is fp16.enabled; enable one of them",
    ),
    "fp16 on a CPU": (
        '{"fp16": {"enabled": true}}',
        "ds.json: fp16.enabled: fp16 on cpu: CPUs emulate it; use fp32",
    ),
    "16-bit master weights": (
        '{"bf16": {"enabled": true, "bf16_master_weights_and_grads": true}}',
        "ds.json: bf16.bf16_master_weights_and_grads: would keep the master state in 16 bits, but a state "
        "here is fp32; remove it",
    ),
    "other batch": (
        '{"train_batch_size": 16}',
        'ds.json: train_batch_size: is 16, but the recipe\'s stages[0] says 8 sequences; write "auto" here, '
        "or make them agree",
    ),
    "micro-batch does not divide": (
        '{"train_micro_batch_size_per_gpu": 3}',
        "recipe.yaml: stages[0].batch_sequences: is 8, not a multiple of 2 ranks x micro-batch 3 = 6; give 6 or 12",
    ),
    "batch arithmetic": (
        '{"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4}',
        "recipe.yaml: stages[0].batch_sequences: is 8, not 2 ranks x micro-batch 2 x accumulation 4 = 16; give 16",
    ),
    "batch is a fraction": (
        '{"train_batch_size": 8.5}',
        "ds.json: train_batch_size: is 8.5; give a whole number",
    ),
    "batch of none": (
        '{"train_batch_size": 0}',
        'ds.json: train_batch_size: is 0; give a whole number from 1 to 1,000,000,000,000, or "auto"',
    ),
    "an infinite bucket": (
        '{"zero_optimization": {"stage": 2, "reduce_bucket_size": Infinity}}',
        "ds.json: zero_optimization.reduce_bucket_size: is Infinity; give a whole number",
    ),
    "text at the top": (
        '{"steps_per_print": "often"}',
        'ds.json: steps_per_print: is "often"; give a whole number',
    ),
    "clipping that both state": (
        '{"gradient_clipping": 0.5}',
        "ds.json: gradient_clipping: is 0.5, but the recipe's optimizer.clip is 1; set optimizer.clip=0.5 in "
        "the recipe, or remove it here",
    ),
    "neither JSON nor HJSON": (
        '{"bf16": {"enabled": true}',
        "ds.json: line 1: is neither JSON nor HJSON (Expecting ',' delimiter); check commas, quotes and brackets",
    ),
    "a template": (
        '{"train_batch_size": <size>\n}',
        "ds.json: line 1: holds the placeholder '<size>': it is a template, not a configuration; fill it in",
    ),
    "a template of another kind": (
        '{"fp16": {},\n"train_batch_size": {{ size }}}',
        "ds.json: line 2: holds the placeholder '{{ size }}': it is a template, not a configuration; fill it in",
    ),
    "a shell script's template": (
        '{"train_batch_size": $BATCH}',
        "ds.json: line 1: holds the placeholder '$BATCH': it is a template, not a configuration; fill it in",
    ),
    "key twice": (
        '{"bf16": {}, "bf16": {}}',
        "ds.json: bf16: is given twice; keep one of them",
    ),
    "not an object": (
        "[1]",
        "ds.json: is [1], not an object; start it with '{'",
    ),
    "nested too deeply": (
        '{"fp16": ' * 5000,
        "ds.json: is nested too deeply; check its brackets",
    ),
    "unknown offload key": (
        '{"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}}',
        "ds.json: zero_optimization.offload_optimizer.devise: is not a key of zero_optimization.offload_optimizer; "
        "did you mean 'device'?",
    ),
    "scheduler params not an object": (
        '{"scheduler": {"type": "WarmupLR", "params": [1]}}',
        "ds.json: scheduler.params: is [1]; give an object",
    ),
    "scheduler with DeepSpeed's defaults": (
        '{"scheduler": {"type": "WarmupLR"}}',
        "ds.json: scheduler: has no params, but the recipe's schedule decides the learning rate; remove it, or "
        'write "auto" for its params',
    ),
    "printing every 0 steps": (
        '{"steps_per_print": 0}',
        "ds.json: steps_per_print: is 0; give a number greater than 0",
    ),
    "a bucket of nothing": (
        '{"zero_optimization": {"stage": 2, "reduce_bucket_size": 0}}',
        "ds.json: zero_optimization.reduce_bucket_size: is 0; give a number greater than 0",
    ),
    "communication in an unknown type": (
        '{"communication_data_type": "fp3"}',
        "ds.json: communication_data_type: is \"fp3\"; did you mean 'fp32'?",
    ),
    "accumulation in an unknown type": (
        '{"data_types": {"grad_accum_dtype": "double"}}',
        'ds.json: data_types.grad_accum_dtype: is "double"; choose one of fp16, bf16, fp32',
    ),
    "pipeline": (
        '{"pipeline": {"stages": 2}}',
        "ds.json: pipeline: shards the model in a way that cannot be consolidated here; remove it; use ZeRO",
    ),
    "our own section, unknown key": (
        '{"stacking": {"compiled": true}}',
        "ds.json: stacking.compiled: is not a key of stacking; did you mean 'compile'?",
    ),
    "our own section, compile is text": (
        '{"stacking": {"compile": "yes"}}',
        'ds.json: stacking.compile: is "yes"; give true, false or "auto"',
    ),
    "compiled layers under ZeRO 3": (
        '{"stacking": {"compile": true}, "zero_optimization": {"stage": 3}}',
        "ds.json: stacking.compile: is true with ZeRO stage 3, which compiled layers break; give false",
    ),
    "a reason that is no text": (
        '{"stacking": {"why": {"compile": 1}}}',
        "ds.json: stacking.why.compile: is 1; give a text, or remove it",
    ),
}
"""Name: the user's JSON and the line that must come out."""


SETTLE = " (settle it with: stacking adopt ds.json --recipe recipe.yaml --out DIR)"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def resolved(user: dict[str, Any], recipe: str = SMALL) -> dict[str, Any]:
    return plan_of(recipe, json.dumps(user)).stages[0].ds_config


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_gives_one_line(name: str) -> None:
    content, line = WRONG[name]
    stated = "optimizer: {clip: 1}\n" if "both state" in name else ""
    with pytest.raises(UserError) as caught:
        plan_of(SMALL + stated, content)
    assert str(caught.value).removesuffix(SETTLE) == line
    assert caught.value.exit_code == 2


def test_without_a_configuration_two_ranks_share_the_state_by_zero_2() -> None:
    config = plan_of(SMALL).stages[0].ds_config
    assert config["train_batch_size"] == 8
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2 == 8
    assert (zero_stage(config), precision(config), offloads(config)) == (2, "fp32", ())
    assert config["optimizer"]["params"] == {
        "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01, "torch_adam": True, "fused": True,
    }  # fmt: skip
    assert config["gradient_clipping"] == 1.0


def test_one_rank_needs_no_sharding() -> None:
    config = plan_of(SMALL + "launch: {ranks: 1}\n").stages[0].ds_config
    assert zero_stage(config) == 0


def test_a_configuration_for_hugging_face_is_filled_in() -> None:
    config = resolved(
        {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "fp16": {"enabled": "auto", "loss_scale": "auto"},
            "bf16": {"enabled": "auto"},
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto"}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_num_steps": "auto"}},
            "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"},
        }
    )
    assert '"auto"' not in json.dumps(config)
    assert "scheduler" not in config
    assert config["zero_optimization"]["reduce_bucket_size"] == 64 * 64


def test_what_the_plan_does_not_decide_passes_through() -> None:
    user = {
        "csv_monitor": {"enabled": False, "output_path": "metrics", "job_name": "small"},
        "wandb": {"enabled": False, "project": "berts"},
        "dump_state": True,
        "memory_breakdown": True,
        "steps_per_print": 50,
        "wall_clock_breakdown": True,
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 5e6},
    }
    config = resolved(user)
    assert {key: config[key] for key in user} == user


def test_a_configuration_may_decide_the_batch_where_the_recipe_does_not() -> None:
    stage = plan_of(
        SMALL.replace("batch_sequences: 8, ", ""),
        '{"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}',
    ).stages[0]
    assert (stage.micro_batch, stage.accumulation, stage.ranks, stage.global_batch) == (2, 3, 2, 12)


def test_a_configuration_may_decide_the_precision_where_the_recipe_does_not() -> None:
    assert precision(resolved({"bf16": {"enabled": True}})) == "bf16"
    assert precision(resolved({"bf16": {"enabled": False}})) == "fp32"
    assert precision(resolved({"bf16": {"enabled": "auto"}}, SMALL + "precision: bf16\n")) == "bf16"


def test_a_precision_other_than_the_recipes_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        resolved({"bf16": {"enabled": True}}, SMALL + "precision: fp32\n")
    assert str(caught.value).removesuffix(SETTLE) == (
        "ds.json: bf16.enabled: asks for bf16, but the recipe's precision is fp32; change one of them"
    )


def test_offloading_on_a_cpu_is_allowed_and_noted() -> None:
    plan = plan_of(SMALL, '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}')
    assert offloads(plan.stages[0].ds_config) == ("optimizer",)
    assert "0-L2 offloads to the CPU on a CPU, which saves nothing" in plan.warnings


def test_values_that_agree_with_the_recipe_are_no_conflict() -> None:
    user = {"train_batch_size": 8, "gradient_clipping": 1, "optimizer": {"type": "Adam", "params": {"lr": 0.001}}}
    assert resolved(user)["optimizer"]["type"] == "Adam"


def test_a_stages_own_configuration_wins_over_the_recipes() -> None:
    text = SMALL.replace("{layers: 4, steps: 10}", "{layers: 4, steps: 10, ds_config: {zero_optimization: {stage: 3}}}")
    assert [stage.zero_stage for stage in plan_of(text, '{"zero_optimization": {"stage": 1}}').stages] == [1, 3]


def test_an_inline_configuration_is_named_by_its_key() -> None:
    with pytest.raises(UserError, match=r"^recipe.yaml: ds_config: zero_optimisation: is not a key of DeepSpeed"):
        plan_of(SMALL + "ds_config: {zero_optimisation: {stage: 2}}\n")


def test_a_configuration_is_looked_up_next_to_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    (tmp_path / "folder/recipe.yaml").write_text(SMALL + "ds_config: ds.json\n")
    from stacking.config.recipe import load_recipe
    from stacking.planning.make_plan import make_plan
    from tests.small_recipe import MACHINE, MANIFEST

    plan = make_plan(load_recipe("folder/recipe.yaml"), MANIFEST, 100, MACHINE)
    assert plan.stages[0].zero_stage == 1


def test_our_own_section_reaches_the_stage_but_not_deepspeed() -> None:
    section = {"compile": True, "activation_checkpointing": True, "why": {"stacking.compile": "measured"}}
    stage = plan_of(SMALL, json.dumps({"stacking": section})).stages[0]
    assert stage.kernels.compile and stage.kernels.activation_checkpointing
    assert "stacking" not in stage.ds_config


@pytest.mark.parametrize(
    ("device", "compiled"), [("cpu", False), ("p40", False), ("v100", True), ("a100", True), ("h200", True)]
)
def test_layers_are_compiled_where_that_is_faster(device: str, compiled: bool) -> None:
    wide = ["model.hidden=512", "model.intermediate=2048", "model.heads=8"]
    stages = plan_of(SMALL, overrides=[f"launch.device={device}", *wide]).stages
    assert {stage.kernels.compile for stage in stages} == {compiled}
    assert not plan_of(SMALL, overrides=[f"launch.device={device}"]).stages[0].kernels.compile  # too narrow to gain


def test_on_a_gpu_a_bucket_is_no_larger_than_useful_unless_the_configuration_says_so() -> None:
    zero = plan_of(SMALL, overrides=["launch.device=a100"]).stages[0].ds_config["zero_optimization"]
    assert zero == {"stage": 1, "reduce_bucket_size": 100_000_000, "allgather_bucket_size": 100_000_000}


def test_a_p40_cannot_compile_but_a_v100_can() -> None:
    user = json.dumps({"stacking": {"compile": True}})
    assert plan_of(SMALL, user, ["launch.device=v100"]).stages[0].kernels.compile
    with pytest.raises(UserError, match="Triton needs compute capability"):
        plan_of(SMALL, user, ["launch.device=p40"])


def notes(user: dict[str, Any], recipe: str = SMALL, overrides: list[str] | None = None) -> str:
    return "\n".join(plan_of(recipe, json.dumps(user), overrides).warnings)


SILENT = SMALL.replace(", learning_rate: {peak: 1e-3}", "")


def test_all_contradictions_are_reported_together() -> None:
    user = {
        "optimizer": {"type": "Lamb", "params": {"lr": 1e-4, "betas": [0.8, 0.9], "eps": 1e-8, "weight_decay": 0.1}},
        "gradient_clipping": 0.5,
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
        "no_such_key": 1,
        "train_batch_size": 24,
        "bf16": {"enabled": True},
    }
    stated = "optimizer: {betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.01, clip: 1.0}\nprecision: fp32\n"
    with pytest.raises(UserError) as caught:
        plan_of(SMALL + stated, json.dumps(user))
    first, *rows, last = str(caught.value).splitlines()
    assert first == "ds.json: 9 things do not fit"
    assert {row.split()[0] for row in rows} == {
        "optimizer.type", "optimizer.params.betas", "optimizer.params.eps", "optimizer.params.weight_decay",
        "gradient_clipping", "scheduler.params.warmup_num_steps", "no_such_key", "train_batch_size", "bf16.enabled",
    }  # fmt: skip
    assert last.strip() == "settle it with: stacking adopt ds.json --recipe recipe.yaml --out DIR"


def test_the_jsons_values_apply_where_the_recipe_is_silent_and_the_plan_says_so() -> None:
    user = {
        "optimizer": {"type": "AdamW", "params": {"lr": 5e-4, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.0}},
        "gradient_clipping": 0.5,
    }
    plan = plan_of(SILENT, json.dumps(user))
    config = plan.stages[0].ds_config
    assert config["gradient_clipping"] == 0.5
    assert config["optimizer"]["params"]["betas"] == [0.9, 0.98]
    assert (plan.optimizer.eps, plan.optimizer.weight_decay, plan.optimizer.clip) == (1e-8, 0.0, 0.5)
    assert max(rate for _, rate in plan.stages[0].learning_rate) == 5e-4
    said = "\n".join(plan.warnings)
    assert "ds.json sets the optimizer's betas [0.9, 0.98], eps 1e-08, weight_decay 0.0, clip 0.5" in said
    assert "ds.json sets the peak of stages[0] to 0.0005" in said


def test_a_scheduler_is_the_schedule_where_the_recipe_has_none() -> None:
    user = {"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_max_lr": 1e-3, "warmup_num_steps": 4}}}
    stages = plan_of(SILENT, json.dumps(user)).stages
    assert stages[0].learning_rate[0] == (0, 0.0) and stages[1].learning_rate[-1][1] == pytest.approx(1e-3 / 16)


def test_a_rate_applies_to_the_stage_whose_peak_it_is() -> None:
    two_peaks = SMALL.replace("{layers: 4, steps: 10}", "{layers: 4, steps: 10, learning_rate: {peak: 5e-4}}")
    same = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
    assert "the recipe's own peak applies: 0.0005 in stages[1]" in notes(same, two_peaks)
    with pytest.raises(UserError, match=r"says 0\.001 for stages\[0\], 0\.0005 for stages\[1\]"):
        plan_of(two_peaks, json.dumps({"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}))


def test_stages_may_differ_in_weight_decay() -> None:
    own = "{optimizer: {type: AdamW, params: {weight_decay: 0.1}}}"
    text = SMALL.replace("{layers: 4, steps: 10}", f"{{layers: 4, steps: 10, ds_config: {own}}}")
    assert [s.ds_config["optimizer"]["params"]["weight_decay"] for s in plan_of(text).stages] == [0.01, 0.1]


@pytest.mark.parametrize(
    ("user", "device", "expected"),
    [
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": False}}, "a100", "fp16"),
        ({"fp16": {"enabled": False}, "bf16": {"enabled": "auto"}}, "v100", "fp32"),
        ({"fp16": {"enabled": False}, "bf16": {"enabled": "auto"}}, "a100", "bf16"),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": False}}, "v100", "fp16"),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": False}}, "cpu", "fp32"),
    ],
)
def test_what_is_switched_off_stays_off(user: dict[str, Any], device: str, expected: str) -> None:
    plan = plan_of(SMALL, json.dumps(user), [f"launch.device={device}", "launch.ranks=2"])
    assert plan.stages[0].precision == expected


def test_the_recipe_does_not_switch_on_what_the_json_switches_off() -> None:
    with pytest.raises(UserError, match=r"bf16\.enabled: is false, but the recipe's precision is bf16"):
        resolved({"bf16": {"enabled": False}}, SMALL + "precision: bf16\n")


@pytest.mark.parametrize("accumulation", [{}, {"gradient_accumulation_steps": 2}])
def test_following_the_advice_about_a_batch_works(accumulation: dict[str, int]) -> None:
    silent = SMALL.replace("batch_sequences: 8, ", "") + "launch: {ranks: 8}\n"
    user = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 16, **accumulation}
    with pytest.raises(UserError, match=r"make train_micro_batch_size_per_gpu 2.* \(2 x 1 x 8\)"):
        plan_of(silent, json.dumps(user))
    advised = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1}
    assert plan_of(silent, json.dumps(advised)).stages[0].global_batch == 16


READ = [
    ({"zero_optimization": True}, "zero_optimization.stage", 1),
    ({"zero_optimization": {"stage": "2"}}, "zero_optimization.stage", 2),
    ({"zero_optimization": {"stage": 2.0}}, "zero_optimization.stage", 2),
    ({"train_micro_batch_size_per_gpu": 4.0}, "train_micro_batch_size_per_gpu", 4),
    ({"fp16": {"enabled": "false"}}, "fp16.enabled", False),
    ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "zero_optimization.offload_optimizer.device", "cpu"),
    ({"bfloat16": {"enabled": True}}, "bf16.enabled", True),
    ({"optimizer": {"type": "FusedAdam"}}, "optimizer.type", "AdamW"),
    ({"optimizer": {"type": "Adam", "params": {"max_grad_norm": 0.3}}}, "gradient_clipping", 0.3),
    ({"gradient_clipping": "0.3"}, "gradient_clipping", 0.3),
    ({"wall_clock_breakdown": "true"}, "wall_clock_breakdown", True),
]


@pytest.mark.parametrize(("user", "path", "value"), READ)
def test_alternative_spellings_are_understood(user: dict[str, Any], path: str, value: Any) -> None:
    found: Any = resolved(user)
    for part in path.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "user",
    [
        {"_comment": "mine", "//": 1, "#x": {"y": 2}},
        {"gradient_clipping": None, "fp16": None, "steps_per_print": None},
        {"autotuning": None, "data_efficiency": None, "pipeline": None, "tensor_parallel": None},
        {"elasticity": {"enabled": False}, "autotuning": {"enabled": False}, "sparse_gradients": False},
        {"tensor_parallel": {"enabled": False}, "amp": {"enabled": False}},
    ],
)
def test_comments_nulls_and_disabled_sections_do_not_reach_deepspeed(user: dict[str, Any]) -> None:
    assert resolved(user) == resolved({})


NEIGHBOURS = {
    "max_grad_norm": "gradient_clipping",
    "bp16": "bf16",
    "checkpointing": "activation_checkpointing",
    "reduce_bucket_size": "zero_optimization.reduce_bucket_size",
    "weight_decay": "optimizer.params.weight_decay",
    "initial_scale_power": "fp16.initial_scale_power",
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_misplaced_and_foreign_names_are_recognised(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: is not a key of DeepSpeed; did you mean '{NEIGHBOURS[name]}'"):
        plan_of(SMALL, json.dumps({name: {} if name in ("bp16", "checkpointing") else 1}))


def test_sixty_thousand_unknown_keys_give_one_short_message() -> None:
    with pytest.raises(UserError) as caught:
        plan_of(SMALL, json.dumps({f"a_key_of_nobody_{i}": i for i in range(60_000)}))
    assert len(str(caught.value)) < 100_000 and "and 59,960 more" in str(caught.value)


def test_a_key_without_effect_is_reported_in_its_own_line() -> None:
    user = {"dataloader_drop_last": True, "compile": {"deepcompile": True}, "aio": {"block_size": 1}}
    said = notes(user)
    assert all(
        f"{key}: has no effect here" in said
        for key in ("dataloader_drop_last", "compile.deepcompile", "aio.block_size")
    )


def test_deepspeeds_activation_checkpointing_recomputes_the_layers() -> None:
    plan = plan_of(SMALL, '{"activation_checkpointing": {"partition_activations": true}}')
    assert all(stage.kernels.activation_checkpointing for stage in plan.stages)
    plan = plan_of(SMALL, '{"activation_checkpointing": {"partition_activations": false}}')
    assert not any(stage.kernels.activation_checkpointing for stage in plan.stages)


def test_parameters_are_checked_against_the_class_that_is_built() -> None:
    user = json.dumps({"optimizer": {"type": "Adam", "params": {"bias_correction": False}}})
    with pytest.raises(UserError, match=r"torch\.optim\.AdamW, built here, does not accept"):
        plan_of(SMALL, user)
    user = json.dumps({"optimizer": {"type": "FusedAdam", "params": {"bias_correction": False}}})
    params = plan_of(SMALL, user, ["launch.device=v100"]).stages[0].ds_config["optimizer"]["params"]
    assert params["bias_correction"] is False and params["torch_adam"] is False
    with pytest.raises(UserError, match=r"deepspeed\.ops\.adam\.FusedAdam, built here, does not accept"):
        plan_of(SMALL, '{"optimizer": {"type": "FusedAdam", "params": {"foreach": true}}}', ["launch.device=v100"])


def test_each_stage_writes_its_own_files() -> None:
    user = {
        "csv_monitor": {"enabled": True, "output_path": "out", "job_name": "berts"},
        "tensorboard": {"enabled": True},
        "flops_profiler": {"enabled": True, "output_file": "out/profile.txt"},
    }
    configs = [stage.ds_config for stage in plan_of(SMALL, json.dumps(user)).stages]
    assert [config["csv_monitor"]["job_name"] for config in configs] == ["berts/0-L2", "berts/1-L4"]
    assert configs[1]["tensorboard"]["job_name"] == "DeepSpeedJobName/1-L4"
    assert configs[0]["flops_profiler"]["output_file"] == "out/profile.0-L2.txt"


WITH_LAMB = SMALL + "optimizer: {type: lamb, weight_decay: 0.1}\n"


@pytest.mark.parametrize("where", ["launch.ranks=2", "launch.device=v100"])
def test_lamb_is_planned_without_zero_on_several_ranks_and_in_16_bits(where: str) -> None:
    stage = plan_of(WITH_LAMB, overrides=[where]).stages[0]
    assert stage.zero_stage == 0 and stage.ds_config["optimizer"]["type"] == "Lamb"
    assert stage.ds_config["optimizer"]["params"].keys() == {"lr", "betas", "eps", "weight_decay"}


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (
            {"zero_optimization": {"stage": 1}},
            "ds.json: zero_optimization.stage: cuts tensors, but the recipe's optimizer.type is lamb, which needs "
            "whole ones; give 0, or train with adam",
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"torch_adam": False}}},
            "ds.json: optimizer: configures Adam, but the recipe's optimizer.type is lamb; remove it here, and give "
            "its values in the recipe",
        ),
    ],
)
def test_what_does_not_go_with_lamb_is_refused(user: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(WITH_LAMB, json.dumps(user))
    assert str(caught.value).startswith(message)
