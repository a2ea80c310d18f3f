"""Plans: everything resolved, the same every time, and refused when it cannot happen."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.cli import plan_text as plan_command
from stacking.cli.plan_report import explain_text
from stacking.config.recipe import RECIPES, load_recipe
from stacking.errors import UserError
from stacking.hardware.machine import Machine
from stacking.hardware.presets import DEVICE_CLASSES, cpu_class
from stacking.planning.cost import state_bytes
from stacking.planning.make_plan import make_plan
from stacking.planning.plan import check_machine, load_plan, write_plan
from stacking.storage.files import write_sealed
from tests.small_recipe import MACHINE, MANIFEST, SMALL, plan_of

WRONG = {
    "heads do not divide": (
        "heads: 2",
        "heads: 3",
        "model.heads: is 3, which does not divide hidden 64; give 2",
    ),
    "sequence too long": (
        "sequence_length: 32",
        "sequence_length: 128",
        "data.sequence_length: is 128, but the model has 64 positions; give at most 64, or raise model.max_positions",
    ),
    "layers shrink": (
        "layers: 4",
        "layers: 1",
        "stages[1].layers: is 1 after 2; layers can only grow",
    ),
    "layers not reachable": (
        "layers: 4",
        "layers: 5",
        "stages[1].layers: is 5, which stack cannot grow from 2; give 4, or growth.operator: identity",
    ),
    "batch does not divide": (
        "batch_sequences: 8",
        "batch_sequences: 9, ranks: 2",
        "stages[0].batch_sequences: is 9, not a multiple of 2 ranks; give 8 or 10",
    ),
    "batch does not divide by the micro-batch": (
        "batch_sequences: 8",
        "batch_sequences: 10, ranks: 2, micro_batch: 4",
        "stages[0].batch_sequences: is 10, not a multiple of 2 ranks x micro-batch 4 = 8; give 8 or 16",
    ),
    "batch not whole sequences": (
        "batch_sequences: 8",
        "batch_tokens: 100",
        "stages[0].batch_tokens: is 100, not whole sequences of 32 tokens; give 96 or 128",
    ),
    "batch in tokens does not divide": (
        "batch_sequences: 8",
        "batch_tokens: 96, ranks: 2",
        "stages[0].batch_tokens: is 96 (3 sequences), not a multiple of 2 ranks; give 64 or 128",
    ),
    "no batch": (
        "batch_sequences: 8, ",
        "",
        "stages[0].batch_sequences: is missing; add it: sequences per update, over all ranks",
    ),
    "no learning rate": (
        ", learning_rate: {peak: 1e-3}",
        "",
        "stages[0].learning_rate.peak: is missing; add it: the highest learning rate, such as 1e-4",
    ),
    "warm-up longer than the stage": (
        "peak: 1e-3",
        "peak: 1e-3, warmup_steps: 20",
        "stages[0].learning_rate.warmup_steps: is 20, more than the 10 steps; give fewer",
    ),
    "a decay that erases the weights": (
        "name: small",
        "optimizer: {weight_decay: 1000}",
        "optimizer.weight_decay: is 1000, which at a learning rate of 0.001 erases the weights in every update; "
        "give less than 1000; 0.01 is usual",
    ),
    "re-warm-up longer than the stage": (
        "name: small",
        "schedule: {rewarmup_steps: 20}",
        "schedule.rewarmup_steps: is 20, but stages[1] has 10 steps; give fewer",
    ),
    "stage rate under a run-wide schedule": (
        "name: small",
        "schedule: {kind: warmup-stable-decay, peak: 1e-3}",
        "stages[0].learning_rate: cannot be used in a warmup-stable-decay schedule; remove it, or schedule.kind",
    ),
    "warm-up meets decay": (
        SMALL,
        SMALL.replace(", learning_rate: {peak: 1e-3}", "")
        + "schedule: {kind: warmup-stable-decay, peak: 1e-3, warmup_steps: 19}\n",
        "schedule.warmup_steps: is 19, which with 4 steps of decay exceeds the run's 20; give at most 16",
    ),
    "more tokens than the epochs hold": (
        "sequence_length: 32",
        "sequence_length: 32, max_epochs: 1",
        "stages[1].steps: 10 steps end in epoch 1.60 of 1 allowed; give at most 2 steps, or raise data.max_epochs",
    ),
    "vocabulary smaller than the data's": (
        "hidden: 64",
        "vocabulary: 500, hidden: 64",
        "model.vocabulary: the model has 500 token embeddings, but the data 1,000 tokens; prepare the data "
        "with the model's own tokenizer",
    ),
    "cuda without a GPU": (
        "name: small",
        "launch: {accelerator: cuda}",
        "launch.accelerator: is cuda, but there is no GPU here; set it to cpu, or name the class to plan for "
        "as launch.device",
    ),
    "class and accelerator disagree": (
        "name: small",
        "launch: {accelerator: cpu, device: v100}",
        "launch.device: is v100, but the accelerator is cpu; remove one",
    ),
    "fp16 on a CPU": (
        "name: small",
        "precision: fp16",
        "precision: fp16 on cpu: CPUs emulate it; use fp32",
    ),
    "fp16 on a P40": (
        "name: small",
        "precision: fp16\nlaunch: {device: p40, ranks: 1}",
        "precision: fp16 on p40: Pascal has no tensor cores and computes it no faster than fp32, and "
        "DeepSpeed rejects it on compute capability 6.x; use fp32",
    ),
    "bf16 on a V100": (
        "name: small",
        "precision: bf16\nlaunch: {device: v100, ranks: 1}",
        "precision: bf16 on v100: Volta emulates it, about 9 times slower than fp16 (measured GEMM: 10.7 "
        "against 97.4 TFLOPS); use fp16",
    ),
    "start is missing": (
        "name: small",
        "start: nowhere",
        "start: nowhere is not a folder; give a state folder or a Hugging Face folder",
    ),
    "ds_config is missing": (
        "name: small",
        "ds_config: nowhere.json",
        "ds_config: nowhere.json does not exist; give a path relative to the recipe or to here",
    ),
}
"""Name: what to replace in the recipe, by what, and the line that must come out, after ``recipe.yaml: ``."""

BERT_BASE = {
    "model_type": "bert",
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "vocab_size": 1000,
    "max_position_embeddings": 64,
    "hidden_act": "gelu",
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", WRONG)
def test_an_impossible_plan_gives_one_line(name: str) -> None:
    old, new, line = WRONG[name]
    assert old in SMALL
    with pytest.raises(UserError) as caught:
        plan_of(SMALL.replace(old, new, 1))
    assert str(caught.value) == f"recipe.yaml: {line}"
    assert caught.value.exit_code == 2


def test_complaints_about_all_stages_are_reported_together() -> None:
    first = SMALL.replace("batch_sequences: 8", "batch_sequences: 9, ranks: 2")
    text = first.replace(
        "{layers: 4, steps: 10}", "{layers: 5, steps: 10, batch_tokens: 33, resources: {min_nodes: 1}}"
    )
    with pytest.raises(UserError) as caught:
        plan_of(text.replace("peak: 1e-3", "peak: 1e-3, warmup_steps: 11"))
    head, *lines = str(caught.value).splitlines()
    assert head == "recipe.yaml: 5 things do not fit"
    assert [line.split()[0] for line in lines] == [
        "stages[0].batch_sequences",
        "stages[1].batch_tokens",
        "stages[1].resources.min_nodes",
        "stages[1].layers",
        "stages[0].learning_rate.warmup_steps",
    ]


def test_a_stage_does_not_repeat_the_complaint_about_the_batch_it_inherits() -> None:
    with pytest.raises(UserError) as caught:
        plan_of(SMALL.replace("batch_sequences: 8", "batch_sequences: 9"), overrides=["launch.ranks=2"])
    assert str(caught.value).count("ranks") == 1


def test_adopting_is_not_suggested_for_what_no_configuration_says() -> None:
    with pytest.raises(UserError) as caught:
        plan_of(SMALL.replace("layers: 4", "layers: 5"), ds_config="{}")
    assert "stacking adopt" not in str(caught.value)


def test_the_published_recipe_is_the_published_schedule() -> None:
    plan = make_plan(load_recipe("bert-base-p40"), None, None, MACHINE)
    assert [(s.layers, s.steps, s.tokens // s.steps) for s in plan.stages] == [
        (3, 50_000, 102_400),
        (6, 70_000, 114_688),
        (12, 280_000, 122_880),
    ]
    assert [(s.micro_batch, s.accumulation, s.ranks) for s in plan.stages] == [(200, 1, 4), (112, 2, 4), (80, 3, 4)]
    assert [s.learning_rate for s in plan.stages] == [
        ((0, 1e-7), (10_000, 8e-4), (50_000, 5.5e-4)),
        ((0, 5.5e-4), (70_000, 3e-4)),
        ((0, 3e-4), (280_000, pytest.approx(3e-4 * 520 / 800))),
    ]
    assert [s.parameters for s in plan.stages] == pytest.approx([47.0e6, 68.3e6, 110.8e6], rel=1e-3)
    assert plan.optimizer.model_dump() == {
        "type": "adam", "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "weight_decay_on": "all", "clip": 0.0,
    }  # fmt: skip
    assert all(s.precision == "fp32" for s in plan.stages)
    assert [s.growth and (s.growth.operator, s.growth.optimizer_state) for s in plan.stages] == [
        None,
        ("stack", "reset"),
        ("stack", "reset"),
    ]
    assert (plan.model.variant, plan.model.positions, plan.model.norm_affine) == ("pre_ln", "sinusoidal", False)
    assert sum(s.tokens for s in plan.stages) == pytest.approx(47.6e9, rel=1e-3)


def test_the_explanation_answers_a_readers_questions() -> None:
    text = explain_text(make_plan(load_recipe("bert-base-p40"), None, None, MACHINE))
    for fact in ("110.8 M", "50,000", "960 = 80 x 3 x 4", "122,880", "0.0003 → 0.000195", "GiB", "84.2%", "epochs"):
        assert fact in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_the_same_recipe_gives_the_same_bytes(name: str) -> None:
    first, second = (make_plan(load_recipe(name), MANIFEST, 10**9, MACHINE) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert first.digest == second.digest


def test_a_plan_reads_back_from_its_file(tmp_path: Path) -> None:
    plan = plan_of(SMALL)
    write_plan(tmp_path / "plan.json", plan)
    assert load_plan(tmp_path / "plan.json") == plan
    write_sealed(tmp_path / "plan.json", {**plan.model_dump(mode="json"), "format": 2})
    with pytest.raises(UserError, match="not a plan that this version can read"):
        load_plan(tmp_path / "plan.json")


def test_stages_follow_each_other_without_a_gap() -> None:
    first, second = plan_of(SMALL).stages
    assert (first.first_sample, first.last_sample, second.first_sample, second.last_sample) == (0, 80, 80, 160)
    assert (first.first_step, second.first_step) == (0, 10)
    assert first.epochs == 0.8
    assert (first.name, second.name) == ("0-L2", "1-L4")


@given(st.integers(1, 400), st.integers(1, 8), st.one_of(st.none(), st.integers(1, 40)))
def test_a_batch_is_exactly_micro_times_accumulation_times_ranks(total: int, ranks: int, micro: int | None) -> None:
    overrides = [
        f"stages[0].batch_sequences={total}",
        f"launch.ranks={ranks}",
        f"stages[0].micro_batch={micro or 'auto'}",
    ]
    if total % (ranks * (micro or 1)):
        with pytest.raises(UserError, match="not a multiple of"):
            plan_of(SMALL, overrides=overrides)
    else:
        stage = plan_of(SMALL, overrides=overrides).stages[0]
        assert stage.micro_batch * stage.accumulation * stage.ranks == stage.global_batch == total


@given(st.integers(1, 10**7))
def test_tokens_are_rounded_up_to_whole_updates(tokens: int) -> None:
    text = SMALL.replace("{layers: 4, steps: 10}", f"{{layers: 4, tokens: {tokens}}}")
    stage = plan_of(text).stages[1]
    assert 0 <= stage.tokens - tokens < 8 * 32


def test_automatic_ranks_divide_the_batches() -> None:
    three = Machine(3, DEVICE_CLASSES["a100"], 40 << 30, 16)
    Path("recipe.yaml").write_text(SMALL)
    plan = make_plan(load_recipe("recipe.yaml"), MANIFEST, 100, three)
    assert (plan.launch.accelerator, plan.stages[0].ranks, plan.stages[0].precision) == ("cuda", 2, "bf16")


AVX2, AVX512_BF16 = (replace(MACHINE, device=row, cpu=row) for row in (cpu_class(False), cpu_class(True)))


@pytest.mark.parametrize(("machine", "precision"), [(AVX2, "fp32"), (AVX512_BF16, "bf16")])
def test_automatic_precision_on_a_cpu_is_one_supported_by_the_hardware(machine: Machine, precision: str) -> None:
    Path("recipe.yaml").write_text(SMALL)
    plan = make_plan(load_recipe("recipe.yaml"), MANIFEST, 100, machine)
    assert {stage.precision for stage in plan.stages} == {precision}
    assert not [warning for warning in plan.warnings if "bf16" in warning]


def test_emulated_bf16_is_allowed_with_a_warning_that_gives_the_measured_slowdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("recipe.yaml").write_text(SMALL + "precision: bf16\n")
    monkeypatch.setattr(plan_command, "find_machine", lambda: AVX2)
    plan = make_plan(load_recipe("recipe.yaml"), MANIFEST, 100, AVX2)
    shown = explain_text(plan, notes=plan_command.precision_notes(plan, measure=lambda: 7.26))
    assert "bf16 is slow: this CPU emulates it: torch finds neither AVX512-BF16 nor AMX; set precision to auto" in shown
    assert "measured here: a matrix product in bf16 takes 7.3 times as long as in fp32" in shown
    fast = make_plan(load_recipe("recipe.yaml"), MANIFEST, 100, AVX512_BF16)
    assert "emulates" not in explain_text(fast)


@pytest.mark.parametrize("named", [{"type": "FusedAdam"}, {"type": "AdamW", "params": {"torch_adam": False}}])
def test_deepspeeds_own_adam_is_compiled_only_when_requested_by_name(named: dict[str, Any]) -> None:
    machine = Machine(2, DEVICE_CLASSES["a100"], 40 << 30, 16)
    for text, torchs in ((SMALL, True), (f"{SMALL}ds_config: {json.dumps({'optimizer': named})}\n", False)):
        Path("recipe.yaml").write_text(text)
        plan = make_plan(load_recipe("recipe.yaml"), MANIFEST, 100, machine)
        assert plan.stages[0].ds_config["optimizer"]["params"]["torch_adam"] is torchs
        assert any("compiles its own Adam" in warning for warning in plan.warnings) is not torchs


def test_growth_may_differ_between_stages() -> None:
    text = SMALL.replace("{layers: 4, steps: 10}", "{layers: 5, steps: 10, growth: {operator: identity}}")
    growth = plan_of(text + "growth: {optimizer_state: copy}\n").stages[1].growth
    assert growth is not None
    assert (growth.operator, growth.optimizer_state) == ("identity", "copy")


def test_a_run_may_start_from_a_hugging_face_model_and_grow_immediately() -> None:
    Path("pretrained").mkdir()
    Path("pretrained/config.json").write_text(json.dumps(BERT_BASE))
    text = "start: pretrained\ndata: {sequence_length: 32}\n" + SMALL[SMALL.index("stages:") :]
    plan = plan_of(text.replace("layers: 2", "layers: 6").replace("layers: 4", "layers: 12"))
    assert (plan.start_format, plan.model.layers, plan.model.hidden) == ("huggingface", 6, 64)
    assert plan.stages[0].growth is None
    plan = plan_of(text.replace("layers: 2", "layers: 12").replace("layers: 4", "layers: 12"))
    assert plan.stages[0].growth is not None
    assert plan.stages[1].growth is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"vocab_size": 900}, "start: the model has 900 token embeddings, but the data 1,000 tokens; prepare the data "
         "with the model's own tokenizer"),
        ({"hidden_size": 128}, "model.hidden: is 64, but the model to start from has 128; remove the key"),
        ({"num_hidden_layers": 4}, "stages[0].layers: is 2 after 4; layers can only grow"),
    ],
)  # fmt: skip
def test_an_unsuitable_initial_model_gives_one_line(change: dict[str, int], line: str) -> None:
    Path("pretrained").mkdir()
    Path("pretrained/config.json").write_text(json.dumps({**BERT_BASE, "num_hidden_layers": 2, **change}))
    text = SMALL + "start: pretrained\n"
    if "hidden" not in line:
        text = text.replace("model: {hidden: 64, heads: 2, max_positions: 64}\n", "")
    with pytest.raises(UserError) as caught:
        plan_of(text)
    assert str(caught.value) == f"recipe.yaml: {line}"


def test_a_start_folder_without_a_model_is_refused() -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match="start: empty holds no model; give a state folder or a Hugging Face folder"):
        plan_of(SMALL + "start: empty\n")


def test_a_plan_for_gpus_is_not_run_without_gpus() -> None:
    plan = make_plan(load_recipe("bert-base-p40"), None, None, MACHINE)
    with pytest.raises(UserError, match=r"bert-base-p40\.yaml: needs 4 GPUs, but this machine has 0"):
        check_machine(plan, MACHINE)


def test_a_plan_without_data_is_not_run() -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml: data\.path: is missing"):
        check_machine(plan_of(SMALL), MACHINE)


def test_a_stage_that_may_not_fit_is_pointed_out() -> None:
    Path("recipe.yaml").write_text(SMALL)
    tiny = replace(MACHINE, memory=1 << 20)
    plan = make_plan(load_recipe("recipe.yaml"), MANIFEST, 100, tiny)
    assert any("0-L2 needs about" in warning for warning in plan.warnings)


def test_zero_shards_what_its_stage_says_and_copies_the_weights() -> None:
    def of(stage: int, **more: object) -> int:
        return state_bytes(1000, 4, {"zero_optimization": {"stage": stage, "reduce_bucket_size": 0, **more}}, cuda=True)

    assert [of(stage) for stage in range(4)] == [16_000, 11_000, 8_000, 5_000]
    assert of(2, offload_optimizer={"device": "cpu"}) == 5_000


def test_planning_never_loads_torch() -> None:
    script = (
        "import sys; from stacking.config.recipe import load_recipe; from stacking.planning.make_plan import make_plan;"
        "from stacking.cli.plan_report import explain_text; from stacking.hardware.machine import find_machine;"
        "explain_text(make_plan(load_recipe('bert-base-p40'), None, None, find_machine()));"
        "print(*{'torch', 'deepspeed', 'transformers'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
@pytest.mark.parametrize("content", ["[1]", '"text"', "3"])
def test_a_start_with_the_wrong_json_type_is_reported_in_one_line(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}: is not a JSON object"):
        plan_of(SMALL + "start: state\n")
