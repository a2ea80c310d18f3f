"""The formats of text files, and how a file's format is recognised from its name and its beginning.

========  ==========================================================================================================
lines     BERT's own: a sentence a line, a blank line between documents
text      a document a file; a blank line ends a paragraph, other line breaks are wrapping
markdown  as text, with headings as sentences of their own and without the marks of emphasis
wiki      what extractors of Wikipedia dumps write: ``<doc ...>`` to ``</doc>``, or JSON lines, a document each
jsonl     JSON lines, an object a line, or one list of objects; ``--text-key`` names the text
parquet   a row a document; ``--text-key`` names the column
========  ==========================================================================================================
"""

from __future__ import annotations

import codecs
import json
import re

from stacking.data.sentences import ends_sentence, split_sentences

TEXT_SUFFIXES = ("", ".txt", ".text", ".raw", ".tokens")
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
SUFFIXES: dict[str, tuple[str, ...]] = {
    "lines": TEXT_SUFFIXES,
    "text": (*TEXT_SUFFIXES, ".md"),
    "markdown": (*TEXT_SUFFIXES, ".md"),
    "wiki": (*TEXT_SUFFIXES, *JSON_SUFFIXES),
    "jsonl": (*TEXT_SUFFIXES, *JSON_SUFFIXES),
    "parquet": ("", ".parquet"),
}
"""By format: the suffixes of the files of a folder that can have it."""

READABLE = (*TEXT_SUFFIXES[1:], ".md", *JSON_SUFFIXES, ".parquet")
HEAD_BYTES = 1 << 16
"""How much of a file decides its format."""

_FEWEST_LINES = 4
_ENDING_SHARE = 0.75
_SENTENCES_A_LINE = 1.5
_LINES_A_DOCUMENT = 1.5
_SPACED_END = re.compile(r"\s[.!?]\s+(?=\w)")


class NotText(Exception):
    """Why a file holds no text that could be read."""


def suffix_class(suffix: str) -> str:
    """``suffix``, or none where it numbers a shard (``.00000-of-00512``, ``.2007``)."""
    return "" if suffix[1:2].isdigit() else suffix


def recognise(suffix: str, head: bytes) -> str:
    """The format of a file by its ``suffix``, without that of a compression, and its first ``HEAD_BYTES``.

    Raises:
        NotText: no reader knows the suffix, or a file without one holds something else.
    """
    suffix = suffix_class(suffix)
    if suffix == ".parquet" or (head.startswith(b"PAR1") and not suffix):
        return "parquet"
    if suffix == ".md":
        return "markdown"
    if suffix in JSON_SUFFIXES:
        if suffix == ".json" and head.strip() and not _is_json_lines(head):
            raise NotText("JSON, but neither an object a line nor a list of objects")
        return "jsonl"
    if suffix not in TEXT_SUFFIXES:
        raise NotText(f"suffix {suffix}")
    text = _decoded(head, strict=not suffix)
    if text.lstrip().startswith("<doc "):
        return "wiki"
    if text.lstrip().startswith("{") and _is_json_lines(head):
        return "jsonl"
    return "lines" if is_sentence_a_line(text) else "text"


def is_sentence_a_line(text: str) -> bool:
    """Whether the lines of ``text`` are sentences: nearly all end like one, few hold two, and blank lines are rarer."""
    *lines, last = text.split("\n")
    if len(text) < HEAD_BYTES // 4:  # the file's own last line, not one that the head cuts
        lines.append(last)
    blocks = [block for block in re.split(r"\n\s*\n", "\n".join(lines)) if block.strip()]
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) < max(_FEWEST_LINES, _LINES_A_DOCUMENT * len(blocks)):
        return False
    ending = sum(map(ends_sentence, lines))
    sentences = sum(len(list(split_sentences(line))) + len(_SPACED_END.findall(line)) for line in lines)
    return ending >= _ENDING_SHARE * len(lines) and sentences <= _SENTENCES_A_LINE * len(lines)


def _is_json_lines(head: bytes) -> bool:
    """Whether ``head`` begins a list, or its first line is an object or too long to tell."""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        return True
    line, ends, _ = start.partition(b"\n")
    if not ends and len(head) >= HEAD_BYTES:
        return line.startswith(b"{")
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _decoded(head: bytes, strict: bool) -> str:
    """The text of ``head`` with universal newlines; ``strict`` is for files whose name does not say that they are text.

    Raises:
        NotText: ``head`` is binary, or in another encoding, and ``strict``.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("strict" if strict else "replace")
    try:
        text = decoder.decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError:
        raise NotText("binary" if b"\0" in head else "not UTF-8") from None
    if strict and "\0" in text:
        raise NotText("binary")
    return text.replace("\r\n", "\n").replace("\r", "\n")
