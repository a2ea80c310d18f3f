"""The commands that gpu_bench runs: stand-ins take their place, since what they measure needs a GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from stacking.config.recipe import load_recipe
from tools.benchmarks import gpu_programs
from tools.benchmarks.gpu_programs import PROGRAMS, Command, Program, Setting, measure_program

SETTING = Setting("bf16", quick=False)
QUICK = Setting("bf16", quick=True)


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that does what its arguments say."""
    (tmp_path / "stand_in.py").write_text("import pathlib, sys, time; exec(sys.argv[1])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def program(*lines: str, resumes: bool = False) -> Program:
    commands: Sequence[Command] = [("stand_in", line) for line in lines]
    return Program(title="a stand-in", commands=lambda setting: commands, resumes=resumes)


def test_what_the_last_command_prints_is_the_result_and_its_files_are_removed(tmp_path: Path) -> None:
    found = measure_program(
        program("pathlib.Path('text').write_text('so'); print('first')", "print(pathlib.Path('text').read_text())"),
        SETTING,
        tmp_path / "work",
        60,
    )
    assert (found["outcome"], found["printed"], found["message"]) == ("measured", "so\n", "")
    assert not (tmp_path / "work").exists()


def test_a_command_that_fails_ends_the_program_with_its_last_words(tmp_path: Path) -> None:
    found = measure_program(program("sys.exit('no room')", "print('late')"), SETTING, tmp_path / "work", 60)
    assert (found["outcome"], found["printed"]) == ("failed", "")
    assert found["message"].endswith("ended with 1: no room")


def test_a_command_that_takes_too_long_is_asked_to_stop_and_keeps_what_it_can_continue(tmp_path: Path) -> None:
    started = time.monotonic()
    waits = "import signal; signal.signal(15, lambda *_: (pathlib.Path('kept').touch(), sys.exit())); time.sleep(60)"
    found = measure_program(program(waits, resumes=True), SETTING, tmp_path / "work", 2)
    assert found["message"] == "took longer than 2 s"
    assert time.monotonic() - started < 40
    assert (tmp_path / "work" / "kept").exists()


def test_a_command_that_does_not_stop_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_programs, "_GRACE_SECONDS", 0.1)
    deaf = "import os, signal; signal.signal(15, signal.SIG_IGN); pathlib.Path('id').write_text(str(os.getpid()))"
    found = measure_program(program(f"{deaf}; time.sleep(60)", resumes=True), SETTING, tmp_path / "work", 2)
    assert found["outcome"] == "failed"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "work" / "id").read_text()), 0)


@pytest.mark.parametrize("setting", [SETTING, QUICK], ids=["whole", "quick"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_command_is_a_module_and_words(name: str, setting: Setting) -> None:
    for module, *arguments in PROGRAMS[name].commands(setting):
        assert find_spec(module) is not None
        assert all(isinstance(word, str) for word in arguments)


def test_both_schedules_end_with_the_same_model_and_batch_after_as_many_updates() -> None:
    direct, stacked = (load_recipe(path, []) for path in (gpu_programs._DIRECT, gpu_programs._STACKED))
    assert direct.model == stacked.model and direct.data == stacked.data and direct.schedule == stacked.schedule
    assert sum(stage.steps or 0 for stage in stacked.stages) == direct.stages[0].steps
    assert stacked.stages[-1].layers == direct.stages[0].layers == 12
