"""Documents out of files, folders and Hugging Face datasets, streamed.

A .txt or .md file is one document, a .jsonl line or a .parquet row (``text``) another. A document longer than
``LONGEST_DOCUMENT`` characters is cut at paragraph boundaries into parts that count as documents, so that memory is
bounded whatever the file, and a corpus of a single file can still give a held-out split.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from stacking.errors import DamagedFile, UserError

LONGEST_DOCUMENT = 200_000

_BLOCK = 1 << 16
_ROWS = 256
_DATASET = re.compile(r"[\w-]+(\.[\w-]+)*(/[\w.-]+)?(:[\w.-]+)?")
_EMPHASIS = re.compile(r"([*_](?<!\w_)[*_]{0,2})(?=\S)([^*_\n]+)(?<=\S)\1(?!\w)")


def is_dataset(name: str) -> bool:
    """Whether ``name`` can only be a Hugging Face dataset (``NAME`` or ``NAME:CONFIGURATION``): it is no path here."""
    path = Path(name)
    if path.exists() or not _DATASET.fullmatch(name) or _suffix(path) in READERS:
        return False
    return "/" not in name or not Path(path.parts[0]).exists()


def find_files(name: str) -> list[Path]:
    """The readable files that ``name``, a file or a folder, stands for, in an order that the names alone decide.

    Folders are searched in depth; hidden files and other suffixes in them are passed over.

    Raises:
        UserError: no such path, a file of another suffix, a folder without any readable file.
    """
    path = Path(name)
    known = ", ".join(f"{suffix}[.gz]" for suffix in READERS)
    if path.is_dir():
        files = [file for file in path.rglob("*") if _suffix(file) in READERS and file.is_file()]
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        if not files:
            raise UserError(name, "has no readable file in it", f"give a folder with {known}")
        return sorted(files, key=lambda file: file.relative_to(path).as_posix())
    if not path.exists():
        raise UserError(name, "does not exist", "check the path")
    if _suffix(path) not in READERS:
        raise UserError(name, f"has the suffix {path.suffix!r} that no reader knows", f"give one of {known}")
    return [path]


def documents(path: Path) -> Iterator[str]:
    """The documents of one file; blank ones are left out.

    Raises:
        UserError: the file cannot be read, is not UTF-8 (with the byte offset), or lacks ``text`` (with the line).
        DamagedFile: a torn gzip or parquet file.
    """
    try:
        with open(path, "rb") as raw:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if path.suffix.lower() == ".gz" else raw
            for document in READERS[_suffix(path)](path, stream):
                if document and not document.isspace():
                    yield document
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedFile(path, f"is a torn gzip file ({error})", "fetch or compress it again") from None
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror or error})", "check the file") from None


def dataset_documents(name: str) -> Iterator[str]:
    """The documents of a Hugging Face dataset's ``train`` split, streamed.

    Raises:
        UserError: the dataset cannot be reached or has no column ``text``.
    """
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(repository, configuration or None, split="train", streaming=True)
        for row in rows:
            if not isinstance(row.get("text"), str):
                raise UserError(name, f"has no column of strings `text` but {', '.join(row)}", "choose another dataset")
            yield from _parts([row["text"]])
    except UserError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        problem = f"is neither a path here nor a dataset that can be read ({type(error).__name__}: {reason})"
        raise UserError(name, problem, "check the name, or the network") from None


def _suffix(path: Path) -> str:
    """The suffix that decides the reader: ``.txt`` for ``a.txt.gz``."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _text(path: Path, stream: IO[bytes]) -> Iterator[str]:
    return _parts(_decoded(path, stream))


def _markdown(path: Path, stream: IO[bytes]) -> Iterator[str]:
    """As text, without the marks of emphasis; headings are left to the sentence rule."""
    return (_EMPHASIS.sub(r"\2", part) if "*" in part or "_" in part else part for part in _text(path, stream))


def _jsonl(path: Path, stream: IO[bytes]) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        where = f"{path}:{number}"
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")) if line.strip() else {"text": ""}
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + error.start) from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(where, f"is not JSON ({error})", 'write one object {"text": "..."} a line') from None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise UserError(where, "has no string under the key `text`", 'write one object {"text": "..."} a line')
        if _has_surrogate(value["text"]):
            raise UserError(where, "has half of a surrogate pair (\\ud800 to \\udfff)", "write the text again as UTF-8")
        yield from _parts([value["text"]])
        offset += len(line)


def _parquet(path: Path, stream: IO[bytes]) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as seekable:
        if isinstance(stream, gzip.GzipFile):
            shutil.copyfileobj(stream, seekable)
        try:
            file = pq.ParquetFile(seekable if isinstance(stream, gzip.GzipFile) else stream)
            if "text" not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(path, f"has no column `text` but {names}", "rename the column that holds the text")
            if not _is_string(file.schema_arrow.field("text").type):
                raise UserError(path, "has a column `text` that is not of strings", "convert the column")
            for batch in file.iter_batches(batch_size=_ROWS, columns=["text"]):
                yield from _parts_of_each(value or "" for value in batch.column(0).to_pylist())
        except (pa.ArrowInvalid, OSError) as error:
            reason = next(iter(str(error).splitlines()), "")
            raise DamagedFile(path, f"is not a whole parquet file ({reason})", "fetch or write it again") from None
        except UnicodeDecodeError as error:
            raise UserError(path, f"has a `text` that is not UTF-8 ({error.reason})", "convert it to UTF-8") from None


def _has_surrogate(text: str) -> bool:
    """Whether a JSON escape made a character that no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_string(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):  # a categorical column
        return _is_string(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view")


def _decoded(path: Path, stream: IO[bytes]) -> Iterator[str]:
    """The text of ``stream`` in blocks, with universal newlines and without a byte-order mark."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    offset, is_last = 0, False
    while not is_last:
        block = stream.read(_BLOCK)
        is_last = not block
        try:
            text = decoder.decode(block, final=is_last)  # type: ignore[arg-type]
        except UnicodeDecodeError as error:
            carried = len(error.object) - len(block)
            raise _not_utf8(path, offset - carried + error.start) from None
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(block)


def _not_utf8(path: Path, offset: int) -> UserError:
    return UserError(path, f"is not UTF-8 at byte {offset:,}", "convert it to UTF-8")


def _parts_of_each(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from _parts([text])


def _parts(blocks: Iterable[str]) -> Iterator[str]:
    """The text of ``blocks`` in parts of at most ``LONGEST_DOCUMENT`` characters.

    A part ends at the last blank line in its second half, failing that at a line break, at a space, or anywhere.
    """
    text = ""
    for block in blocks:
        text += block
        while len(text) > LONGEST_DOCUMENT:
            found = (text.rfind(mark, LONGEST_DOCUMENT // 2, LONGEST_DOCUMENT) for mark in ("\n\n", "\n", " "))
            cut = next((position for position in found if position > 0), LONGEST_DOCUMENT)
            yield text[:cut]
            text = text[cut:]
    yield text


READERS: dict[str, Callable[[Path, IO[bytes]], Iterator[str]]] = {
    ".txt": _text,
    ".md": _markdown,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
