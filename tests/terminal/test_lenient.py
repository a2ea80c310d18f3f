"""Terminal output may be lost; the work continues."""

from __future__ import annotations

import io

from stacking.terminal.lenient import lenient


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_closed_terminal_stops_nothing() -> None:
    print("lost", file=lenient(Gone()), flush=True)


def test_everything_that_can_be_written_is_written() -> None:
    stream = io.StringIO()
    print("kept", file=lenient(stream), flush=True)
    assert stream.getvalue() == "kept\n" and lenient(stream).isatty() is False
