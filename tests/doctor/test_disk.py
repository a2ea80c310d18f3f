"""The folder of a run: which file system contains it, what it supports, and that nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stacking.doctor import disk

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /home rw shared:2 master:1 - nfs4 server:/home rw
31 30 0:27 / /home/me/my\\040scratch rw - lustre mds@tcp:/scratch rw
32 22 0:28 / /data rw - xfs /dev/sdb rw
33 22 0:29 / /data rw - beegfs beegfs_nodev rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/tmp/run", "ext4"),
        ("/home/me/run", "nfs4"),
        ("/homestead", "ext4"),
        ("/home/me/my scratch/run", "lustre"),
        ("/data/run", "beegfs"),
        ("/", "ext4"),
    ],
)
def test_the_last_mount_that_contains_a_folder_counts(path: str, kind: str) -> None:
    assert disk.filesystem(Path(path), MOUNTS) == kind


def test_a_folder_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    found = disk.folder(tmp_path)
    assert found["write"] > 1e5 and found["read"] > 1e5 and found["lock_error"] == ""
    assert found["used"] == 1000 and found["free"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_does_not_exist_is_not_created(tmp_path: Path) -> None:
    found = disk.folder(tmp_path / "runs" / "bert")
    assert found["path"] == str(tmp_path / "runs" / "bert") and found["write"] > 0 and found["used"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_filled_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_SPARE", 1 << 62)
    found = disk.folder(tmp_path)
    assert "write" not in found and found["lock_error"] == ""


def test_an_unwritable_folder_is_reported_in_one_line() -> None:
    argv = [sys.executable, "-m", "stacking.doctor.disk", "/proc/no/such"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "/proc/" in done.stderr
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stdout)
