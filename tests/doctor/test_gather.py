"""Gathering: real processes, including some that are missing, broken, hanging or killed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from stacking.doctor.examine import as_facts
from stacking.doctor.facts import Facts
from stacking.doctor.gather import ALWAYS, gather, probe

QUICK = ["host", "tools", "gpus", "packages"]


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules take precedence over the installed ones."""
    folder = tmp_path / "shadows"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", os.getcwd())]))
    return folder


def module(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


def test_all_facts_are_gathered_on_this_machine(tmp_path: Path) -> None:
    facts = as_facts(gather(tmp_path))
    assert facts.failures == {}
    assert facts.torch is not None and facts.torch.version == facts.packages["torch"]
    assert facts.deepspeed is not None and facts.deepspeed.ops
    assert facts.host.affinity == len(os.sched_getaffinity(0)) and facts.host.memory > 1 << 28
    assert facts.folder is not None and facts.folder.write and facts.folder.read
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_rest_is_still_found(shadows: Path) -> None:
    module(shadows, "torch", "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    found, failures = probe(ALWAYS)
    assert failures["torch"] == "ModuleNotFoundError: No module named 'torch'"
    assert "deepspeed" in failures and set(QUICK) <= set(found)


def test_a_section_that_crashes_is_named_and_the_others_still_run(shadows: Path) -> None:
    module(shadows, "apex", "import os; os.kill(os.getpid(), 11)")
    found, failures = probe(["host", "apex", "packages"])
    assert failures == {"apex": "it was killed by SIGSEGV"}
    assert set(found) == {"host", "packages"} and found["packages"]["apex"] == "unknown"


def test_a_section_that_hangs_times_out_and_the_others_still_run(shadows: Path) -> None:
    module(shadows, "apex", "import time; time.sleep(60)")
    started = time.monotonic()
    found, failures = probe(["host", "apex", "packages"], patience=3)
    assert failures == {"apex": "no answer for 3 s"} and set(found) == {"host", "packages"}
    assert time.monotonic() - started < 30


def test_what_a_module_prints_is_not_taken_for_an_answer(shadows: Path) -> None:
    noise = 'import os; print(\'{"section": "host"}\'); os.write(1, b\'{"section": "tools"}\\n\')'
    module(shadows, "apex", noise)
    found, failures = probe(["apex"])
    assert failures == {} and found["apex"]["missing"] == ["optimizers.FusedAdam", "normalization.FusedLayerNorm"]


def test_nvidias_apex_is_recognised_by_its_contents(shadows: Path) -> None:
    module(shadows, "apex", "")
    for name, attribute in {"optimizers": "FusedAdam", "normalization": "FusedLayerNorm"}.items():
        (shadows / "apex" / f"{name}.py").write_text(f"class {attribute}: pass")
    assert probe(["apex"])[0]["apex"]["missing"] == []


def test_a_module_that_ends_the_process_is_a_failure(shadows: Path) -> None:
    module(shadows, "apex", "raise SystemExit(3)")
    assert probe(["apex"])[1] == {"apex": "SystemExit: 3"}
    (shadows / "apex" / "__init__.py").write_text("import os; os._exit(0)")
    assert probe(["apex"])[1] == {"apex": "it ended without an answer"}


def test_a_container_that_cannot_start_is_one_failure() -> None:
    found, failures = probe(QUICK, container=["/no/apptainer", "exec"])
    assert found == {} and failures == {"probe": "/no/apptainer: No such file or directory"}
    _, failures = probe(QUICK, container=["sh", "-c", "echo no image >&2; exit 255"])
    assert failures == {"probe": "no image"}


def test_the_container_command_precedes_the_interpreter(tmp_path: Path) -> None:
    found, failures = probe(["host"], container=["env", "OMP_NUM_THREADS=7"])
    assert failures == {} and found["host"]["environment"]["OMP_NUM_THREADS"] == "7"


def test_without_programs_no_compiler_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found, failures = probe(["tools", "gpus"])
    assert failures == {} and found["gpus"] == []
    assert [found["tools"][name] for name in ("nvcc", "compiler", "mpirun", "srun", "driver")] == [None] * 5


def test_gpus_are_read_from_the_output_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is a fake: it prints what nvidia-smi prints for two cards, and for one that is broken."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!{sys.executable}\n"
        "print('0, GPU-1, Tesla P40, 24451, 6.1\\n1, GPU-2, NVIDIA H200, 143771, 9.0\\n2, , [Error], , [N/A]')"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    facts = as_facts(probe(["gpus"])[0])
    assert [(gpu.name, gpu.memory >> 30, gpu.capability) for gpu in facts.gpus] == [
        ("Tesla P40", 23, (6, 1)),
        ("NVIDIA H200", 140, (9, 0)),
    ]


def test_a_malformed_answer_becomes_a_failure_and_the_rest_is_kept() -> None:
    facts = as_facts({"host": {"name": "n1"}, "torch": {"versoin": "2"}, "failures": {"folder": "gone"}})
    assert facts.host.name == "n1" and facts.torch is None
    assert set(facts.failures) == {"folder", "torch"} and "unexpected answer" in facts.failures["torch"]
    assert as_facts({}) == Facts()
