"""Checksums by block: the same for a file however it is hashed, and damage is found in any block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stacking.errors import DamagedFile
from stacking.storage import blocks
from stacking.storage.blocks import BlockHasher, digests_of, entry_of, hash_files, verify_blocks
from stacking.storage.files import (
    MANIFEST,
    block_digests,
    checksum,
    new_folder,
    read_json,
    seal_folder,
    verify_folder,
    write_sealed,
)

SMALL_BLOCK = 16


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", SMALL_BLOCK)


def data_of(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()


def file_of(folder: Path, size: int, name: str = "f") -> Path:
    (folder / name).write_bytes(data_of(size))
    return folder / name


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 32, 1000])
def test_a_file_has_one_entry_however_it_is_hashed(tmp_path: Path, size: int) -> None:
    hasher = BlockHasher()
    data = memoryview(data_of(size))
    for start in range(0, size, 7):
        hasher.update(data[start : start + 7])

    assert hash_files([file_of(tmp_path, size)]) == [hasher.entry()]
    assert hasher.entry()["bytes"] == size
    assert ("blocks" in hasher.entry()) is (size > SMALL_BLOCK)


def test_a_short_file_has_the_checksum_of_its_bytes(tmp_path: Path) -> None:
    path = file_of(tmp_path, 1000)
    assert hash_files([path]) == [{"bytes": 1000, "checksum": checksum(path)}]


@pytest.mark.usefixtures("small_blocks")
def test_an_altered_manifest_is_found(tmp_path: Path) -> None:
    with new_folder(tmp_path / "s") as folder:
        file_of(folder, 100)
    manifest = read_json(tmp_path / "s" / MANIFEST)
    blocks_of = manifest["files"]["f"]["blocks"]
    manifest["files"]["f"]["blocks"] = ("0" if blocks_of[0] != "0" else "1") + blocks_of[1:]
    write_sealed(tmp_path / "s" / MANIFEST, manifest)

    with pytest.raises(DamagedFile, match=r"manifest\.json: is inconsistent"):
        verify_folder(tmp_path / "s")
    with pytest.raises(DamagedFile, match=r"manifest\.json: is inconsistent"):
        block_digests(tmp_path / "s", manifest["files"])


def test_a_long_file_without_its_blocks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(tmp_path, 100)
    seal_folder(tmp_path, {})
    monkeypatch.setattr(blocks, "BLOCK", SMALL_BLOCK)  # now the file is longer than a block, and no block is listed

    with pytest.raises(DamagedFile, match=r"manifest\.json: is inconsistent"):
        verify_folder(tmp_path)


def test_files_that_were_hashed_as_they_were_written_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"f": entry_of(100, [blocks.digest(data_of(100))])}
    monkeypatch.setattr(blocks, "fill", lambda *_: pytest.fail("a file was read"))
    with new_folder(tmp_path / "s", {}, known) as folder:
        file_of(folder, 100)
    monkeypatch.undo()
    assert verify_folder(tmp_path / "s")["files"] == known


def test_a_file_that_differs_from_what_was_hashed_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DamagedFile, match="f: has 99 bytes where"),
        new_folder(tmp_path / "s", {}, {"f": entry_of(100, ["a"])}) as folder,
    ):
        file_of(folder, 99)
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("small_blocks")
def test_blocks_already_verified_are_skipped(tmp_path: Path) -> None:
    path = file_of(tmp_path, 100)
    digests = digests_of(hash_files([path])[0])
    path.write_bytes(b"!" + data_of(100)[1:])

    verify_blocks({path: digests}, {path: {0}})
    with pytest.raises(DamagedFile):
        verify_blocks({path: digests}, {path: {1, 2}})
