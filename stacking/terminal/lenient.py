"""Keeps output errors from ending the work: a stream that survives a closed terminal and a full disk."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TextIO, cast


class _Lenient:
    """A text stream that drops what it cannot write instead of raising."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def lenient(stream: TextIO) -> TextIO:
    """Wraps ``stream`` to ignore the errors of a closed terminal or a full disk."""
    return cast(TextIO, _Lenient(stream))
