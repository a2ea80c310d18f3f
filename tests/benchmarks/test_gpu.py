"""The command for GPUs, as far as it can be tested without one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from stacking.bench.targets import targets
from stacking.hardware.nvidia_smi import Gpu
from tools.benchmarks import gpu
from tools.benchmarks.gpu import Effort, Results
from tools.benchmarks.gpu_cases import CASES, Case
from tools.benchmarks.gpu_page import as_markdown
from tools.benchmarks.gpu_programs import Ended, Program, Setting

TOOL = Path(__file__).parents[2] / "tools" / "gpu_bench"


def stage(sequences_per_second: float, ratio: dict[str, float]) -> dict[str, Any]:
    rates = {"real_tokens_per_second": 128 * sequences_per_second, "sequences_per_second": sequences_per_second}
    return {
        "outcome": "measured",
        "message": "",
        "precision": "bf16",
        "micro_batch": 64,
        "accumulation": 1,
        "measurements": {"stacking": {**rates, "mfu": 0.512}},
        "ratio": ratio,
        "hardware": {"name": "NVIDIA H200", "version_torch": "2.13"},
    }


def test_a_missing_gpu_is_reported_in_one_line() -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    ran = subprocess.run([TOOL], env=environment, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr == "stacking: tools/gpu_bench: there is no CUDA device here; run it on a machine with one\n"
    assert ran.stdout == ""


@pytest.mark.parametrize("name", CASES)
def test_every_case_can_be_planned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for case in (CASES[name], CASES[name].small()):
        (target,) = targets(case.wanted)
        assert target.plan.stages[0].micro_batch == case.wanted.micro_batch
        assert target.plan.stages[0].ranks == 1


def test_cases_measured_before_stay_in_the_results(tmp_path: Path) -> None:
    results = Results(tmp_path, "NVIDIA H200")
    results.record("base-128", stage(1000, {"hugging-face": 2.5, "hugging-face-compiled": 1.61}))
    results.record("base-128-3", stage(3400, {"hugging-face": 4.0}))
    text = (tmp_path / "gpu-h200.md").read_text()
    assert "BERT-base, 128 tokens" in text
    assert "| 2.50 × | 1.61 × | 1.50 × |" in text
    assert "51.2%" in text
    assert "1 : 3.40" in text
    assert "NVIDIA H200" in text


def test_a_budget_measures_what_is_missing_and_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no GPU here: the card, the clock and the time of each case are faked.
    clock = [0.0]
    measured = []

    def measure_case(case: Case, effort: Effort, limit_seconds: float) -> dict[str, Any]:
        measured.append(case.title)
        clock[0] += min(limit_seconds, 250)
        return stage(1000, {})

    monkeypatch.setattr(gpu, "installed_gpus", lambda: [Gpu("0", "GPU-1", "NVIDIA H200", 141 << 30, 9.0)])
    monkeypatch.setattr(gpu, "find_machine", lambda: SimpleNamespace(accelerators=1))
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu, "measure_case", measure_case)
    command = ["--only", "base-128,large-128,large-512", "--budget", "9m", "--out", str(tmp_path)]

    first = CliRunner().invoke(gpu.gpu_bench, command)
    assert "The budget ended before large-512: run the same command again." in first.output
    second = CliRunner().invoke(gpu.gpu_bench, command)
    assert second.exit_code == 0 and "budget ended" not in second.output
    assert measured == [CASES[name].title for name in ("base-128", "large-128", "large-512", "large-512")]


def test_a_budget_that_is_not_a_duration_is_refused() -> None:
    refused = CliRunner().invoke(gpu.gpu_bench, ["--budget", "soon"])
    assert str(refused.exception) == "--budget: 'soon' is not a number of minutes; write it as 9m"


def test_a_case_that_did_not_run_is_shown_with_its_reason() -> None:
    full = {**stage(1, {}), "measurements": {}, "outcome": "out-of-memory", "message": "none left", "date": "today"}
    assert "out-of-memory: none left" in as_markdown({"cases": {"large-512": full}})


def test_a_contender_that_could_not_start_is_named_with_its_reason() -> None:
    case = {**stage(1, {}), "title": "BERT", "lost": {"hugging-face-compiled": "failed: no Triton"}, "date": "today"}
    assert "- BERT: no hugging-face-compiled: failed: no Triton" in as_markdown({"cases": {"large-512": case}})


def test_a_quick_look_has_a_file_of_its_own_that_says_so(tmp_path: Path) -> None:
    quick = Results(tmp_path, "NVIDIA H200", quick=True)
    quick.record("base-128", stage(1000, {}))
    assert "the numbers say nothing" in (tmp_path / "gpu-h200-quick.md").read_text()
    assert "base-128" not in Results(tmp_path, "NVIDIA H200").content()["cases"]


def test_a_command_goes_on_where_the_budget_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no GPU here: what a command does and how long it takes is faked.
    folders = []

    def measure_program(program: Program, setting: Setting, folder: Path, limit_seconds: float) -> dict[str, Any]:
        folders.append(folder)
        assert setting == Setting("fp16", quick=False)
        return {"title": program.title, "outcome": "measured", "message": "", "seconds": 3.0, "printed": "a table"}

    monkeypatch.setattr(gpu, "find_machine", lambda: SimpleNamespace(device=SimpleNamespace(precision="fp16")))
    monkeypatch.setattr(gpu, "measure_program", measure_program)
    results = Results(tmp_path, "Tesla V100")

    gpu.measure_until(gpu.math.inf, ["tune"], results, Effort(repeats=1, warmup=1))

    assert folders == [tmp_path / "gpu-tesla-v100" / "tune"]
    assert "```\na table\n```" in results.path.with_suffix(".md").read_text()


def test_a_kernel_is_shown_with_its_time_or_with_why_it_has_none() -> None:
    rows = [
        {"group": "Adam", "name": "fused", "seconds": 0.002, "ready_seconds": 31.0, "message": ""},
        {"group": "LAMB", "name": "fused", "seconds": None, "ready_seconds": None, "message": "no | kernel image"},
    ]
    text = as_markdown({"cases": {"operators": {"rows": rows, "message": ""}}})
    assert "| Adam | fused | 2.000 | 31.0 |  |" in text
    assert "| LAMB | fused |  |  | no / kernel image |" in text


def test_kernels_that_take_too_long_to_compile_go_on_in_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no GPU here: a stand-in takes the place of the program that compiles.
    def run_command(command: Any, folder: Path, limit_seconds: float, settings: dict[str, str]) -> Ended:
        assert settings["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "operators")
        assert command[-1] == "rows.json" and not list(folder.glob("*/lock"))
        (folder / "rows.json").write_text("[1]")
        return Ended("", "took longer than 5 s" if limit_seconds == 5 else "")

    monkeypatch.setattr(gpu, "run_command", run_command)
    killed = tmp_path / "operators" / "fused_adam" / "lock"
    killed.parent.mkdir(parents=True)
    killed.touch()
    cut_off = gpu.measure_operators(tmp_path / "operators", 5)
    assert cut_off == {"rows": [1], "message": "took longer than 5 s"} and killed.parent.exists()
    assert gpu.measure_operators(tmp_path / "operators", 60) == {"rows": [1], "message": ""}
    assert not killed.parent.exists()
