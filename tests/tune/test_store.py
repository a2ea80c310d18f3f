"""A tuning resumes from the trials in its folder, and never mixes them with those of something else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stacking.errors import UserError
from stacking.hardware.presets import DEVICE_CLASSES
from stacking.planning.plan import Plan
from stacking.tune.store import Records, open_folder
from tests.small_recipe import MACHINE, SMALL, plan_of
from tests.tune.fakes import BASE, measured


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    return plan_of(SMALL)


def test_the_same_recipe_resumes(plan: Plan, tmp_path: Path) -> None:
    for _ in range(2):
        assert open_folder(tmp_path / "out", plan, MACHINE, "local") == tmp_path / "out"


def test_settings_that_do_not_affect_trials_may_change(plan: Plan, tmp_path: Path) -> None:
    open_folder(tmp_path / "out", plan, MACHINE, "local")
    longer = SMALL.replace("steps: 10", "steps: 20").replace("name: small", "name: other\nlog_every: 3")
    open_folder(tmp_path / "out", plan_of(longer), MACHINE, "local")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("layers: 2", "layers: 1", "stages[0].layers was 2 and is 1"),
        ("batch_sequences: 8", "batch_sequences: 16", "another recipe: stages[0].batch was 8 and is 16"),
        ("hidden: 64", "hidden: 32", "another recipe: model.hidden was 64 and is 32"),
        ("sequence_length: 32", "sequence_length: 16", "data.sequence_length was 32 and is 16"),
    ],
)
def test_a_changed_recipe_is_refused_and_the_change_named(
    plan: Plan, tmp_path: Path, before: str, after: str, words: str
) -> None:
    open_folder(tmp_path / "out", plan, MACHINE, "local")
    with pytest.raises(UserError) as caught:
        open_folder(tmp_path / "out", plan_of(SMALL.replace(before, after)), MACHINE, "local")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "machine", [replace(MACHINE, cores=64), replace(MACHINE, accelerators=1, device=DEVICE_CLASSES["v100"])]
)
def test_a_different_machine_is_refused(plan: Plan, tmp_path: Path, machine: object) -> None:
    open_folder(tmp_path / "out", plan, MACHINE, "local")
    with pytest.raises(UserError, match="another machine"):
        open_folder(tmp_path / "out", plan, machine, "local")  # type: ignore[arg-type]


def test_an_unrelated_folder_is_refused_and_left_alone(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        open_folder(tmp_path / "out", plan, MACHINE, "local")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_an_invalid_description_is_named(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tune.json").write_text("[]")
    with pytest.raises(UserError, match=r"tune\.json: does not describe a tuning"):
        open_folder(tmp_path / "out", plan, MACHINE, "local")


def test_a_record_round_trips(tmp_path: Path) -> None:
    records = Records(tmp_path, "0-L2")
    assert records.read("m4-z2") is None
    records.folder("m4-z2")
    records.write("m4-z2", measured(BASE, 123.0))
    assert records.read("m4-z2") == measured(BASE, 123.0)
    assert (tmp_path / "trials" / "0-L2" / "m4-z2.json").is_file()


def test_leftovers_of_an_interrupted_trial_are_removed(tmp_path: Path) -> None:
    records = Records(tmp_path, "0-L2")
    (records.folder("m4-z2") / "half").write_text("…")
    assert list(records.folder("m4-z2").iterdir()) == []


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"candidate": 3, "result": "measured"})])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    records = Records(tmp_path, "0-L2")
    records.folder("m4-z2")
    (tmp_path / "trials" / "0-L2" / "m4-z2.json").write_text(content)
    with pytest.raises(UserError, match=r"m4-z2\.json"):
        records.read("m4-z2")
