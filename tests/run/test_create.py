"""A run folder is made once; what was changed in it, or under it, is noticed before anything starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stacking.data.prepare import prepare
from stacking.errors import UserError
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


def journal_of_an_older_plan(run: RunFolder) -> None:
    event = {"time": 1.0, "event": "created"}
    run.journal.path.write_text(json.dumps(event) + "\n")


CHANGES: dict[str, tuple[Callable[[RunFolder], object], str]] = {
    "an edited plan": (lambda run: run.plan.write_text(run.plan.read_text() + " "), "plan.json: was changed since"),
    "a plan that is gone": (lambda run: run.plan.unlink(), "plan.json: was changed since"),
    "a journal without the plan": (journal_of_an_older_plan, "plan.json: was changed since"),
    "a journal that is gone": (lambda run: run.journal.path.unlink(), "is not a run"),
    "samples cut short": (lambda run: run.samples("train").write_bytes(b"x"), "samples.train.npy: is missing or was"),
    "samples that are gone": (lambda run: run.samples("held_out").unlink(), "samples.held_out.npy: is missing or was"),
    "other data": (other_data, "holds other data than when the run was created"),
    "a flipped token": (flipped_token, "00000.tokens.npy: does not match its checksum"),
    "data that moved": (
        lambda run: run.path.with_name("data").rename(run.path.with_name("moved")),
        "data: is not a prepared data folder",
    ),
}


def test_what_was_created_opens(run: RunFolder) -> None:
    assert [stage.layers for stage in open_run(run).stages] == [1, 2, 4]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_since_then_is_one_line(run: RunFolder, name: str) -> None:
    change, words = CHANGES[name]
    change(run)
    with pytest.raises(UserError) as caught:
        open_run(run)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_holds_a_run_is_refused(run: RunFolder) -> None:
    with pytest.raises(UserError, match="holds a run already"):
        create_run("demo", run)
