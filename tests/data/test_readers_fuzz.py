"""Damaged and hostile files: the readers return text or refuse in one line, nothing else, and always terminate."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stacking.data.find import find_files
from stacking.data.readers import documents
from stacking.data.sentences import split_sentences
from stacking.errors import UserError
from tests.data.conftest import prose

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "a"]), inner, max_size=2),
    max_leaves=6,
)


def parquet(codec: str) -> bytes:
    sink = io.BytesIO()
    rows = {"id": list(range(300)), "text": [prose(number, 2) for number in range(300)]}
    pq.write_table(pa.table(rows), sink, row_group_size=100, compression=codec)
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


LINES = "".join(json.dumps({"text": prose(number, 3)}) + "\n" for number in range(50)).encode()
WIKI = "".join(f'<doc id="{n}" url="u" title="T">\nT\n\n{prose(n, 3)}\n</doc>\n' for n in range(50)).encode()
WHOLE = {
    "a.jsonl": LINES,
    "a.json": json.dumps([{"text": prose(number, 3)} for number in range(50)]).encode(),
    "wiki_00": WIKI,
    "a.txt": prose(0, 100).encode(),
    "a.parquet": parquet("snappy"),
    "b.parquet": parquet("none"),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.bz2": bz2.compress(LINES),
    "a.jsonl.xz": lzma.compress(LINES),
    "a.jsonl.zst": zstd(LINES),
    "a.parquet.zst": zstd(parquet("none")),
}


def read(path: Path) -> None:
    """Every document has text and splits into sentences, or the refusal is one line that names the file."""
    try:
        for file in find_files(str(path)).files:
            for document in documents(file):
                assert document.strip() and all(split_sentences(document))
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)


@pytest.mark.parametrize("name", WHOLE)
@FUZZ
@given(data=st.data())
def test_torn_and_bit_flipped_files_are_read_or_refused(tmp_path: Path, name: str, data: st.DataObject) -> None:
    content = bytearray(WHOLE[name])
    for _ in range(data.draw(st.integers(0, 4), "flips")):
        content[data.draw(st.integers(0, len(content) - 1), "where")] = data.draw(st.integers(0, 255), "byte")
    path = tmp_path / name
    path.write_bytes(content[: data.draw(st.integers(0, len(content)), "length")])
    read(path)


@pytest.mark.parametrize("name", ["a", "a.txt", "a.md", "a.jsonl", "a.json", "a.parquet", "a.gz", "a.txt.xz", "a.zst"])
@FUZZ
@given(content=st.binary(max_size=300) | st.text(alphabet='<doc >/\n\r\0{}[]":,aA.#* \x1e\ufeff。؟', max_size=200))
def test_any_bytes_under_any_name_are_read_or_refused(tmp_path: Path, name: str, content: bytes | str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    read(path)


@FUZZ
@given(values=st.lists(JSON, max_size=12), listed=st.booleans())
def test_any_json_is_read_or_refused(tmp_path: Path, values: list[object], listed: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values) if listed else "".join(json.dumps(value) + "\n" for value in values))
    read(path)


@pytest.mark.parametrize(
    "unit", ["# ", "-\n", "#\n", ". ", "。", '."', "* ", "<", "&lt;", "*a", "_", "<doc ", "\n\n", "[(", "\x1e"]
)
def test_no_repetition_takes_more_than_linear_time(tmp_path: Path, unit: str) -> None:
    for name in ("a.txt", "a.md"):
        path = tmp_path / name
        path.write_text(unit * (200_000 // len(unit)) + "x")
        read(path)
