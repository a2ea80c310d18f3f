"""Reading parts of files whose blocks have checksums: whatever is read is verified, once, wherever it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.errors import DamagedFile
from stacking.storage import blocks, verified_files
from stacking.storage.blocks import digests_of, hash_files
from stacking.storage.verified_files import VerifiedFiles
from tests.storage.test_blocks import SMALL_BLOCK, data_of, file_of


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blocks, verified_files):
        monkeypatch.setattr(module, "BLOCK", SMALL_BLOCK)


def sealed_files(path: Path) -> VerifiedFiles:
    return VerifiedFiles({path: digests_of(hash_files([path])[0])}, kept=2)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.lists(st.tuples(st.integers(0, 199), st.integers(0, 200)), max_size=8))
def test_any_part_reads_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, size: int, parts: list[tuple[int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocks, verified_files):
            patch.setattr(module, "BLOCK", SMALL_BLOCK)
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
def test_a_damaged_block_is_found_when_it_is_read_and_at_the_end(tmp_path: Path, damaged: int) -> None:
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
def test_a_block_read_in_parts_is_read_from_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path, 96)
    files, read, original = sealed_files(path), [], blocks.fill

    def watched(descriptor: int, offset: int, into: memoryview) -> int:
        read.append(offset)
        return original(descriptor, offset, into)

    for module in (blocks, verified_files):
        monkeypatch.setattr(module, "fill", watched)

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
