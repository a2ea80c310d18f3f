"""Text for people must not end the work: a stream that outlives its terminal and the disk behind it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TextIO, cast


class _Lenient:
    """A text stream that loses what cannot be written instead of raising."""

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
    """``stream``, without the errors of a closed terminal or of a full disk."""
    return cast(TextIO, _Lenient(stream))
