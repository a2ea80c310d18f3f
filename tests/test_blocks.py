"""Checksums by block: what is read is verified, once, wherever it is read from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking import blocks
from stacking.blocks import BlockHasher, VerifiedFiles, digests_of, entry_of, hash_files, verify_blocks
from stacking.errors import DamagedFile
from stacking.files import (
    MANIFEST,
    checksum,
    new_folder,
    read_json,
    seal_folder,
    verified_files,
    verify_folder,
    write_json,
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


def sealed_files(path: Path) -> VerifiedFiles:
    digests = digests_of(hash_files([path])[0])
    assert digests is not None
    return VerifiedFiles({path: digests}, kept=2)


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


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.lists(st.tuples(st.integers(0, 199), st.integers(0, 200)), max_size=8))
def test_any_part_reads_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, size: int, parts: list[tuple[int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", SMALL_BLOCK)
        path = file_of(tmp_path_factory.mktemp("parts"), size)
        files = sealed_files(path)
        for start, count in parts:
            count = min(count, max(0, size - start))
            into = np.zeros(count, np.uint8)
            files.read(path, start, into)
            assert into.tobytes() == data_of(size)[start : start + count]
        files.verify_rest()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("damaged", [0, 15, 16, 50, 99])
def test_a_damaged_block_is_found_by_whoever_reads_it_and_at_the_end(tmp_path: Path, damaged: int) -> None:
    path = file_of(tmp_path, 100)
    files, again = sealed_files(path), sealed_files(path)
    content = bytearray(path.read_bytes())
    content[damaged] ^= 1
    path.write_bytes(content)

    block = damaged // SMALL_BLOCK * SMALL_BLOCK
    with pytest.raises(DamagedFile, match="f: does not match its checksum"):
        files.read(path, block, np.empty(min(3, 100 - block), np.uint8))
    with pytest.raises(DamagedFile, match="f: does not match its checksum"):
        again.verify_rest()


@pytest.mark.usefixtures("small_blocks")
def test_a_block_that_is_read_in_parts_comes_from_the_disk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(tmp_path, 96)
    files, read, original = sealed_files(path), [], blocks._fill

    def watched(descriptor: int, offset: int, into: np.ndarray) -> int:
        read.append(offset)
        return original(descriptor, offset, into)

    monkeypatch.setattr(blocks, "_fill", watched)

    for start in range(0, 96, 5):
        files.read(path, start, np.empty(min(5, 96 - start), np.uint8))
    files.verify_rest()

    assert sorted(read) == list(range(0, 96, SMALL_BLOCK))


@pytest.mark.usefixtures("small_blocks")
def test_reading_past_the_end_is_damage(tmp_path: Path) -> None:
    path = file_of(tmp_path, 40)
    files = sealed_files(path)
    for start, count in ((30, 11), (32, 16), (48, 1)):
        with pytest.raises(DamagedFile, match="ends before"):
            files.read(path, start, np.empty(count, np.uint8))


@pytest.mark.usefixtures("small_blocks")
def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = file_of(tmp_path, 40)
    files = sealed_files(path)
    path.unlink()
    with pytest.raises(DamagedFile, match="f: is missing"):
        files.read(path, 0, np.empty(3, np.uint8))
    with pytest.raises(DamagedFile, match="f: is missing"):
        files.verify_rest()


@pytest.mark.usefixtures("small_blocks")
def test_an_altered_manifest_is_found(tmp_path: Path) -> None:
    with new_folder(tmp_path / "s") as folder:
        file_of(folder, 100)
    manifest = read_json(tmp_path / "s" / MANIFEST)
    blocks_of = manifest["files"]["f"]["blocks"]
    manifest["files"]["f"]["blocks"] = ("0" if blocks_of[0] != "0" else "1") + blocks_of[1:]
    write_json(tmp_path / "s" / MANIFEST, manifest)

    with pytest.raises(DamagedFile, match=r"manifest\.json: contradicts itself"):
        verify_folder(tmp_path / "s")
    with pytest.raises(DamagedFile, match=r"manifest\.json: contradicts itself"):
        verified_files(tmp_path / "s", manifest)


def test_manifests_of_earlier_versions_are_verified_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path, 100)
    seal_folder(tmp_path, {})
    monkeypatch.setattr(blocks, "BLOCK", SMALL_BLOCK)  # now the file is longer than a block, and no block is listed

    manifest = verify_folder(tmp_path)
    assert verified_files(tmp_path, manifest) is None
    path.write_bytes(data_of(100)[:-1] + b"!")
    with pytest.raises(DamagedFile, match="f: does not match its checksum"):
        verify_folder(tmp_path)


def test_files_that_were_hashed_as_they_were_written_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"f": entry_of(100, [blocks.digest(data_of(100))])}
    monkeypatch.setattr(blocks, "_fill", lambda *_: pytest.fail("a file was read"))
    with new_folder(tmp_path / "s", {}, known) as folder:
        file_of(folder, 100)
    monkeypatch.undo()
    assert verify_folder(tmp_path / "s")["files"] == known


def test_a_file_that_is_not_what_was_hashed_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DamagedFile, match="f: has 99 bytes where"),
        new_folder(tmp_path / "s", {}, {"f": entry_of(100, ["a"])}) as folder,
    ):
        file_of(folder, 99)
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("small_blocks")
def test_only_what_is_not_done_is_verified(tmp_path: Path) -> None:
    path = file_of(tmp_path, 100)
    digests = digests_of(hash_files([path])[0])
    assert digests is not None
    path.write_bytes(b"!" + data_of(100)[1:])

    verify_blocks({path: digests}, {path: {0}})
    with pytest.raises(DamagedFile):
        verify_blocks({path: digests}, {path: {1, 2}})
