"""The check before a job. Its findings are invented; the real check, on a real SLURM, is in tests/slurm_lab."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stacking.doctor import preflight
from stacking.doctor.examine import ExamineRequest, Visit
from stacking.doctor.facts import Facts, Host
from stacking.doctor.finding import Finding
from stacking.doctor.preflight import before_job
from stacking.planning.plan import write_plan
from stacking.run.folder import RunFolder
from tests.slurm.plans import plan_for_jobs

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
NO_CODE = Finding("error", "compute capability", "torch has no code for sm_61", "install another one")
SLOW = Finding("warning", "disk speed", "writes 0.01 GB/s", "choose a faster one")


class Looks:
    """Stands in for the visit; remembers its requests."""

    def __init__(self) -> None:
        self.requests: list[ExamineRequest] = []
        self.finds: list[Finding] = []

    def __call__(self, request: ExamineRequest) -> Visit:
        self.requests.append(request)
        return Visit(Facts(host=Host(name="n1")), self.finds)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    made = Looks()
    monkeypatch.setattr(preflight, "visit", made)
    return made


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path)
    write_plan(made.plan, plan_for_jobs())
    made.journal.append("created")
    return made


def known(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "doctor.json").read_text())
    return found


def test_a_good_node_lets_the_job_continue_and_is_recorded(run: RunFolder, looks: Looks) -> None:
    assert before_job(run, JOB) == 0
    assert known(run)["kind"] == "doctor" and known(run)["job"]["nodes"] == "n[1-2]"
    assert [event["event"] for event in run.journal.events()] == ["created"]


def test_collectives_are_measured_only_with_several_nodes(run: RunFolder, looks: Looks) -> None:
    before_job(run, JOB)
    before_job(run, {**JOB, "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"})
    assert [request.collectives for request in looks.requests] == [True, False]
    assert all(request.quick and request.launcher == "slurm" and request.plan for request in looks.requests)


def test_a_node_that_cannot_train_ends_the_job_with_one_line_that_status_reports(
    run: RunFolder, looks: Looks, capsys: pytest.CaptureFixture[str]
) -> None:
    run.journal.append("finished", phase="train", stage=0)
    looks.finds = [SLOW, NO_CODE, NO_CODE]
    assert before_job(run, JOB) == 1
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("stacking doctor: warning: disk speed")
    said = "n1: compute capability: torch has no code for sm_61; install another one (and 1 more in "
    assert error.startswith(f"stacking doctor: {said}")
    last = run.journal.events()[-1]
    assert (last["event"], last["phase"], last["stage"]) == ("failed", "doctor", 1) and last["message"].startswith(said)


def test_the_same_nodes_are_not_checked_twice_in_a_day(
    run: RunFolder, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks.finds = [SLOW]
    for _ in range(2):
        before_job(run, JOB)
    assert len(looks.requests) == 1
    before_job(run, {**JOB, "SLURM_JOB_NODELIST": "n[2-3]"})
    before_job(run, {**JOB, "STACKING_CONTAINER": "apptainer exec bert.sif"})
    assert len(looks.requests) == 3
    later = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    before_job(run, {**JOB, "STACKING_CONTAINER": "apptainer exec bert.sif"})
    assert len(looks.requests) == 4


def test_a_bad_node_is_checked_again(run: RunFolder, looks: Looks) -> None:
    looks.finds = [NO_CODE]
    assert before_job(run, JOB) == 1
    looks.finds = []
    assert before_job(run, JOB) == 0 and len(looks.requests) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job": 1}', '{"time": "x", "findings": []}'])
def test_a_damaged_doctor_json_is_rewritten(run: RunFolder, looks: Looks, text: str) -> None:
    (run.path / "doctor.json").write_text(text)
    assert before_job(run, JOB) == 0
    assert known(run)["kind"] == "doctor"


def test_a_check_that_crashes_does_not_stop_the_job(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(request: ExamineRequest) -> Visit:
        raise RuntimeError("a bug")

    monkeypatch.setattr(preflight, "visit", breaks)
    assert before_job(run, JOB) == 0
    assert "continuing without it: RuntimeError: a bug" in capsys.readouterr().err
    assert not (run.path / "doctor.json").exists()


def test_a_check_that_hangs_is_abandoned(run: RunFolder) -> None:
    """A visit that sleeps imitates a dead file server."""
    script = (
        "import time; from pathlib import Path; from stacking.doctor import preflight; "
        "from stacking.run.folder import RunFolder; preflight._PATIENCE = 0.5; "
        "preflight.visit = lambda request: time.sleep(60); "
        f"raise SystemExit(preflight.before_job(RunFolder(Path({str(run.path)!r})), {{}}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "took more than 0.5 s, continuing without it" in done.stderr
