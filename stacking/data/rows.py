"""Reads documents from fields of rows (JSON lines, Parquet, datasets) and checks for rows that lack them."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from stacking.data.compression import open_plain
from stacking.errors import DamagedFile, UserError

LONGEST_LINE = 64 << 20
"""Maximum bytes of a line of JSON; a longer one is rejected before it fills the memory."""

CHECKED_ROWS = 1000
"""After this many rows, and at the end of a file with at least ``_FEWEST_ROWS``, half of the rows must have a text."""

_FEWEST_ROWS = 10
_SHOWN_KEYS = 12
_BATCH = 256
_ONE_OBJECT = 'write one object {"text": "..."} per line'


class Texts:
    """Extracts the text of rows. A row without one, or with null, is an empty document."""

    def __init__(self, where: str | Path, key: str) -> None:
        self._where, self._key = where, key
        self._rows = self._missing = 0
        self._keys: list[str] = []

    def of(self, row: Mapping[str, Any], where: str | Path) -> str:
        """Returns the text of ``row``, which is located at ``where``.

        Raises:
            UserError: the text is not a string, or too many rows lack one.
        """
        self._rows += 1
        value = row.get(self._key)
        if value is None:
            self._missing += 1
            self._keys = self._keys or list(row)
        elif not isinstance(value, str):
            raise UserError(where, f"has no string under the key `{self._key}`", "name the key of the text: --text-key")
        elif _has_surrogate(value):
            raise UserError(where, "has half of a surrogate pair (\\ud800 to \\udfff)", "write the text again as UTF-8")
        if self._rows == CHECKED_ROWS:
            self._check()
        return value or ""

    def end(self) -> None:
        """Checks a file after its last row.

        Raises:
            UserError: most of its rows have no text.
        """
        if self._rows >= _FEWEST_ROWS:
            self._check()

    def _check(self) -> None:
        if self._missing > self._rows / 2:
            problem = f"has no text under the key `{self._key}` in {self._missing:,} of {self._rows:,} rows"
            raise UserError(self._where, problem, f"name one of its keys with --text-key: {listed(self._keys)}")


def listed(names: Iterable[str]) -> str:
    """Lists the first of ``names`` for a one-line message."""
    names = [name[:40] for name in names]
    return ", ".join(names[:_SHOWN_KEYS]) + (", ..." if len(names) > _SHOWN_KEYS else "")


def keys_of(path: Path, format: str) -> str:
    """Lists the keys of the first object in a JSON file, "" if there is none."""
    if format not in ("jsonl", "wiki"):
        return ""
    try:
        with open_plain(path) as stream:
            value = next((value for _, value in _values(path, stream)), None)
    except UserError:
        return ""
    return listed(value) if isinstance(value, dict) else ""


def json_texts(path: Path, stream: IO[bytes], key: str) -> Iterator[str]:
    """Yields the texts of JSON lines, or of a single list of objects; blank lines are skipped.

    Raises:
        UserError: a line is too long, not UTF-8 or not an object, or its text is not a string; gives the line number.
    """
    texts = Texts(path, key)
    for where, value in _values(path, stream):
        if not isinstance(value, dict):
            raise UserError(where, "is JSON but not an object", _ONE_OBJECT)
        yield texts.of(value, where)
    texts.end()


def _values(path: Path, stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    offset = number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        where = f"{path}:{number}"
        if len(line) > LONGEST_LINE:
            problem = f"is longer than {LONGEST_LINE:,} bytes, the maximum for one line of JSON"
            raise UserError(where, problem, "split it, or write one object per line")
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if number == 1 and content.lstrip().startswith(b"["):
            yield from _list(path, content, stream)
            return
        if content.strip():
            yield where, _parsed(where, path, content, offset + len(line) - len(content))
        offset += len(line)


def _list(path: Path, start: bytes, stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    content = start + stream.read(LONGEST_LINE + 1 - len(start))
    if len(content) > LONGEST_LINE:
        problem = f"is a JSON list of more than {LONGEST_LINE:,} bytes"
        raise UserError(path, problem, "convert it to JSON lines, such as with: jq -c '.[]'")
    for number, item in enumerate(_parsed(str(path), path, content, 0)):
        yield f"{path}: [{number}]", item


def _parsed(where: str, path: Path, content: bytes, offset: int) -> Any:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise UserError(path, f"is not UTF-8 at byte {offset + error.start:,}", "convert it to UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(where, f"is not JSON ({error})", _ONE_OBJECT) from None


def parquet_texts(path: Path, stream: IO[bytes], key: str) -> Iterator[str]:
    """Yields the texts of a Parquet file.

    Raises:
        UserError: it has no column ``key`` of strings.
        DamagedFile: it is truncated or corrupt.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = Texts(path, key)
    with tempfile.TemporaryFile() as seekable:
        is_plain = isinstance(getattr(stream, "raw", None), io.FileIO)
        if not is_plain:
            shutil.copyfileobj(stream, seekable)
        try:
            file = pq.ParquetFile(stream if is_plain else seekable)
            _require_strings(path, file.schema_arrow, key)
            for batch in file.iter_batches(batch_size=_BATCH, columns=[key]):
                yield from (texts.of({key: value}, path) for value in batch.column(0).to_pylist())
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = next(iter(str(error).splitlines()), "")
            raise DamagedFile(path, f"is not a whole parquet file ({reason})", "fetch or write it again") from None
        except UnicodeDecodeError as error:
            raise UserError(path, f"has a `{key}` that is not UTF-8 ({error.reason})", "convert it to UTF-8") from None
    texts.end()


def _require_strings(path: Path, schema: Any, key: str) -> None:
    import pyarrow.types as types

    if schema.names.count(key) != 1:
        remedy = f"name one of its columns with --text-key: {listed(schema.names)}"
        raise UserError(path, f"has {'no' if key not in schema.names else 'more than one'} column `{key}`", remedy)
    kind = schema.field(key).type
    if types.is_dictionary(kind):  # a categorical column
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view"):
        raise UserError(path, f"has a column `{key}` of {kind}, not of strings", "name another with --text-key")


def _has_surrogate(text: str) -> bool:
    """Whether a JSON escape produced a character that cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
