"""A run folder is created once; changes in it, or in what it depends on, are detected before anything starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stacking.data.prepare import prepare
from stacking.errors import UserError
from stacking.planning.plan import load_plan, write_plan
from stacking.run.create import create_run, open_run
from stacking.run.folder import RunFolder
from tests.chain import write_recipe
from tests.data.conftest import write_corpus


def prepared(folder: Path, seed: int) -> Path:
    source = write_corpus(folder.with_name(f"{folder.name}-text"), seed=seed)
    return prepare([str(source)], folder, vocabulary_size=300, held_out=0.1, workers=1).folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    create_run(str(write_recipe(tmp_path, prepared(tmp_path / "data", seed=0))), folder)
    return folder


def other_data(run: RunFolder) -> None:
    data = run.path.with_name("data")
    shutil.rmtree(data)
    prepared(data, seed=1)


def flipped_token(run: RunFolder) -> None:
    shard = run.path.with_name("data") / "train" / "00000.tokens.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


def another_runs_plan(run: RunFolder) -> None:
    plan = load_plan(run.plan)
    write_plan(run.plan, plan.model_copy(update={"seed": plan.seed + 1}))


def edited(run: RunFolder) -> None:
    run.plan.write_text(run.plan.read_text().replace('"seed": 7', '"seed": 8'))


CHANGES: dict[str, tuple[Callable[[RunFolder], object], str]] = {
    "an edited plan": (edited, "plan.json: does not match its seal"),
    "the plan of another run": (another_runs_plan, "plan.json: has changed since"),
    "a plan that is gone": (lambda run: run.plan.unlink(), "plan.json: is missing"),
    "other data": (other_data, "does not hold the data that the run was created with"),
    "a flipped token": (flipped_token, "00000.tokens.npy: does not match its checksum"),
    "data that moved": (
        lambda run: run.path.with_name("data").rename(run.path.with_name("moved")),
        "data: is not a prepared data folder",
    ),
}


def test_a_created_run_can_be_opened(run: RunFolder) -> None:
    assert [stage.layers for stage in open_run(run).stages] == [1, 2, 4]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_after_creation_is_reported_in_one_line(run: RunFolder, name: str) -> None:
    change, words = CHANGES[name]
    change(run)
    with pytest.raises(UserError) as caught:
        open_run(run)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


REDUNDANT: dict[str, Callable[[RunFolder], object]] = {
    "a journal that is gone": lambda run: run.journal.path.unlink(),
    "an empty journal": lambda run: run.journal.path.write_bytes(b""),
    "a bitten journal": lambda run: flipped(run.journal.path),
    "samples cut short": lambda run: run.samples("train").write_bytes(b"x"),
    "altered samples": lambda run: flipped(run.samples("train")),
    "samples that are gone": lambda run: run.samples("held_out").unlink(),
    "journal and samples that are gone": lambda run: (run.journal.path.unlink(), run.samples("train").unlink()),
}


@pytest.mark.parametrize("name", REDUNDANT)
def test_redundant_files_are_rebuilt_and_named(run: RunFolder, name: str) -> None:
    plan, samples = open_run(run), {split: run.samples(split).read_bytes() for split in ("train", "held_out")}
    REDUNDANT[name](run)
    notes: list[str] = []
    assert open_run(run, notes.append) == plan
    assert {split: run.samples(split).read_bytes() for split in samples} == samples
    assert [event["event"] for event in run.journal.events()].count("created") == 1
    assert any(str(run.path) in note for note in notes)
    notes.clear()
    assert open_run(run, notes.append) == plan and not notes


def test_unfinished_files_of_killed_processes_are_removed(run: RunFolder) -> None:
    left = [run.path / ".export.partial", run.path / "0-L1" / ".state.partial"]
    files = [run.path / ".plan.json.7.partial", run.path / "0-L1" / "checkpoints" / ".latest.7.partial"]
    for folder in (*left, files[1].parent):
        folder.mkdir(parents=True)
    for file in files:
        file.write_text("half")
    open_run(run)
    assert not any(path.exists() for path in (*left, *files))


def test_a_folder_that_holds_a_run_is_refused(run: RunFolder) -> None:
    with pytest.raises(UserError, match="already holds a run; run `stacking resume"):
        create_run("demo", run)
