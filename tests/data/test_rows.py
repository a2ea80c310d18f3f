"""Texts in rows: JSON lines, lists of objects and Parquet, and rows without a text."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stacking.data import rows as module
from stacking.data.readers import TextFile, rows
from stacking.errors import UserError

GOOD = '{"text": "a"}\n'


def read(path: Path, key: str = "text") -> list[str]:
    return list(rows(TextFile(path, "parquet" if path.suffix == ".parquet" else "jsonl", key)))


def refusal(path: Path, content: str | bytes | None = None, key: str = "text") -> str:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        read(path, key)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ('{"text": 3}', "no string under the key `text`; name the key of the text: --text-key"),
        ("[1", "is JSON but not an object|not JSON"),
        ('"text"', "not an object"),
        ("{", "not JSON"),
        ('{"text": "half \\ud800"}', "half of a surrogate pair"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"text": "a"', "not JSON"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, bad: str, problem: str) -> None:
    message = refusal(tmp_path / "a.jsonl", GOOD * 2 + bad + "\n")
    assert "a.jsonl:3: " in message and any(each in message for each in problem.split("|"))


def test_a_line_that_is_too_long_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_LINE", 1000)
    assert "a.jsonl:2: is longer than 1,000 bytes" in refusal(tmp_path / "a.jsonl", GOOD + '{"text": "' + "x" * 10_000)
    assert "a JSON list of more than 1,000 bytes" in refusal(
        tmp_path / "b.json", "[" + (GOOD[:-1] + ",\n") * 500 + "1]"
    )


def test_a_list_of_objects_is_read_as_its_items(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps([{"text": "a"}, {"text": None}, {"text": "c"}], indent=1))
    assert read(path) == ["a", "", "c"]
    assert "[1]: is JSON but not an object" in refusal(path, '[{"text": "a"}, "b"]')


def test_the_user_chooses_the_key(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"raw_content": "a", "text": "no"}\n')
    pq.write_table(pa.table({"raw_content": ["a", None]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.jsonl", "raw_content") == ["a"]
    assert read(tmp_path / "a.parquet", "raw_content") == ["a", ""]


def test_most_rows_must_have_a_text(tmp_path: Path) -> None:
    """Half of the rows may lack a text, checked at row 1,000 and at the end of ten rows or more."""
    other = '{"content": "b", "url": ""}\n'
    (tmp_path / "few.jsonl").write_text(GOOD + other * 8)
    assert read(tmp_path / "few.jsonl") == ["a"] + [""] * 8
    (tmp_path / "half.jsonl").write_text((GOOD + other) * 600)
    assert len(read(tmp_path / "half.jsonl")) == 1200
    message = refusal(tmp_path / "a.jsonl", GOOD * 4 + other * 6)
    assert "no text under the key `text` in 6 of 10 rows; name one of its keys with --text-key: content, url" in message
    assert "in 1,000 of 1,000 rows" in refusal(tmp_path / "b.jsonl", other * 1000 + GOOD * 5000)
    pq.write_table(pa.table({"text": pa.array([None] * 9 + ["a"], pa.string())}), tmp_path / "a.parquet")
    assert "in 9 of 10 rows" in refusal(tmp_path / "a.parquet")
