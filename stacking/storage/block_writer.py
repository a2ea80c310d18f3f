"""Writes the large safetensors files of a training state block by block, with several threads and constant memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from stacking.storage.blocks import BLOCK, Entry, digest, entry_of
from stacking.storage.safetensors_file import FileLayout, TensorSpec
from stacking.storage.threads import each

SPAN = 8 * BLOCK
"""Bytes per write of a thread."""

Fill = Callable[[str, str, int, np.ndarray], None]
"""Fills an array with elements of a tensor, given the kind, the tensor's name and the first element."""


def write_kinds(
    folder: Path,
    kinds: Sequence[str],
    specs: Mapping[str, TensorSpec],
    fill: Fill,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Entry]:
    """Writes ``KIND.safetensors`` with the same float32 tensors for every kind; returns the manifest entries by name.

    Args:
        on_progress: called with the bytes of tensors written and their total.
    """
    layout = FileLayout(specs)
    digests = {kind: [""] * -(-layout.size // BLOCK) for kind in kinds}
    header = len(layout.header)
    total, done, counting = len(kinds) * (layout.size - header), 0, threading.Lock()
    with ExitStack() as stack:
        files = {kind: stack.enter_context(open(folder / f"{kind}.safetensors", "wb", 0)) for kind in kinds}

        def write(part: tuple[str, int]) -> None:
            nonlocal done
            kind, first = part
            span = _filled(layout, first, kind, fill)
            for start in range(0, span.size, BLOCK):
                digests[kind][(first + start) // BLOCK] = digest(span[start : start + BLOCK])
            _write(files[kind].fileno(), span.data, first)
            with counting:
                done += max(0, first + span.size - max(first, header))
                if on_progress:
                    on_progress(done, total)

        each(write, ((kind, first) for first in range(0, layout.size, SPAN) for kind in kinds))
    return {f"{kind}.safetensors": entry_of(layout.size, found) for kind, found in digests.items()}


def _filled(layout: FileLayout, first: int, kind: str, fill: Fill) -> np.ndarray:
    """Returns the bytes of a file from ``first`` on, a span at most, in this thread's buffer."""
    last = min(first + SPAN, layout.size)
    span = _buffer()[: last - first]
    header = np.frombuffer(layout.header, np.uint8)[first:last]
    span[: header.size] = header
    for part in layout.parts(first, last):
        into = span[part.offset : part.offset + part.nbytes].view(np.float32)
        fill(kind, part.name, part.start // into.itemsize, into)
    return span


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    start, size = offset, len(data)
    while len(data):
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
    if hasattr(os, "posix_fadvise"):  # starts writeback now, so that fsync has less to wait for
        os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)


_own = threading.local()


def _buffer() -> np.ndarray:
    """Returns this thread's buffer for a span; reusing memory is faster than allocating it."""
    if not hasattr(_own, "span"):
        _own.span = np.empty(SPAN, np.uint8)
    span: np.ndarray = _own.span
    return span
