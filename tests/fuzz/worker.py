"""Reads mutated files in a separate process, within a memory limit.   python -m tests.fuzz.worker TARGET FILE

Answers each line of standard input with one JSON line about the file as it is now.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from stacking.errors import UserError
from tests.fuzz.targets import TARGETS

MEMORY = 1 << 28
"""Bytes beyond what the process has and what the file holds."""

LONGEST_MESSAGE = 2500
"""Characters of a refusal."""


def answer(read: Callable[[Path], object], path: Path) -> dict[str, str]:
    """The outcome of reading ``path``: ``ok``, ``refused``, or the error that a user would see as a traceback."""
    try:
        read(path)
    except UserError as error:
        said = str(error)
        one_line = said.isprintable() and len(said) < LONGEST_MESSAGE
        return {"outcome": "refused" if one_line else "message", "message": said[:300]}
    except MemoryError:
        return {"outcome": "memory", "message": _place()}
    except BaseException as error:
        return {"outcome": "traceback", "message": f"{type(error).__name__} at {_place()}: {str(error)[:120]}"}
    return {"outcome": "ok", "message": ""}


def _place() -> str:
    """The last line of this project in the error's traceback."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [frame for frame in frames if "/stacking/" in frame.filename] or frames
    return f"{ours[-1].filename.rpartition('/stacking/')[2]}, {ours[-1].name}"


def _allow(memory: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, resource.RLIM_INFINITY))


def main() -> None:
    target, path = TARGETS[sys.argv[1]], Path(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    target.read(path)  # the valid file: imports what it needs before memory is counted
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library's own output is not an answer
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        _allow(MEMORY + path.stat().st_size)
        print(json.dumps(answer(target.read, path)), file=answers, flush=True)


if __name__ == "__main__":
    main()
