"""Streams documents from files.

A document longer than ``TextFile.cut`` characters is cut into parts that count as documents, at a blank line or the end
of a sentence if possible. This bounds memory for any file, and lets a corpus of a single file have a held-out split.
``formats`` defines a document for each format.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from stacking.data.compression import open_plain
from stacking.data.rows import json_texts, parquet_texts
from stacking.data.sentences import SENTENCE_END
from stacking.data.wiki import articles, without_marks
from stacking.errors import UserError

LONGEST_DOCUMENT = 200_000

_BLOCK = 1 << 16
_CUTS = ("\n\n", ".\n", ". ", "。", "।", "؟", "\n", " ")
"""Preferred places to cut a document, best first: before white space, after a stop."""

_EMPHASIS = re.compile(r"([*_](?<!\w_)[*_]{0,2})(?=\S)([^*_\n]+)(?<=\S)\1(?!\w)")

_MOST_ZEROS = 0.2
"""Share of zero bytes at the beginning of a file above which it is no text."""


@dataclass(frozen=True)
class TextFile:
    """A file, its format (a key of ``READERS``) and the key of the text in its rows, if it has rows."""

    path: Path
    format: str
    text_key: str = "text"
    longest: int | None = None
    """Length in characters at which a document is cut, if not ``LONGEST_DOCUMENT``."""

    @property
    def cut(self) -> int:
        """The length in characters at which a document is cut."""
        return self.longest or LONGEST_DOCUMENT


def documents(file: TextFile) -> Iterator[str]:
    """Yields the non-empty documents of one file.

    Raises:
        UserError, DamagedFile, StackingError: as ``rows`` does.
    """
    return (document for document in rows(file) if document)


def rows(file: TextFile) -> Iterator[str]:
    """Yields the documents of one file, "" for each blank row or article.

    If the sentences of a document are known, ``SENTENCE_END`` follows each of them.

    Raises:
        UserError: the file cannot be read, is not UTF-8 (gives the byte offset), or lacks its text (gives the line).
        DamagedFile: the file is truncated or corrupt.
        StackingError: the file system failed.
    """
    with open_plain(file.path) as stream:
        for document in READERS[file.format](file, stream):
            if not document or document.isspace():
                if file.format in WITH_ROWS:
                    yield ""
            elif file.format == "lines":
                yield document
            else:
                yield document.replace(SENTENCE_END, " ")


def _lines(file: TextFile, stream: IO[bytes]) -> Iterator[str]:
    """Reads every non-blank line as a sentence; a blank one ends the document."""
    sentences: list[str] = []
    size = 0
    for line in split_lines(_decoded(file.path, stream)):
        sentence = " ".join(line.split())
        if sentences and (not sentence or size + len(sentence) >= file.cut):
            yield "".join(sentences)
            sentences, size = [], 0
        if sentence:
            sentences.append(sentence + SENTENCE_END)
            size += len(sentences[-1])
    yield "".join(sentences)


def _text(file: TextFile, stream: IO[bytes]) -> Iterator[str]:
    return _parts(_decoded(file.path, stream), file.cut)


def _markdown(file: TextFile, stream: IO[bytes]) -> Iterator[str]:
    """Reads as text, without emphasis marks; the sentence rule handles headings."""
    return (_EMPHASIS.sub(r"\2", part) if "*" in part or "_" in part else part for part in _text(file, stream))


def _wiki(file: TextFile, stream: IO[bytes]) -> Iterator[str]:
    if cast(Any, stream).peek(1).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        return _parts_of_each(map(without_marks, json_texts(file.path, stream, file.text_key)), file.cut)
    return _parts_of_each(articles(file.path, split_lines(_decoded(file.path, stream))), file.cut)


def _jsonl(file: TextFile, stream: IO[bytes]) -> Iterator[str]:
    return _parts_of_each(json_texts(file.path, stream, file.text_key), file.cut)


def _parquet(file: TextFile, stream: IO[bytes]) -> Iterator[str]:
    return _parts_of_each(parquet_texts(file.path, stream, file.text_key), file.cut)


def split_lines(blocks: Iterable[str]) -> Iterator[str]:
    """Yields the lines of ``blocks`` without line ends; one longer than ``LONGEST_DOCUMENT`` comes in pieces."""
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block).split("\n")
        yield from lines
        while len(rest) > LONGEST_DOCUMENT:
            cut = rest.rfind(" ", LONGEST_DOCUMENT // 2, LONGEST_DOCUMENT)
            cut = cut if cut > 0 else LONGEST_DOCUMENT
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _decoded(path: Path, stream: IO[bytes]) -> Iterator[str]:
    """Decodes ``stream`` in blocks, with universal newlines and without a byte-order mark."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    offset, is_last = 0, False
    while not is_last:
        block = stream.read(_BLOCK)
        is_last = not block
        try:
            text = decoder.decode(block, final=is_last)  # type: ignore[arg-type]
        except UnicodeDecodeError as error:
            carried = len(error.object) - len(block)
            raise _not_utf8(path, offset - carried + error.start, block if offset == 0 else b"") from None
        if offset == 0 and block.count(0) > _MOST_ZEROS * len(block):
            problem = "consists largely of zero bytes, like UTF-16 or binary files"
            raise UserError(path, problem, f"convert it: iconv -f UTF-16LE -t UTF-8 {path.name}")
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(block)


def _not_utf8(path: Path, offset: int, start: bytes) -> UserError:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return UserError(path, "is UTF-16, not UTF-8", f"convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    if start.startswith(b"PK\x03\x04"):
        return UserError(path, "is a zip archive", "unpack it")
    remedy = "convert it to UTF-8, from Windows-1252 for example: iconv -f WINDOWS-1252 -t UTF-8"
    return UserError(path, f"is not UTF-8 at byte {offset:,}", remedy)


def _parts_of_each(texts: Iterable[str], longest: int) -> Iterator[str]:
    for text in texts:
        if len(text) <= longest:
            yield text
        else:
            yield from filter(str.strip, _parts([text], longest))


def _parts(blocks: Iterable[str], longest: int) -> Iterator[str]:
    """Splits the text of ``blocks`` into parts of at most ``longest`` characters.

    A part ends at the last occurrence, in its second half, of the first of ``_CUTS`` found there, else anywhere.
    """
    text = ""
    for block in blocks:
        text += block
        start = 0
        while len(text) - start > longest:
            window = text[start : start + longest]
            found = (window.rfind(mark, longest // 2) + len(mark.rstrip()) for mark in _CUTS if mark in window)
            cut = next((position for position in found if position > longest // 2), longest)
            yield window[:cut]
            start += cut
        text = text[start:]
    yield text


READERS: dict[str, Callable[[TextFile, IO[bytes]], Iterator[str]]] = {
    "lines": _lines,
    "text": _text,
    "markdown": _markdown,
    "wiki": _wiki,
    "jsonl": _jsonl,
    "parquet": _parquet,
}

WITH_ROWS = ("wiki", "jsonl", "parquet")
"""Formats in which a document can be empty."""
