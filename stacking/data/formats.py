"""Defines the formats of text files and detects them from a file's name and beginning.

========  ==========================================================================================================
lines     BERT's own: one sentence per line, a blank line between documents
text      one document per file; a blank line ends a paragraph, other line breaks are wrapping
markdown  like text; headings are separate sentences, and emphasis marks are removed
wiki      output of extractors of Wikipedia dumps: ``<doc ...>`` to ``</doc>``, or JSON lines, one document each
jsonl     JSON lines with one object per line, or a single list of objects; ``--text-key`` names the text
parquet   one document per row; ``--text-key`` names the column
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
"""By format: the suffixes that its files can have in a folder."""

READABLE = (*TEXT_SUFFIXES[1:], ".md", *JSON_SUFFIXES, ".parquet")
HEAD_BYTES = 1 << 16
"""Number of leading bytes that determine a file's format."""

_FEWEST_LINES = 4
_ENDING_SHARE = 0.75
_SENTENCES_A_LINE = 1.5
_LINES_A_DOCUMENT = 1.5
_SPACED_END = re.compile(r"\s[.!?]\s+(?=\w)")


class NotText(Exception):
    """The reason why a file contains no readable text."""


def suffix_class(suffix: str) -> str:
    """Returns ``suffix``, or an empty string if it is a shard number (``.00000-of-00512``, ``.2007``)."""
    return "" if suffix[1:2].isdigit() else suffix


def recognise(suffix: str, head: bytes) -> str:
    """Detects a file's format from its ``suffix``, without a compression suffix, and its first ``HEAD_BYTES``.

    Raises:
        NotText: the suffix is unknown, or a file without one is not text.
    """
    suffix = suffix_class(suffix)
    if suffix == ".parquet" or (head.startswith(b"PAR1") and not suffix):
        return "parquet"
    if suffix == ".md":
        return "markdown"
    if suffix in JSON_SUFFIXES:
        if suffix == ".json" and head.strip() and not _is_json_lines(head):
            raise NotText("JSON, but neither one object per line nor a list of objects")
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
    if len(text) < HEAD_BYTES // 4:  # the last line is complete, not cut off by the head
        lines.append(last)
    blocks = [block for block in re.split(r"\n\s*\n", "\n".join(lines)) if block.strip()]
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) < max(_FEWEST_LINES, _LINES_A_DOCUMENT * len(blocks)):
        return False
    ending = sum(map(ends_sentence, lines))
    sentences = sum(len(list(split_sentences(line))) + len(_SPACED_END.findall(line)) for line in lines)
    return ending >= _ENDING_SHARE * len(lines) and sentences <= _SENTENCES_A_LINE * len(lines)


def _is_json_lines(head: bytes) -> bool:
    """Whether ``head`` begins with a list, or its first line is an object or too long to tell."""
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
    """Decodes ``head`` with universal newlines; ``strict`` is for files whose name does not say that they are text.

    Raises:
        NotText: ``strict`` is set and ``head`` is binary or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("strict" if strict else "replace")
    try:
        text = decoder.decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError:
        raise NotText("binary" if b"\0" in head else "not UTF-8") from None
    if strict and "\0" in text:
        raise NotText("binary")
    return text.replace("\r\n", "\n").replace("\r", "\n")
