"""Which files an input refers to: each one is read, or skipped with a reason."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from stacking.data.find import find_files
from stacking.errors import UserError

JSON = '{"text": "A text."}\n'


def write(path: Path, data: str | bytes = "Some text.") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(folder: Path, format: str | None = None) -> dict[str, str]:
    files = find_files(str(folder), format).files
    return {file.path.relative_to(folder).as_posix(): file.format for file in files}


def passed_over(folder: Path, format: str | None = None) -> dict[str, str]:
    found = find_files(str(folder), format).passed_over
    return {path.relative_to(folder).as_posix(): reason for path, reason in found}


def test_folders_are_searched_recursively_in_name_order(tmp_path: Path) -> None:
    for name in ('b/É "q".txt', "a/it's.md", "b/z.txt.gz"):
        write(tmp_path / name, gzip.compress(b"text") if name.endswith(".gz") else "text")
    assert list(read(tmp_path)) == ["a/it's.md", "b/z.txt.gz", 'b/É "q".txt']


def test_a_mixed_folder_is_read_completely_and_skipped_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "en.00000-of-00002.json.gz", gzip.compress(JSON.encode()))
    write(tmp_path / "en.00001-of-00002", JSON)
    write(tmp_path / "AA/wiki_00", '<doc id="1" url="" title="T">\nT\n\nText.\n</doc>\n')
    write(tmp_path / "notes.TXT", "Some notes. Two sentences.")
    write(tmp_path / "LICENSE.md")
    write(tmp_path / "a.pdf", b"%PDF")
    write(tmp_path / "weights", b"\0\1\2")
    write(tmp_path / "latin", b"caf\xe9")
    write(tmp_path / "config.json", '{\n  "a": 1\n}\n')
    write(tmp_path / ".git/x.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    assert read(tmp_path) == {
        "AA/wiki_00": "wiki",
        "LICENSE.md": "markdown",
        "en.00000-of-00002.json.gz": "jsonl",
        "en.00001-of-00002": "jsonl",
        "notes.TXT": "text",
    }
    assert passed_over(tmp_path) == {
        ".git": "hidden",
        "a.pdf": "suffix .pdf",
        "config.json": "JSON, but neither one object per line nor a list of objects",
        "gone.txt": "broken link",
        "latin": "not UTF-8",
        "pipe.txt": "not a regular file",
        "weights": "binary",
    }


def test_links_are_followed_once_and_cycles_terminate(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/c.txt")
    write(tmp_path / "text/a.txt")
    deep = tmp_path / "text" / "/".join(["d"] * 30)
    write(deep / "b.txt")
    (deep / "up").symlink_to(tmp_path / "text")
    (deep / "self").symlink_to("self")
    (tmp_path / "text/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "text/z.txt").symlink_to(tmp_path / "text/a.txt")
    found = find_files(str(tmp_path / "text"))
    assert [file.path.name for file in found.files] == ["a.txt", "b.txt", "c.txt"]
    assert sorted(reason for _, reason in found.passed_over) == [
        "already read under another name",
        "broken link",
        "link to a folder that is already read",
    ]


def test_a_forced_format_applies_to_every_file_that_can_have_it(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    write(tmp_path / "b")
    write(tmp_path / "c.jsonl", JSON)
    assert read(tmp_path, "lines") == {"a.txt": "lines", "b": "lines"}
    assert passed_over(tmp_path, "lines") == {"c.jsonl": "suffix .jsonl, not --format lines"}
    assert find_files(str(write(tmp_path / "corpus.en")), "lines").files[0].format == "lines"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.txt", "does not exist"),
        ("a.pdf", r"has the suffix '\.pdf'.*--format"),
        ("empty", "has no readable file in it; give"),
        ("only", r"has no readable file in it; it has suffix \.pdf"),
        ("binary", "is binary"),
        ("pipe", "neither a file nor a folder"),
    ],
)
def test_paths_that_cannot_be_read_are_refused(tmp_path: Path, name: str, problem: str) -> None:
    write(tmp_path / "a.pdf", "x")
    write(tmp_path / "only/a.pdf", "x")
    write(tmp_path / "binary", b"\0")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=problem):
        find_files(str(tmp_path / name))
