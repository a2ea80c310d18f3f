"""Files are either complete or absent, and damage is found and named."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stacking.errors import DamagedFile, NoSpace, UserError
from stacking.storage import files
from stacking.storage.files import new_folder, require_absent, set_aside, verify_folder, write_atomically, write_sealed


def make_folder(path: Path) -> Path:
    with new_folder(path, {"kind": "test"}) as folder:
        (folder / "a.bin").write_bytes(b"0123456789")
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_text("text")
    return path


def outside(name: str) -> dict[str, object]:
    return {"files": {name: {"bytes": 1, "checksum": ""}}}


def flip(path: Path, part: bytes) -> None:
    """Flip the lowest bit in the middle of ``part``."""
    content = bytearray(path.read_bytes())
    content[content.index(part) + len(part) // 2 + 3] ^= 1
    path.write_bytes(content)


def test_a_written_file_replaces_the_old_one_and_leaves_no_other_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", "old")
    write_atomically(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "new"
    assert os.listdir(tmp_path) == ["f"]


def test_a_full_disk_keeps_the_old_file_and_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "f", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(NoSpace) as caught:
        write_atomically(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_real_full_disk_is_named(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not there")
    with pytest.raises(NoSpace), files.disk_errors(tmp_path), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")


def test_a_folder_lists_every_file_with_its_checksum(tmp_path: Path) -> None:
    manifest = verify_folder(make_folder(tmp_path / "out"))
    assert manifest["kind"] == "test"
    assert manifest["files"].keys() == {"a.bin", "inner/b.txt"}
    assert manifest["files"]["a.bin"]["bytes"] == 10


def test_a_folder_whose_creation_fails_is_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_folder_whose_writer_is_killed_is_absent_and_can_be_created_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        "import os, sys, pathlib; from stacking.storage.files import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1])) as f:\n"
        "    (f / 'a').write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(out)])
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    verify_folder(make_folder(out))
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("damage", "named", "words"),
    [
        (lambda f: (f / "a.bin").write_bytes(b"012345678X"), "a.bin", "does not match its checksum"),
        (lambda f: (f / "a.bin").write_bytes(b"0123"), "a.bin", "has 4 bytes where the manifest says 10"),
        (lambda f: (f / "inner" / "b.txt").unlink(), "b.txt", "is missing"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json", "incomplete"),
        (lambda f: (f / "manifest.json").write_text('{"files": {'), "manifest.json", "is not JSON"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json", "is not JSON"),
        (lambda f: (f / "manifest.json").write_text("[1]"), "manifest.json", "is not a JSON object"),
        (lambda f: (f / "manifest.json").write_text('{"kind": "data"}'), "manifest.json", "has no seal"),
        (lambda f: flip(f / "manifest.json", b'"kind": "test"'), "manifest.json", "does not match its seal"),
        (lambda f: write_sealed(f / "manifest.json", {"kind": "data"}), "manifest.json", "does not list the files"),
        (lambda f: write_sealed(f / "manifest.json", {"files": None}), "manifest.json", "does not list the files"),
        (lambda f: write_sealed(f / "manifest.json", {"files": {"a": {}}}), "manifest.json", "does not list the files"),
        (
            lambda f: write_sealed(f / "manifest.json", outside("../x")),
            "manifest.json",
            "which is not a file of the folder",
        ),
        (
            lambda f: write_sealed(f / "manifest.json", outside("/x")),
            "manifest.json",
            "which is not a file of the folder",
        ),
    ],
)
def test_damage_is_found_and_the_file_named(tmp_path: Path, damage, named: str, words: str) -> None:  # type: ignore[no-untyped-def]
    folder = make_folder(tmp_path / "out")
    damage(folder)
    with pytest.raises(DamagedFile, match=words) as caught:
        verify_folder(folder)
    assert named in str(caught.value)


def test_existing_files_are_not_overwritten(tmp_path: Path) -> None:
    make_folder(tmp_path / "out")
    with pytest.raises(UserError, match="already exists"):
        require_absent(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    require_absent(tmp_path / "empty")
    require_absent(tmp_path / "nothing")


def test_damaged_files_and_folders_are_set_aside_under_unique_names(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        (tmp_path / "x").write_text("damaged")
        names.append(set_aside(tmp_path / "x").name)
    assert names == ["x.damaged", "x.damaged1", "x.damaged2"]


def test_an_unwritable_folder_is_reported_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, or is inside one"), new_folder(tmp_path / "file" / "out"):
        pass
    with pytest.raises(UserError, match="cannot be created"), new_folder(tmp_path / ("a" * 300)):
        pass
