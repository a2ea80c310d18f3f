"""What a person sees may be lost; the work goes on."""

from __future__ import annotations

import io

from stacking.terminal.lenient import lenient


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    print("lost", file=lenient(Gone()), flush=True)


def test_what_can_be_written_is() -> None:
    stream = io.StringIO()
    print("kept", file=lenient(stream), flush=True)
    assert stream.getvalue() == "kept\n" and lenient(stream).isatty() is False
