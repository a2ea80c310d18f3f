"""Reads tokenizer files and names common mistakes: LFS pointers, web pages, other encodings, other tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stacking.errors import UserError
from stacking.storage.signatures import DOWNLOADS, refuse_signatures

_FOREIGN = (*DOWNLOADS, (0, b"PK\x03\x04", "is a ZIP archive", "unpack it"))
"""What may be found in place of a tokenizer's file."""

_ENCODINGS = (("utf-16", (b"\xff\xfe", b"\xfe\xff")), ("gb18030", ()), ("shift_jis", ()), ("euc_kr", ()))
"""Encodings other than UTF-8 in which vocabularies occur, with their byte-order marks, if any."""

_OTHER_TOKENIZERS = {
    "*.model": "a SentencePiece model",
    "merges.txt": "a byte-level BPE tokenizer",
    "vocab.json": "a tokenizer with vocab.json",
    "*.tiktoken": "a tiktoken vocabulary",
    "vocab.bpe": "a byte-level BPE tokenizer",
}


def read_text(file: Path) -> str:
    """Reads the UTF-8 text of ``file``.

    Raises:
        UserError: it is something else; the message says what, if the bytes tell.
    """
    data = file.read_bytes()
    refuse_signatures(file, data, _FOREIGN)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found = _encoding(data)
        guess = f", it reads as {found}" if found else ""
        remedy = f"convert it: iconv -f {found or 'ENCODING'} -t utf-8"
        raise UserError(f"{file}: line {line}", f"is not UTF-8{guess}", remedy) from None


def _encoding(data: bytes) -> str | None:
    for name, marks in _ENCODINGS:
        if marks and not data.startswith(marks):
            continue
        try:
            data.decode(name)
        except UnicodeDecodeError:
            continue
        return name
    return None


def read_object(file: Path) -> dict[str, Any]:
    """Reads the JSON object in ``file``.

    Raises:
        UserError: it holds something else.
    """
    try:
        content = json.loads(read_text(file).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON ({str(error).partition(';')[0]})"
        raise UserError(file, problem, "download it again, or give a vocab.txt") from None
    if not isinstance(content, dict):
        kind = "list" if isinstance(content, list) else type(content).__name__
        raise UserError(file, f"holds a {kind}, not a JSON object", "download it again, or remove it")
    return content


def read_entries(file: Path) -> dict[str, int]:
    """Reads the entries of a ``vocab.txt``, one per line, and their ids.

    Raises:
        UserError: it is not a list of WordPiece entries.
    """
    text = read_text(file)
    if text.startswith("\ufeff"):
        raise UserError(f"{file}: line 1", "begins with a byte order mark", "remove it: sed -i '1s/^\\xEF\\xBB\\xBF//'")
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if "\t" in line.rstrip("\r"):
            problem = f"has columns ({line.rstrip()[:60]!r})"
            raise UserError(f"{file}: line {number}", problem, "keep only the entries, one per line: cut -f 1")
    if not text.strip():
        raise UserError(file, "is empty", "give a vocabulary with one entry per line")
    # Trailing white space is not part of an entry, as in the tokenizers library.
    return {line.rstrip(): number for number, line in enumerate(lines)}


def refuse_other_programs(file: Path, content: dict[str, Any]) -> None:
    """Rejects a ``tokenizer.json`` that is not a WordPiece tokenizer of the tokenizers library.

    Raises:
        UserError: says what it is.
    """
    model = content.get("model")
    if not isinstance(model, dict):
        keys = ", ".join(list(content)[:4]) or "none"
        problem = f"is not of Hugging Face's tokenizers (its keys: {keys})"
        raise UserError(file, problem, "give a WordPiece tokenizer.json or a vocab.txt")
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram" if "unk_id" in model else "WordPiece")
    if kind != "WordPiece":
        raise UserError(file, f"is a {kind} tokenizer", "give a WordPiece one, as BERT's")


def refuse_other_tokenizers(folder: Path) -> None:
    """Rejects a folder with the files of another kind of tokenizer.

    Raises:
        UserError: names them.
    """
    for pattern, what in _OTHER_TOKENIZERS.items():
        if found := sorted(folder.glob(pattern)):
            raise UserError(found[0], f"is {what}", "give a WordPiece tokenizer, as BERT's")
