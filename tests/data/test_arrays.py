"""Arrays on disk: what is mapped is what was written, and nothing else is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stacking.data.arrays import growing_array, mapped_array

ROWS = arrays(np.int64, st.tuples(st.integers(0, 5), st.integers(1, 3)))


@given(values=ROWS)
def test_appended_values_can_be_mapped(tmp_path_factory: pytest.TempPathFactory, values: npt.NDArray[Any]) -> None:
    path = tmp_path_factory.mktemp("a") / "a.npy"
    with growing_array(path, np.int64) as growing:
        growing.append(values)
    np.testing.assert_array_equal(mapped_array(path), values)
    np.testing.assert_array_equal(mapped_array(path), np.load(path))


def _as(version: tuple[int, int]) -> bytes:
    return b"\x93NUMPY" + bytes(version)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"PK\x03\x04 looks like an archive",
        _as((2, 0)) + b"\xff\xff\xff\x7f a header of two gigabytes",
        _as((3, 0)) + b"\xff\xff\xff\x7f a header of two gigabytes",
    ],
)
def test_nothing_but_a_plain_array_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"magic string|EOF|version 1\.0"):
        mapped_array(tmp_path / "a.npy")


@pytest.mark.parametrize("values", [np.array([{}]), np.asfortranarray(np.ones((3, 3)))], ids=["objects", "columns"])
def test_objects_and_columns_are_refused(tmp_path: Path, values: npt.NDArray[Any]) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(ValueError, match="objects, or columns"):
        mapped_array(tmp_path / "a.npy")


def test_a_file_shorter_than_its_header_says_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(100))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="mmap length"):
        mapped_array(tmp_path / "a.npy")
