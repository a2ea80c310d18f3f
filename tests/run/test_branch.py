"""`stacking run --branch-of` starts from a checkpoint of another run; tests/test_restart.py compares the bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stacking.errors import DamagedFile, UserError
from stacking.planning.plan import Plan, write_plan
from stacking.report.comparison import charged_seconds
from stacking.report.run import read_run
from stacking.run.branch import begin_as, branch_point, require_branch_point
from stacking.run.checkpoints import checkpoints, tag
from stacking.run.folder import RunFolder
from stacking.run.journal import Journal
from stacking.run.metrics import MetricsWriter, read_metrics
from stacking.storage.files import new_folder
from tests.small_recipe import SMALL, plan_of

FACTS = {"tokens": 1, "loss": 2.0, "seconds": 1.0, "tokens_per_second": 1.0, "learning_rate": 1e-3}
BEGIN = 1_000_000.0
"""When the source began, in unix seconds; each of its updates takes ten."""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> RunFolder:
    """A finished run of 2 → 4 layers, 10 updates each; it keeps the checkpoints 0:10, 1:4 and 1:10."""
    run = created(tmp_path / "source", plan_of(SMALL))
    records = [of_phase(BEGIN, "started", 0)]
    for stage, kept in ((0, (10,)), (1, (4, 10))):
        folder = run.stage(f"{stage}-L{2 * (stage + 1)}")
        begin = BEGIN + 100 * stage
        with MetricsWriter(folder.metrics) as metrics:
            for step in range(1, 11):
                record = {"kind": "train", "stage": stage, "step": step, "global_step": 10 * stage + step}
                metrics.append({**record, "time": begin + 10 * step, **FACTS})
        for step in kept:
            with new_folder(folder.checkpoints / tag(step)) as checkpoint:
                (checkpoint / "model.pt").write_text(f"{stage} {step}")
        records += [of_phase(begin + 100, "finished", stage), of_phase(begin + 100.1, "started", stage + 1)]
    run.journal.adopt(records[:-1])
    return run


def created(path: Path, plan: Plan) -> RunFolder:
    run = RunFolder(path)
    run.path.mkdir()
    write_plan(run.plan, plan)
    return run


def of_phase(time: float, event: str, stage: int) -> dict[str, object]:
    return {"time": time, "event": event, "host": "vm", "pid": 1, "phase": "train", "stage": stage, "attempt": 1}


def refuse(damage: DamagedFile) -> None:
    raise damage


def shorter(steps: int) -> Plan:
    return plan_of(SMALL.replace("layers: 4, steps: 10", f"layers: 4, steps: {steps}"))


@pytest.mark.parametrize(("steps", "name", "step"), [(10, "1-L4", 10), (9, "1-L4", 4), (4, "1-L4", 4), (3, "0-L2", 10)])
def test_the_branch_point_is_the_last_checkpoint_that_both_would_write(
    source: RunFolder, steps: int, name: str, step: int
) -> None:
    point = branch_point(source, shorter(steps), refuse)
    assert point is not None
    assert (point.names[-1], point.step) == (name, step)
    assert str(point) == f"update {step} of stage {name} of {source.path}"


def test_the_new_run_has_what_the_source_had_then(source: RunFolder, tmp_path: Path) -> None:
    plan = shorter(9)
    run = created(tmp_path / "run", plan)
    begin_as(require_branch_point(source, plan, refuse), run)

    assert [path.name for path in checkpoints(run.stage("1-L4").checkpoints)] == [tag(4)]
    assert not checkpoints(run.stage("0-L2").checkpoints)
    assert [record["step"] for record in read_metrics(run.stage("0-L2").metrics)] == list(range(1, 11))
    assert [record["step"] for record in read_metrics(run.stage("1-L4").metrics)] == [1, 2, 3, 4]
    events = [(event["event"], event["stage"]) for event in run.journal.events()]
    assert events == [("started", 0), ("finished", 0), ("started", 1), ("resumed", 1)]
    last = run.journal.events()[-1]
    assert (last["branch_of"], last["step"]) == (str(source.path), 4)
    assert not read_run(run.path).damage


def test_its_wall_clock_continues_the_sources_and_the_time_since_is_not_charged(
    source: RunFolder, tmp_path: Path
) -> None:
    run = created(tmp_path / "run", shorter(9))
    begin_as(require_branch_point(source, shorter(9), refuse), run)
    assert charged_seconds(read_run(run.path)) == 140
    with MetricsWriter(run.stage("1-L4").metrics) as metrics:
        now = Journal(run.journal.path).events()[-1]["time"]
        record = {"kind": "train", "stage": 1, "step": 5, "global_step": 15, "time": now + 10}
        metrics.append({**record, **FACTS})
    assert charged_seconds(read_run(run.path)) == pytest.approx(150)


def test_runs_that_share_nothing_are_refused_with_the_point_where_they_diverge(source: RunFolder) -> None:
    other = plan_of(SMALL.replace("hidden: 64", "hidden: 128"))
    assert branch_point(source, other, refuse) is None
    with pytest.raises(UserError, match=r"--branch-of .*source: keeps no checkpoint .* part at model; name a run"):
        require_branch_point(source, other, refuse)


def test_without_a_checkpoint_in_the_shared_updates_there_is_no_branch_point(source: RunFolder) -> None:
    shutil.rmtree(source.stage("0-L2").checkpoints)
    with pytest.raises(UserError, match=r"from the 13 updates that both share before they part at stages\[1\].steps"):
        require_branch_point(source, shorter(3), refuse)


def test_a_damaged_checkpoint_is_named_and_an_earlier_one_taken(source: RunFolder) -> None:
    (source.stage("1-L4").checkpoints / tag(4) / "model.pt").write_text("1 5")
    found: list[DamagedFile] = []
    point = require_branch_point(source, shorter(9), found.append)
    assert "model.pt: does not match its checksum" in str(found[0])
    assert (point.names[-1], point.step) == ("0-L2", 10)


def test_a_checkpoint_removed_while_it_is_copied_leaves_nothing(source: RunFolder, tmp_path: Path) -> None:
    point = require_branch_point(source, shorter(9), refuse)
    shutil.rmtree(point.checkpoint)
    run = created(tmp_path / "run", shorter(9))
    with pytest.raises(DamagedFile, match="was removed while it was copied; run the command again"):
        begin_as(point, run)
    assert not run.stage("1-L4").checkpoints.exists()
    assert not run.journal.events()


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plan\.json"):
        branch_point(RunFolder(tmp_path), shorter(9), refuse)
