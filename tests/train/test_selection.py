"""All ranks resume from the same checkpoint, whatever a node's file cache shows them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stacking.run.checkpoints import point_latest, tag
from stacking.storage.blocks import hash_files
from stacking.storage.files import new_folder
from stacking.train.checkpoint import sealed_by
from tests.train.ranks import run_ranks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What rank 0 sees: the checkpoints of 4 and 8."""
    folder = tmp_path / "true"
    for step in (4, 8):
        with new_folder(folder / tag(step), {"step": step}) as checkpoint:
            (checkpoint / "model.pt").write_text(f"weights {step}")
    point_latest(folder, folder / tag(8))
    return folder


def choices(*views: Path) -> list[str]:
    """What ranks with these views of the folder have chosen."""
    outputs = run_ranks(len(views), "tests.train.selection_worker", [[view] for view in views])
    return [output.splitlines()[-1] for output in outputs]


def stale_latest(view: Path) -> None:
    point_latest(view, view / tag(4))


def without_the_newest(view: Path) -> None:
    shutil.rmtree(view / tag(8))
    stale_latest(view)


def an_older_one_of_the_same_name(view: Path) -> None:
    with new_folder(view / tag(8), {"step": 8}) as checkpoint:
        (checkpoint / "model.pt").write_text("of before the run was taken back")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("staleness", "words"),
    [
        (stale_latest, "chosen global_step8"),
        (without_the_newest, "refused"),
        (an_older_one_of_the_same_name, "refused"),
    ],
)
def test_rank_0_decides_and_ranks_that_see_something_else_load_nothing(
    folder: Path, tmp_path: Path, staleness: Callable[[Path], None], words: str
) -> None:
    view = tmp_path / "stale"
    shutil.copytree(folder, view)
    staleness(view)
    chosen = choices(folder, view)
    assert [choice.startswith(words) for choice in chosen] == [True, True]
    if words == "refused":
        assert "sees other content than rank 0, so nothing was loaded" in chosen[0]


@pytest.mark.distributed
def test_leftovers_of_an_interrupted_save_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".saving" / tag(8)).mkdir(parents=True)
    assert choices(tmp_path) == ["chosen None"] and not list(tmp_path.iterdir())


def test_each_rank_seals_what_it_wrote_and_rank_0_the_rest(tmp_path: Path) -> None:
    names = {
        0: ["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt", "other"],
        1: ["bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"],
        10: ["zero_pp_rank_10_mp_rank_00_optim_states.pt"],
    }
    for name in (name for of_rank in names.values() for name in of_rank):
        (tmp_path / name).write_text(name)
    for rank, its in names.items():
        entries = sealed_by(tmp_path, rank)
        assert sorted(entries) == sorted(its)
        assert all(hash_files([tmp_path / name]) == [entry] for name, entry in entries.items())
