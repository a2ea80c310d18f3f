"""The newest undamaged checkpoint is the one to resume from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stacking.errors import DamagedFile
from stacking.run.checkpoints import checkpoints, latest, newest_good, point_latest, tag
from stacking.storage.files import new_folder


def make_checkpoints(folder: Path, *steps: int) -> None:
    for step in steps:
        with new_folder(folder / tag(step)) as checkpoint:
            (checkpoint / "model.pt").write_bytes(bytes([step]) * 100)
        point_latest(folder, folder / tag(step))


def no_damage(damage: DamagedFile) -> None:
    raise damage


def test_checkpoints_are_ordered_by_step_and_half_written_ones_are_ignored(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 5, 20, 100)
    (tmp_path / ".global_step120.partial").mkdir()
    (tmp_path / ".saving").mkdir()
    assert [c.name for c in checkpoints(tmp_path)] == ["global_step5", "global_step20", "global_step100"]
    assert newest_good(tmp_path, no_damage) == tmp_path / "global_step100"


def test_a_damaged_checkpoint_is_reported_set_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 5, 20)
    (tmp_path / "global_step20" / "model.pt").write_bytes(b"torn")
    reported: list[DamagedFile] = []
    assert newest_good(tmp_path, reported.append) == tmp_path / "global_step5"
    assert reported[0].path == tmp_path / "global_step20" / "model.pt"
    assert latest(tmp_path) == tmp_path / "global_step5"
    assert (tmp_path / "global_step20.damaged" / "model.pt").read_bytes() == b"torn"


def test_a_crash_between_rename_and_latest_is_repaired(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 5, 20)
    point_latest(tmp_path, tmp_path / "global_step5")
    assert newest_good(tmp_path, no_damage) == tmp_path / "global_step20"
    assert latest(tmp_path) == tmp_path / "global_step20"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"global_step7", b"../elsewhere"])
def test_a_damaged_latest_is_rewritten(tmp_path: Path, content: bytes) -> None:
    make_checkpoints(tmp_path, 5, 20)
    (tmp_path / "latest").write_bytes(content)
    assert latest(tmp_path) is None
    assert newest_good(tmp_path, no_damage) == tmp_path / "global_step20" == latest(tmp_path)


def test_a_manifest_that_lost_an_entry_counts_as_damage(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 5, 20)
    manifest = tmp_path / "global_step20" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": {}}))
    reported: list[DamagedFile] = []
    assert newest_good(tmp_path, reported.append) == tmp_path / "global_step5"
    assert reported[0].path == manifest


def test_a_file_in_place_of_the_folder_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("?")
    reported: list[DamagedFile] = []
    assert newest_good(folder, reported.append) is None
    assert reported[0].path == folder and not folder.exists()


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 5)
    (tmp_path / ".saving" / "global_step20").mkdir(parents=True)
    newest_good(tmp_path, no_damage)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step5", "latest"]


def test_without_an_undamaged_checkpoint_there_is_no_latest(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 5)
    (tmp_path / "global_step5" / "model.pt").unlink()
    assert newest_good(tmp_path, lambda damage: None) is None
    assert latest(tmp_path) is None
    assert newest_good(tmp_path / "absent", no_damage) is None
