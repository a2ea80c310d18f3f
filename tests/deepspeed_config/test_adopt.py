"""`stacking adopt`: a row for every key, and files that can be planned unchanged."""

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
from stacking.deepspeed_config.findings import FinalConfig
from stacking.deepspeed_config.own_check import check_finals
from stacking.errors import UserError
from stacking.hardware.machine import Machine
from stacking.hardware.presets import DEVICE_CLASSES
from stacking.planning.adopt import CONFIG, RECIPE, Adopted, adopt, adopt_content, table
from stacking.planning.make_plan import make_plan
from tests.deepspeed_config.common_configs import CONFIGS
from tests.small_recipe import MACHINE, SMALL, plan_of

V100S = Machine(accelerators=8, device=DEVICE_CLASSES["v100"], memory=16 << 30, cores=8)
A100S = Machine(accelerators=8, device=DEVICE_CLASSES["a100"], memory=40 << 30, cores=8)


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
def test_common_configurations_can_be_planned_after_one_adopt_with_a_row_for_every_key(
    name: str, machine: Machine
) -> None:
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
def test_every_key_of_any_file_gets_a_row_and_a_plan_is_made(content: dict[str, Any]) -> None:
    result = adopted(content)
    assert {path for path, _ in leaves(content)} <= {row.key for row in result.rows}


def test_an_old_name_in_the_wrong_place_is_translated_too() -> None:
    result = adopted({"cpu_offload": True, "zero_optimization": {"stage": 2}})
    assert result.config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert not adopted({"cpu_offload": True}).config.get("zero_optimization")  # there is nothing to offload at stage 0


def test_the_written_files_can_be_planned_unchanged(tmp_path: Path) -> None:
    Path("ds.json").write_text(json.dumps(CONFIGS["Megatron, cosine"]))
    adopt(Path("ds.json"), "small.yaml", 4, Path("out"))
    recipe = load_recipe("out/" + RECIPE)
    plan = make_plan(recipe, None, None, MACHINE)
    stage = plan.stages[0]
    assert (stage.global_batch, stage.micro_batch, stage.ranks) == (256, 4, 4)
    assert plan.optimizer.betas == (0.9, 0.95) and plan.optimizer.eps == 1e-8
    assert recipe.schedule.kind == "WarmupCosineLR"
    assert json.loads((Path("out") / CONFIG).read_text())["fp16"]["initial_scale_power"] == 11
    with pytest.raises(UserError, match="already exists"):
        adopt(Path("ds.json"), "small.yaml", 4, Path("out"))


def test_a_file_that_is_not_a_configuration_is_refused() -> None:
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
        "optimizer.params.bias_correction": "impossible",
        "optimizer.params.max_coeff": "without meaning here",
        "optimizer.params.min_coeff": "without meaning here",
        "fp16.enabled": "moved to the recipe",
        "sparse_attention.mode": "impossible",
        "sparse_attention.block": "impossible",
    }


ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
downcast_bf16: 'no'
mixed_precision: no
num_processes: 8
something_new: 1
deepspeed_config:
  zero_stage: 2
  gradient_clipping: 0.5
  gradient_accumulation_steps: 1
  offload_optimizer_device: none
  zero3_init_flag: false
  deepspeed_multinode_launcher: standard
"""


def test_an_accelerate_config_is_read_with_a_row_for_every_key() -> None:
    Path("accelerate.yaml").write_text(ACCELERATE)
    result = adopt(Path("accelerate.yaml"), "small.yaml", None, Path("out"))
    assert result.config["zero_optimization"]["stage"] == 2
    assert (result.recipe["optimizer"]["clip"], result.recipe["precision"]) == (0.5, "fp32")
    assert yaml.safe_load((Path("out") / RECIPE).read_text())["ds_config"] == CONFIG
    said = verdicts(result)
    for path, _ in leaves(yaml.safe_load(ACCELERATE)):
        assert path in said
    assert said["something_new"] == "impossible"
    assert said["num_processes"] == said["deepspeed_config.zero3_init_flag"] == "without meaning here"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "train.yaml",
            "learning_rate: 1e-4\ndeepspeed: ds_z2.json\n",
            "deepspeed: refers .*; adopt ds_z2.json instead",
        ),
        ("train.json", '{"deepspeed": "ds_z2.json"}', "deepspeed: refers .*; adopt ds_z2.json instead"),
        (
            "a.yaml",
            "deepspeed_config: {deepspeed_config_file: z.json}",
            "deepspeed_config_file: refers .*z.json",
        ),
        ("other.yaml", "zero_optimization: {stage: 2}\n", "deepspeed_config: is missing"),
    ],
)
def test_a_file_that_refers_to_the_configuration_names_it(name: str, text: str, line: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(UserError, match=line):
        adopt(Path(name), "small.yaml", None, Path("out"))


def test_trainer_arguments_fill_in_what_their_deepspeed_configuration_leaves_open() -> None:
    content = {
        "learning_rate": 3e-4, "per_device_train_batch_size": 4, "max_grad_norm": 0.5, "bf16": True, "output_dir": "x",
        "deepspeed": {"zero_optimization": {"stage": 1}, "bf16": {"enabled": False}},
    }  # fmt: skip
    Path("args.json").write_text(json.dumps(content))
    Path("peakless.yaml").write_text(Path("small.yaml").read_text().replace("learning_rate: {peak: 1e-3}", ""))
    result = adopt(Path("args.json"), "small.yaml", 2, Path("out"))
    assert result.recipe["stages"][0]["learning_rate"]["peak"] == 3e-4
    assert (result.recipe["stages"][0]["micro_batch"], result.recipe["optimizer"]["clip"]) == (4, 0.5)
    assert result.recipe["precision"] == "fp32" and result.config["zero_optimization"] == {"stage": 1}
    said = verdicts(result)
    assert {"learning_rate", "per_device_train_batch_size", "max_grad_norm", "bf16", "output_dir"} <= said.keys()


@pytest.mark.parametrize(
    "text", ['{\n "train_batch_size": BATCH,\n "fp16": {"enabled": USE_FP16}\n}', '{"a": {{ b }}}']
)
def test_a_template_is_refused_but_an_uppercase_word_is_not(text: str) -> None:
    Path("ds.json").write_text(text)
    with pytest.raises(UserError, match=r"line \d: holds the placeholder '.*': it is a template"):
        adopt(Path("ds.json"), "small.yaml", None, Path("out"))
    Path("hjson.json").write_text("{\n train_batch_size: 8\n csv_monitor: {job_name: BERT\n enabled: true}\n}")
    assert adopt(Path("hjson.json"), "small.yaml", 2, Path("out")).config["csv_monitor"]["job_name"] == "BERT"


def test_an_unspecified_peak_is_chosen_and_reported() -> None:
    Path("small.yaml").write_text("stages: [{layers: 2, steps: 9, batch_sequences: 8}]\n")
    result = adopted({"zero_optimization": {"stage": 1}})
    assert result.recipe["stages"][0]["learning_rate"] == {"peak": 1e-4}
    assert "nothing says what it is; stages[0].learning_rate.peak: 0.0001" in table(result.rows)
    result = adopted({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}}})
    assert "schedule.warmup_max_lr: 0.0001" in table(result.rows)
    result = adopted({"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 3}}})
    assert "is not given; 0.001, DeepSpeed's default, applies" in table(result.rows)  # what DeepSpeed trains at


MOVED: list[tuple[dict[str, Any], str, Any]] = [
    ({"gradient_clip": 0.3}, "optimizer.clip", 0.3),
    ({"max_grad_norm": 0.3}, "optimizer.clip", 0.3),
    ({"gradient_cliping": 0.3}, "optimizer.clip", 0.3),
    ({"zero_optimization": {"stage": 1, "gradient_clipping": 0.3}}, "optimizer.clip", 0.3),
    ({"optimizer": {"type": "Adam", "eps": 1e-7}}, "optimizer.eps", 1e-7),
    ({"optimizer": {"type": "Adam", "betas": [0.9, 0.95]}}, "optimizer.betas", [0.9, 0.95]),
    ({"weight_decay": 0.2}, "optimizer.weight_decay", 0.2),
    ({"adam_epsilon": 1e-7}, "optimizer.eps", 1e-7),
    ({"optimizer": {"params": {"max_grad_norm": 0.3}}}, "optimizer.clip", 0.3),
]


@pytest.mark.parametrize(("content", "place", "value"), MOVED)
def test_a_value_in_the_wrong_place_or_under_another_name_is_moved(
    content: dict[str, Any], place: str, value: Any
) -> None:
    found: Any = adopted(content).recipe
    for part in place.split("."):
        found = found[part]
    assert found == value


def test_a_scheduler_inside_the_optimizer_is_the_schedule() -> None:
    inner = {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3, "warmup_num_steps": 5}}
    assert adopted({"optimizer": {"type": "AdamW", "scheduler": inner}}).recipe["schedule"]["warmup_max_lr"] == 1e-3


@pytest.mark.parametrize(("kind", "missing"), [("WarmupLR", 3e-5), ("WarmupDecayLR", 0.001)])
def test_a_peak_left_open_defaults_to_that_of_deepspeeds_class(kind: str, missing: float) -> None:
    optimizer = {"type": "Adam", "params": {"lr": 3e-5}}
    for stated, peak in (({"warmup_max_lr": "auto"}, 3e-5), ({"warmup_max_lr": None}, 3e-5), ({}, missing)):
        params = {"warmup_num_steps": 3, **stated}
        result = adopted({"optimizer": optimizer, "scheduler": {"type": kind, "params": params}})
        assert result.recipe["schedule"] == {"kind": kind, "warmup_num_steps": 3, "warmup_max_lr": peak}


def test_rates_of_a_cosine_become_its_peak_and_a_share_of_it() -> None:
    params = {"warmup_min_lr": 3e-5, "warmup_max_lr": 3e-4, "warmup_num_steps": 2}
    for optimizer, peak in (({}, 3e-4), ({"optimizer": {"type": "Adam", "params": {"lr": 6e-4}}}, 6e-4)):
        schedule = adopted({**optimizer, "scheduler": {"type": "WarmupCosineLR", "params": params}}).recipe["schedule"]
        assert schedule.pop("warmup_min_ratio") == pytest.approx(3e-5 / peak)
        assert schedule == {"kind": "WarmupCosineLR", "warmup_num_steps": 2, "peak": peak}
    with pytest.raises(UserError, match=r"warmup_min_lr .*takes a share of the peak +give warmup_min_ratio: 0.1"):
        Path("small.yaml").write_text(SMALL.replace(", learning_rate: {peak: 1e-3}", ""))
        plan_of(Path("small.yaml").read_text(), json.dumps({"scheduler": {"type": "WarmupCosineLR", "params": params}}))


@pytest.mark.parametrize("key", ["warmup_num_steps", "total_num_steps", "warmup_max_lr"])
def test_a_zero_that_deepspeed_cannot_train_with_has_a_row(key: str) -> None:
    params = {"warmup_max_lr": 1e-3, "warmup_num_steps": 2, key: 0}
    result = adopted({"scheduler": {"type": "WarmupDecayLR", "params": params}})
    (row,) = [row for row in result.rows if row.key == f"scheduler.params.{key}"]
    assert row.problem.startswith("is 0")
    assert result.recipe["schedule"].get(key) == {"warmup_num_steps": 1, "warmup_max_lr": 0.001}.get(key)


@pytest.mark.parametrize(
    ("name", "like"), [("CosineAnnealingLR", "WarmupCosineLR"), ("linear", "WarmupDecayLR"), ("CyclicLR", "OneCycle")]
)
def test_another_librarys_schedule_is_left_out_and_the_closest_one_named(name: str, like: str) -> None:
    result = adopted({"scheduler": {"type": name, "params": {"T_max": 9}}})
    assert "schedule" not in result.recipe and f"the nearest is '{like}'" in table(result.rows)


def test_monitors_nested_in_a_section_are_moved_out_of_it() -> None:
    result = adopted(CONFIGS["CoLLiE, monitors in a section"])
    assert result.config["csv_monitor"] == {"enabled": True, "output_path": "csv"}
    said = verdicts(result)
    assert said["monitor_config.csv_monitor.output_path"] == "translated" and said["monitor_config.tag"] == "impossible"
    assert "csv_monitor" not in adopted({"monitor_config": {"enabled": False, "csv_monitor": {"enabled": True}}}).config


@pytest.mark.parametrize(
    ("content", "left"),
    [
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, {"device": "cpu"}),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": True}}, {"device": "cpu"}),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": False}}, {"device": "none"}),
    ],
)
def test_a_device_alone_stands_for_its_section(content: dict[str, Any], left: dict[str, Any]) -> None:
    assert adopted(content).config["zero_optimization"]["offload_optimizer"] == left


def test_a_flag_in_place_of_a_section_is_translated_not_rejected() -> None:
    result = adopted({"bf16": True, "fp16": False}, A100S)
    assert result.recipe["precision"] == "bf16" and verdicts(result)["bf16"] == "translated"


def test_auto_asks_for_the_trainers_argument() -> None:
    content = {"learning_rate": 2e-4, "per_device_train_batch_size": 4, "optimizer": {"params": {"lr": "auto"}},
               "train_micro_batch_size_per_gpu": "auto"}  # fmt: skip
    Path("peakless.yaml").write_text(Path("small.yaml").read_text().replace("learning_rate: {peak: 1e-3}", ""))
    stage = adopt_content(content, "peakless.yaml", 2, MACHINE, "args.json").recipe["stages"][0]
    assert (stage["learning_rate"]["peak"], stage["micro_batch"]) == (2e-4, 4)


def test_keys_that_bf16_does_not_need_are_ignored_as_in_earlier_versions() -> None:
    bf16 = {"enabled": True, "loss_scale": 0, "loss_scale_window": 500, "auto_cast": True}
    result = adopted({"bf16": bf16, "communication_data_type": "bfp16"}, A100S)
    assert verdicts(result)["bf16.loss_scale"] == verdicts(result)["bf16.auto_cast"] == "without meaning here"
    assert result.config == {"bf16": {"enabled": "auto"}, "communication_data_type": "bf16"}


def test_values_that_only_deepspeed_refuses_are_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("ds.json").write_text('{"gradient_allreduce_op": "sum", "zero_optimization": {"stage": 3}}')
    result = adopt(Path("ds.json"), "small.yaml", None, Path("out"))
    assert result.config == {"zero_optimization": {"stage": 3}}
    (row,) = [row for row in result.rows if row.key == "gradient_allreduce_op"]
    assert row.verdict == "impossible" and "not supported with ZeRO stage 3" in row.problem
    check_finals(result.finals)


def test_a_misspelt_key_is_reported_with_the_key_it_is_read_as() -> None:
    rows = adopted({"flops_profiler": {"enabled": True, "profil_step": 2}}).rows
    assert "is not a key of flops_profiler; read as flops_profiler.profile_step" in table(rows)


def test_deepspeed_accepts_every_adopted_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one process; the ranks would die from what it refuses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    finals = []
    for name, content in CONFIGS.items():
        for machine in (MACHINE, V100S, A100S):
            result = adopted(content, machine)
            recipe = recipe_from({**copy.deepcopy(result.recipe), "ds_config": result.config}, Path("recipe.yaml"))
            stage = make_plan(recipe, None, None, machine).stages[-1]
            finals.append(FinalConfig(f"{name} on {machine.device.name}", stage.name, stage.ds_config, stage.ranks))
    check_finals(finals)


def test_what_does_not_go_with_the_recipe_s_lamb_is_left_out() -> None:
    Path("lamb.yaml").write_text(SMALL + "optimizer: {type: lamb}\n")
    user = {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.98], "torch_adam": False}},
    }
    result = adopted(user, recipe="lamb.yaml")
    assert result.recipe["optimizer"] == {"type": "lamb", "betas": [0.9, 0.98]}
    assert verdicts(result)["zero_optimization.stage"] == verdicts(result)["optimizer.type"] == "impossible"
