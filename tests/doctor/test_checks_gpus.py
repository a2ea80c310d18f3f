"""Findings about GPUs. All of them are tested with invented facts: no GPU is involved."""

from __future__ import annotations

from stacking.doctor.facts import Host, Tools, Torch
from tests.doctor.sample_machines import A100, CU130, H200, P40, V100, findings, machine, only, plan_for, torch_for


def test_a_p40_with_torch_for_cuda_13_cannot_train_and_builds_that_can_are_listed() -> None:
    found = only("architectures", machine(P40, cuda="13.0", architectures=CU130))
    assert (found.level, found.what) == ("error", "compute capability")
    assert "torch 2.13.0+cu130 (CUDA 13.0) has no code for sm_61" in found.found
    assert "2.14" in found.advice and "cu126" in found.advice


def test_a_p40_with_torch_for_cuda_12_6_runs_the_code_for_sm_60() -> None:
    good, note = findings("architectures", machine(P40))
    assert (good.level, "sm_60" in good.found) == ("ok", True)
    assert (note.level, note.what) == ("note", "upgrading torch")
    assert note.advice.startswith("stay with torch 2.14 or older")


def test_a_v100_with_torch_2_13_for_cuda_12_6_can_train() -> None:
    facts = machine(V100)
    good, note = findings("architectures", facts)
    assert (good.level, "sm_70" in good.found) == ("ok", True)
    assert "2.11 to 2.14" in note.advice
    assert only("triton", facts).level == "note" and "without tensor cores" in only("triton", facts).found


def test_a_v100_with_torch_for_cuda_13_cannot_train() -> None:
    found = only("architectures", machine(V100, cuda="13.0", architectures=CU130))
    assert found.level == "error" and "2.10 or older as pip offers it" in found.advice


def test_a_torch_older_than_the_gpu_should_be_upgraded() -> None:
    found = only("architectures", machine(H200, cuda="11.7", architectures=("sm_70", "sm_80")))
    assert found.level == "error" and "newer torch" in found.advice


def test_torch_without_cuda_on_a_gpu_machine_is_an_error_unless_the_plan_is_for_the_cpu() -> None:
    without = machine(A100).torch
    assert without is not None
    facts = machine(A100, torch=without.model_copy(update={"cuda": None, "gpus": (), "architectures": ()}))
    assert only("architectures", facts).level == "error"
    for_cpu = facts.model_copy(update={"plan": plan_for(accelerator="cpu")})
    assert findings("architectures", for_cpu) == []
    assert "the plan says cpu" in only("GPUs", for_cpu).found


def test_a_gpu_that_no_rank_uses_does_not_matter() -> None:
    facts = machine(A100, P40, cuda="13.0", architectures=CU130)
    assert [finding.level for finding in findings("architectures", facts)] == ["ok"]
    assert [f.level for f in findings("architectures", facts.model_copy(update={"ranks": 2}))] == ["error", "ok"]


def test_fp16_on_a_p40_is_refused_by_deepspeed() -> None:
    fp16, bf16 = findings("precision", machine(P40))
    assert (fp16.level, fp16.found.count("DeepSpeed rejects it")) == ("note", 1)
    assert (bf16.level, "emulated; DeepSpeed accepts it all the same" in bf16.found) == ("note", True)
    fp16, _ = findings("precision", machine(P40, plan=plan_for("fp16", device="p40")))
    assert (fp16.level, fp16.advice) == ("error", "set precision to fp32 in the recipe")


def test_bf16_on_a_v100_is_accepted_by_deepspeed_but_nine_times_slower() -> None:
    fp16, bf16 = findings("precision", machine(V100))
    assert (fp16.level, bf16.level) == ("ok", "note")
    assert "about 9 times slower" in bf16.found and "DeepSpeed accepts it all the same" in bf16.found
    _, planned = findings("precision", machine(V100, plan=plan_for("bf16")))
    assert (planned.level, planned.advice) == ("warning", "set precision to fp16 in the recipe")


def test_an_a100_supports_both_precisions_natively_and_some_cpus_bf16() -> None:
    assert [finding.level for finding in findings("precision", machine(A100))] == ["ok", "ok"]
    fast = machine(host=Host(name="n1", cpu_flags=("avx2", "avx512_bf16")))
    assert [finding.level for finding in findings("precision", fast)] == ["note", "ok"]
    slow = machine(host=Host(name="n1", cpu_flags=("avx2",)))
    assert [finding.level for finding in findings("precision", slow)] == ["note", "note"]


def test_emulated_bf16_on_a_cpu_is_a_warning_with_the_measured_slowdown_if_the_plan_uses_it() -> None:
    torch = Torch(version="2.13.0+cpu", backends=("gloo",), bf16_slowdown=7.26)
    host = Host(name="n1", cpu_flags=("avx2",))
    _, unasked = findings("precision", machine(host=host, torch=torch))
    _, asked = findings("precision", machine(host=host, torch=torch, plan=plan_for("bf16", "cpu", "cpu")))
    assert (unasked.level, asked.level) == ("note", "warning")
    assert "neither AVX512-BF16 nor AMX" in asked.found and "takes 7.3 times as long as in fp32" in asked.found
    assert asked.advice == "set precision to fp32 in the recipe"


def test_bf16_emulated_by_torch_despite_the_cpu_flags_is_reported() -> None:
    torch = Torch(version="2.13.0+cpu", backends=("gloo",), bf16_slowdown=40.0)
    _, found = findings("precision", machine(host=Host(name="n1", cpu_flags=("avx512_bf16",)), torch=torch))
    assert (found.level, "could compute it, but torch emulates it" in found.found) == ("note", True)


def test_triton_is_useless_on_a_p40_and_recommended_on_an_a100() -> None:
    assert "torch.compile refuses" in only("triton", machine(P40)).found
    without = torch_for("12.6", CU130, A100, triton=None)
    assert only("triton", machine(A100, torch=without)).level == "warning"
    assert only("triton", machine(A100)).level == "ok"


def test_a_driver_too_old_for_torchs_cuda_is_named_with_the_required_version() -> None:
    old = Tools(driver="535.183.01")
    found = only("driver", machine(H200, cuda="13.0", architectures=CU130, tools=old))
    assert found.level == "error" and "needs 580.65.06" in found.found and "newer one" in found.advice
    found = only("driver", machine(P40, cuda="13.0", architectures=CU130, tools=old))
    assert "branch 580, the last one for these GPUs" in found.advice
    assert only("driver", machine(A100, tools=old)).level == "ok"


def test_gpus_that_torch_cannot_reach_are_an_error_with_torchs_message() -> None:
    blind = torch_for("12.6", CU130, cuda_error="RuntimeError: CUDA unknown error")
    found = only("driver", machine(A100, torch=blind))
    assert found.level == "error" and "CUDA unknown error" in found.found
    hidden = Host(name="n1", environment={"CUDA_VISIBLE_DEVICES": ""})
    assert only("driver", machine(A100, torch=blind, host=hidden)).advice == "unset it"


def test_a_warning_says_that_a_container_without_nvidia_smi_plans_for_the_cpu() -> None:
    good, warning = findings("GPUs", machine(A100, gpus=()))
    assert (good.level, warning.level, warning.what) == ("ok", "warning", "nvidia-smi")
    assert "launch.device" in warning.advice


def test_mixed_gpus_are_a_warning() -> None:
    found = only("GPUs", machine(V100, P40))
    assert found.level == "warning" and "1 x Tesla V100" in found.found and "1 x Tesla P40" in found.found


def test_a_plan_for_gpus_needs_gpus_of_the_planned_kind() -> None:
    found = only("GPUs", machine(plan=plan_for()))
    assert (found.level, found.found) == ("error", "none, but the plan is for v100")
    assert only("GPUs", machine(plan=plan_for(), torch=None)).level == "warning"
    _, other = findings("GPUs", machine(P40, plan=plan_for(device="v100")))
    assert (other.level, other.found) == ("warning", "planned for v100, but this is p40")
    assert only("GPUs", machine()).level == "note"


def test_a_stage_that_does_not_fit_on_the_gpu_is_reported() -> None:
    plan = plan_for(device="p40")
    large = tuple(stage.model_copy(update={"memory_per_rank": 30 << 30}) for stage in plan.stages)
    _, found = findings("GPUs", machine(P40, plan=plan.model_copy(update={"stages": large})))
    assert found.what == "GPU memory" and "24 GiB, but the plan's estimate is 30.0" in found.found


def test_without_deepspeed_nothing_is_reported_about_what_it_accepts() -> None:
    found = findings("precision", machine(P40, deepspeed=None))
    assert len(found) == 2 and all("DeepSpeed accepts" not in finding.found for finding in found)
