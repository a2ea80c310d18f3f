"""Results of fuzzing: a JSON line for each session of a reader, and the table that sums them up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz.fuzzer import GOOD
from tests.fuzz.targets import TARGETS


@dataclass(frozen=True)
class Sitting:
    """One reader, fuzzed for a while."""

    target: str
    seed: int
    seconds: float
    counts: dict[str, int]
    """Files by outcome."""
    faults: list[str]


def read_sittings(path: Path) -> list[Sitting]:
    """All complete lines of ``path``; a torn last one is dropped."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [Sitting(**json.loads(line)) for line in lines]


def append_sitting(path: Path, sitting: Sitting) -> None:
    """Add a line to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(sitting)) + "\n")


def as_markdown(sittings: Sequence[Sitting]) -> str:
    """A row for each reader, their sum, and a list of the faults."""
    names = [name for name in TARGETS if any(sitting.target == name for sitting in sittings)]
    rows = [_row(name, [sitting for sitting in sittings if sitting.target == name]) for name in names]
    faults = [f"* {sitting.target}: {fault}" for sitting in sittings for fault in sitting.faults]
    head = "| reader | read | refused | faults | minutes |\n| --- | ---: | ---: | ---: | ---: |"
    return "\n".join([head, *rows, _row("**all**", sittings), "", *(faults or ["No fault was found."])]) + "\n"


def _row(name: str, sittings: Sequence[Sitting]) -> str:
    counts: Counter[str] = Counter()
    for sitting in sittings:
        counts.update(sitting.counts)
    bad = sum(count for outcome, count in counts.items() if outcome not in GOOD)
    minutes = sum(sitting.seconds for sitting in sittings) / 60
    return f"| {name} | {counts['ok']:,} | {counts['refused']:,} | {bad:,} | {minutes:.1f} |"
