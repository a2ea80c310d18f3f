"""Documents out of files, and one line for every file that is not what it should be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stacking.data import readers
from stacking.data.readers import documents, find_files, is_dataset
from stacking.errors import UserError


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(documents(path))
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
        assert list(documents(tmp_path / name)) == [text]
        assert list(documents(tmp_path / f"{name}.gz")) == [text]


def test_markdown_loses_its_emphasis_and_nothing_else(tmp_path: Path) -> None:
    file = write(tmp_path / "a.md", "# Title\n\n**Bold** and *it is* _so_, snake_case_name, 2 * 3 * 4.")
    assert list(documents(file)) == ["# Title\n\nBold and it is so, snake_case_name, 2 * 3 * 4."]


def test_line_endings_and_byte_order_mark_are_normalised(tmp_path: Path) -> None:
    assert list(documents(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree"))) == ["one\ntwo\nthree"]


def test_characters_across_blocks_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_BLOCK", 3)
    assert list(documents(write(tmp_path / "a.txt", "né€𝄞\r\né"))) == ["né€𝄞\né"]


def test_long_documents_are_cut_at_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 100)
    paragraphs = [f"Paragraph {number} " + "x" * 30 for number in range(20)]
    text = "\n\n".join(paragraphs)
    parts = list(documents(write(tmp_path / "a.txt", text)))
    assert "".join(parts) == text and all(len(part) <= 100 for part in parts)
    assert [p for part in parts for p in part.strip().split("\n\n")] == paragraphs
    unbroken = list(documents(write(tmp_path / "b.jsonl", json.dumps({"text": "y" * 250}))))
    assert [len(part) for part in unbroken] == [100, 100, 50]


def test_folders_are_searched_in_depth_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ('b/É "q".txt', "a/it's.md", "a/.hidden.txt", ".git/x.txt", "c.pdf", "b/z.jsonl.gz"):
        write(tmp_path / name, "text")
    found = [file.relative_to(tmp_path).as_posix() for file in find_files(str(tmp_path))]
    assert found == ["a/it's.md", "b/z.jsonl.gz", 'b/É "q".txt']


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing.txt", "does not exist"), ("a.pdf", "has the suffix '.pdf'"), ("empty", "has no readable file")],
)
def test_paths_that_cannot_be_read_are_refused(tmp_path: Path, name: str, problem: str) -> None:
    write(tmp_path / "a.pdf", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=problem):
        find_files(str(tmp_path / name))


def test_text_that_is_not_utf8_is_refused_with_its_offset(tmp_path: Path) -> None:
    data = b"a" * 100_000 + b"\xff" + b"b" * 10
    assert "is not UTF-8 at byte 100,000" in refusal(write(tmp_path / "a.txt", data))
    assert "is not UTF-8 at byte 100,000" in refusal(write(tmp_path / "a.txt.gz", gzip.compress(data)))
    assert "is not UTF-8 at byte 3" in refusal(write(tmp_path / "b.md", b"abc\xe2\x82"))
    assert "is not UTF-8 at byte 24" in refusal(write(tmp_path / "c.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n'))


def test_jsonl_lines_without_text_are_refused_with_their_number(tmp_path: Path) -> None:
    good = '{"text": "a"}\n'
    for bad, problem in [
        ('{"txt": "a"}', "no string under the key `text`"),
        ('{"text": 3}', "no string"),
        ("[1", "not JSON"),
        ('{"text": "half \\ud800"}', "half of a surrogate pair"),
    ]:
        message = refusal(write(tmp_path / "a.jsonl", good * 2 + bad + "\n"))
        assert problem in message and "a.jsonl:3" in message


def test_a_categorical_column_is_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "a.parquet")
    assert list(documents(tmp_path / "a.parquet")) == ["a", "b", "a"]


def test_parquet_without_text_or_cut_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    assert "has no column `text` but body" in refusal(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    assert "not of strings" in refusal(tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["a" * 1000]}), tmp_path / "c.parquet")
    write(tmp_path / "d.parquet", (tmp_path / "c.parquet").read_bytes()[:-20])
    assert "is not a whole parquet file" in refusal(tmp_path / "d.parquet")


def test_torn_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"some text " * 10_000)
    assert "torn gzip" in refusal(write(tmp_path / "a.txt.gz", whole[: len(whole) // 2]))
    assert "torn gzip" in refusal(write(tmp_path / "b.jsonl.gz", b"not gzip at all"))


def test_only_names_that_are_no_paths_are_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert [name for name in NAMES if is_dataset(name)] == ["wikitext:wikitext-2-raw-v1", "owner/name", "imdb"]


NAMES = [
    "wikitext:wikitext-2-raw-v1",
    "owner/name",
    "imdb",
    "data",
    "data/none",
    "./x",
    "../x/y",
    "/a/b",
    "a b",
    "x.txt",
]
