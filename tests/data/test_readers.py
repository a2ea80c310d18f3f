"""Documents read from files, and one line for every file that is not what it should be."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stacking.data import readers
from stacking.data.find import find_files
from stacking.data.readers import TextFile, rows
from stacking.data.readers import documents as documents_of
from stacking.data.sentences import split_sentences
from stacking.errors import StackingError, UserError


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def documents(path: Path, **options: str) -> list[str]:
    """The documents of ``path`` as ``prepare`` would read it."""
    return [document for file in find_files(str(path), **options).files for document in documents_of(file)]


def refusal(path: Path, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        documents(path, **options)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    text = "Première phrase. Zweiter Satz.\n\nEnde."
    jsonl = json.dumps({"text": text, "id": 1}) + "\n\n"
    pq.write_table(pa.table({"id": [1, 2], "text": [text, None]}), tmp_path / "a.parquet")
    write(tmp_path / "a.txt", text)
    write(tmp_path / "a.jsonl", jsonl)
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        write(tmp_path / f"{name}.gz", gzip.compress((tmp_path / name).read_bytes()))
        assert documents(tmp_path / name) == [text]
        assert documents(tmp_path / f"{name}.gz") == [text]


def test_only_the_emphasis_is_removed_from_markdown(tmp_path: Path) -> None:
    file = write(tmp_path / "a.md", "# Title\n\n**Bold** and *it is* _so_, snake_case_name, 2 * 3 * 4.")
    assert documents(file) == ["# Title\n\nBold and it is so, snake_case_name, 2 * 3 * 4."]


def test_line_endings_and_byte_order_mark_are_normalised(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree")) == ["one\ntwo\nthree"]


def test_characters_that_span_blocks_stay_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_BLOCK", 3)
    assert documents(write(tmp_path / "a.txt", "né€𝄞\r\né")) == ["né€𝄞\né"]


def test_long_documents_are_cut_at_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 100)
    paragraphs = [f"Paragraph {number} " + "x" * 30 for number in range(20)]
    text = "\n\n".join(paragraphs)
    parts = documents(write(tmp_path / "a.txt", text))
    assert "".join(parts) == text and all(len(part) <= 100 for part in parts)
    assert [p for part in parts for p in part.strip().split("\n\n")] == paragraphs
    unbroken = documents(write(tmp_path / "b.jsonl", json.dumps({"text": "y" * 250})))
    assert [len(part) for part in unbroken] == [100, 100, 50]


def test_text_that_is_not_utf8_is_refused_with_its_offset(tmp_path: Path) -> None:
    data = b"a" * 100_000 + b"\xff" + b"b" * 10
    assert "is not UTF-8 at byte 100,000" in refusal(write(tmp_path / "a.txt", data))
    assert "is not UTF-8 at byte 100,000" in refusal(write(tmp_path / "a.txt.gz", gzip.compress(data)))
    assert "is not UTF-8 at byte 3" in refusal(write(tmp_path / "b.md", b"abc\xe2\x82"))
    assert "is not UTF-8 at byte 24" in refusal(write(tmp_path / "c.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n'))


def test_a_categorical_column_is_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == ["a", "b", "a"]


def test_parquet_without_text_or_cut_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    assert "has no column `text`; name one of its columns with --text-key: body, id" in refusal(tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet", text_key="body") == ["a"]
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    assert "not of strings" in refusal(tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["a" * 1000]}), tmp_path / "c.parquet")
    write(tmp_path / "d.parquet", (tmp_path / "c.parquet").read_bytes()[:-20])
    assert "is not a whole parquet file" in refusal(tmp_path / "d.parquet")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("named", [True, False])
def test_compressed_files_are_read_and_torn_ones_refused(tmp_path: Path, suffix: str, named: bool) -> None:
    text = "".join(json.dumps({"text": f"Document {number}."}) + "\n" for number in range(5000)).encode()
    whole = COMPRESS[suffix](text)
    name = "c4.00000-of-00002.json" if named else "c4.00000-of-00002"
    path = write(tmp_path / f"{name}{suffix if named else ''}", whole)
    assert len(documents(path)) == 5000
    assert "torn" in refusal(write(tmp_path / f"cut.jsonl{suffix}", whole[: len(whole) // 2]))
    assert "torn" in refusal(write(tmp_path / f"other.jsonl{suffix}", b"not compressed at all" * 9))


def _zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd}


def test_a_failing_file_system_is_not_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", "One. Two.")

    def fail(*_: object) -> object:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setitem(readers.READERS, "text", fail)
    with pytest.raises(StackingError, match=r"a\.txt: cannot be read \(Input/output error\)") as caught:
        list(documents_of(TextFile(path, "text")))
    assert caught.value.exit_code == 1


def test_each_line_is_a_sentence_and_a_blank_line_ends_the_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "mr. x came . he left .\r\nso did  i .\r\n\r\n \r\n# two .\r\nthe end .\r\n")
    found = [list(split_sentences(document)) for document in documents(path, format="lines")]
    assert found == [["mr. x came . he left .", "so did i ."], ["# two .", "the end ."]]


def test_a_long_document_of_lines_is_cut_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 100)
    lines = [f"sentence number {number} ." for number in range(40)]
    found = documents(write(tmp_path / "a.txt", "\n".join(lines)), format="lines")
    assert [sentence for document in found for sentence in split_sentences(document)] == lines
    assert len(found) > 5 and all(len(document) <= 120 for document in found)


def test_a_huge_line_comes_in_pieces_whatever_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 100)
    path = write(tmp_path / "a.txt", "word " * 100_000)
    for format in ("lines", "text"):
        found = documents(path, format=format)
        assert sum(document.count("word") for document in found) == 100_000
        assert max(map(len, found)) <= 220


def test_only_rows_and_articles_can_be_empty(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": null}\n\n{}\n{"text": " "}\n')
    write(tmp_path / "b.txt", "\n\n \n")
    assert list(rows(TextFile(tmp_path / "a.jsonl", "jsonl"))) == ["a", "", "", ""]
    assert list(rows(TextFile(tmp_path / "b.txt", "text"))) == []


def test_utf16_without_a_mark_and_archives_are_named(tmp_path: Path) -> None:
    assert "consists largely of zero bytes" in refusal(write(tmp_path / "a.txt", "Ein Text.".encode("utf-16-le")))
    assert "is a zip archive; unpack it" in refusal(write(tmp_path / "b.txt", b"PK\x03\x04\x14\x00\xff\xff"))
    assert documents(write(tmp_path / "c.txt", "A stray\0 byte is no reason to refuse a whole text.")) != []
