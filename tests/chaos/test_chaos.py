"""The tools that disturb chains must themselves be correct."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos import clocks, clusters, damage, processes
from tests.chaos.compare import leftovers, same
from tests.chaos.damages import DAMAGES, FILES, harm
from tests.chaos.places import PLACES, cut_back
from tests.chaos.processes import Controller, last_event
from tests.chaos.results import Result, append_results, as_markdown, read_results
from tests.chaos.workshop import SETTINGS, Ended, Workshop, environment, stacking

# Results


def result(**changes: object) -> Result:
    facts: dict[str, object] = {
        "kind": "kill",
        "seed": 1,
        "number": 2,
        "setting": "1 rank, ZeRO 0",
        "row": "train",
        "what": "SIGKILL to all",
        "column": "SIGKILL",
        "outcome": "identical",
    }
    return Result(**{**facts, **changes})  # type: ignore[arg-type]


def test_results_are_kept_as_lines_and_a_torn_last_one_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    append_results(file, [result(), result(number=3)])
    with open(file, "a") as opened:
        opened.write('{"kind": "ki')
    assert read_results(file) == [result(), result(number=3)]


def test_the_tables_count_signals_by_phase_and_damages_by_outcome() -> None:
    damaged = result(kind="damage", row="run: journal", column="emptied")
    text = as_markdown([result(), result(column="SIGTERM"), damaged, result(kind="damage", outcome="UNDETECTED")])
    assert "| phase | SIGKILL | SIGTERM | all |" in text
    assert "| train | 1 | 1 | 2 |" in text
    assert "| file | identical | UNDETECTED | all |" in text
    assert "| damage 1:2 |" in text.partition("## Failures")[2]


# Comparison


def test_files_that_differ_only_in_their_times_are_equal(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text('{"loss": 5.5, "time": 1.0}\n')
    other.write_text('{"time": 2.0, "loss": 5.5}\n')
    assert same(one, other)
    other.write_text('{"loss": 5.500001, "time": 1.0}\n')
    assert not same(one, other)
    assert not same(one, tmp_path / "missing.jsonl")


def test_unfinished_folders_count_as_leftovers(tmp_path: Path) -> None:
    (tmp_path / "0-L1" / "checkpoints" / ".saving").mkdir(parents=True)
    (tmp_path / "0-L1" / ".state.partial").mkdir()
    (tmp_path / "0-L1" / "checkpoints" / "global_step2.damaged").mkdir()
    assert leftovers(tmp_path) == ["0-L1/.state.partial", "0-L1/checkpoints/.saving"]


# Damages


@pytest.mark.parametrize("name", DAMAGES)
def test_even_an_empty_file_is_damaged(tmp_path: Path, name: str) -> None:
    file = tmp_path / "train.log"
    file.touch()
    harm(file, name, random.Random(5))
    assert not file.is_file() or file.read_bytes()


@pytest.mark.parametrize("name", DAMAGES)
def test_every_kind_of_damage_changes_the_file_and_is_determined_by_its_seed(tmp_path: Path, name: str) -> None:
    made = []
    for copy in ("one", "other"):
        file = tmp_path / f"{copy}.json"
        file.write_text(json.dumps({"steps": 1234, "text": "x" * 600}))
        before = file.read_bytes()
        DAMAGES[name](file, random.Random(5))
        made.append(file.read_bytes() if file.is_file() else file.exists())
        assert made[-1] != before
    assert made[0] == made[1]


def test_every_kind_of_file_meets_every_damage() -> None:
    plans = [damage.plan(0, number) for number in range(len(FILES) * len(DAMAGES))]
    assert len({(planned.kind, planned.damage) for planned in plans}) == len(plans)
    assert {planned.place for planned in plans} == set(PLACES)
    assert {planned.setting for planned in plans} == set(SETTINGS)


def test_one_chain_in_ten_starts_with_a_long_slurm_outage() -> None:
    drawn = [clusters.disturbances(random.Random(number), number) for number in range(20)]
    outage = drawn[0][0]
    assert outage == "slurmctld away for two minutes"
    assert [(number, names.index(outage)) for number, names in enumerate(drawn) if outage in names] == [(0, 0), (10, 0)]


# A controller that is signalled

_CONTROLLER = """
import json, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
run = Path(sys.argv[1])
(run / "journal.jsonl").write_text(json.dumps({"event": "started", "phase": "grow", "stage": 1}) + "\\n")
print("growing", flush=True)
time.sleep(60)
"""


def test_a_controller_is_signalled_in_the_chosen_phase_and_its_exit_observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "command", lambda run: [sys.executable, "-c", _CONTROLLER, str(run)])
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        controller = Controller(tmp_path, [tmp_path], tmp_path / "output")
        assert controller.wait_for("grow", patience=30)
        assert controller.send(number, "controller", 0)
        ended = controller.wait()
        assert (ended.exit_code, ended.output) == (code, "growing\n")
    assert last_event(tmp_path) == ("started", "grow", 1)


def test_a_child_sees_a_wrong_wall_clock_and_a_correct_monotonic_clock(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+86400")
    script = "import time; print(time.time(), time.monotonic())"
    variables = environment(**clocks.wrong(clock))
    said = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True)
    wall, stopwatch = map(float, said.stdout.split())
    assert 86_400 <= wall - time.time() + 60 < 86_520
    assert abs(stopwatch - time.monotonic()) < 60


# Real chains


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(tmp_path_factory.mktemp("chaos"))
    made.fresh_data()
    return made


@pytest.mark.slow
@pytest.mark.distributed
def test_a_damaged_export_is_healed_and_a_damaged_plan_refused(workshop: Workshop) -> None:
    setting = SETTINGS[0]
    reference = workshop.reference(setting)
    for name, expected in (("export/config.json", "healed"), ("plan.json", "refused")):
        run = workshop.copy_of_reference(setting)
        cut_back(run, PLACES["exported"])
        workshop.keep(run)
        with open(run / name, "a") as file:
            file.write("}")
        judge = damage.Judge(workshop, run, reference, [run / name])
        assert judge.judge(stacking("resume", run))[0] == expected


@pytest.mark.slow
@pytest.mark.distributed
def test_a_product_that_differs_counts_as_undetected_damage(workshop: Workshop) -> None:
    reference = workshop.reference(SETTINGS[0])
    run = workshop.copy_of_reference(SETTINGS[0])
    workshop.keep(run)
    weights = run / "1-L2" / "state" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    judge = damage.Judge(workshop, run, reference, [run / "lock"])
    assert judge.judge(Ended(0, "all is well"))[0] == "UNDETECTED"
