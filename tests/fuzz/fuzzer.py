"""Feeds mutated files to a worker and keeps the smallest file of each kind of fault."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parent.parent.parent
CPU_SECONDS = 5.0
"""That reading one file may take; a busy machine does not count."""
GOOD = ("ok", "refused")


@dataclass
class Findings:
    """What fuzzing one target found."""

    counts: Counter[str] = field(default_factory=Counter)
    """Examples by outcome."""
    faults: dict[str, bytes] = field(default_factory=dict)
    """The smallest file that shows each."""

    def add(self, outcome: str, message: str, content: bytes) -> None:
        self.counts[outcome] += 1
        if outcome in GOOD:
            return
        fault = f"{outcome}: {re.sub('[0-9]+', 'N', message)}"
        if fault not in self.faults or len(content) < len(self.faults[fault]):
            self.faults[fault] = content


class Worker:
    """A process that reads one target's file again and again; a new one is started if it dies or hangs."""

    def __init__(self, target: str, folder: Path) -> None:
        self._name, self.target = target, TARGETS[target]
        self._file = self.target.make(folder)
        self.valid = self._file.read_bytes()
        self._start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def read(self, content: bytes) -> tuple[str, str]:
        """Outcome and message for a file with this content."""
        self._file.write_bytes(content)
        self._stdin.write(b"\n")
        self._stdin.flush()
        answer = self._answer()
        if answer is None:
            self._end()
            self._start()
            return "hang", f"no answer after {CPU_SECONDS:.0f} s of computing"
        if not answer:
            code = self._process.wait()
            self._start()
            return "died", f"exit code {code}"
        said = json.loads(answer)
        return said["outcome"], said["message"]

    def _answer(self) -> bytes | None:
        """The next line, empty if the process died, None if it hangs."""
        process = psutil.Process(self._process.pid)
        before, begun = sum(process.cpu_times()[:2]), time.monotonic()
        while not select.select([self._stdout], [], [], 0.5)[0]:
            used = sum(process.cpu_times()[:2]) - before
            if used > CPU_SECONDS or time.monotonic() - begun > 12 * CPU_SECONDS:
                return None
        return bytes(self._stdout.readline())

    def _start(self) -> None:
        self._file.write_bytes(self.valid)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", self._name, str(self._file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        if self._stdout.readline() != b"ready\n":
            raise RuntimeError(f"{self._name}: the valid file is not read")

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()


def fuzz(worker: Worker, draws: str, wanted: Callable[[int], bool], at_once: int = 300) -> Findings:
    """Mutate and read until ``wanted`` of the number of files so far is false; equal ``draws`` draw the same files.

    Args:
        at_once: how many files hypothesis draws in one go, even if ``wanted`` is false meanwhile.
    """
    findings = Findings()
    turn = 0
    while wanted(findings.counts.total()):
        _turn(worker, f"{draws} {turn}", findings, wanted, at_once)
        turn += 1
    return findings


def _turn(worker: Worker, draws: str, findings: Findings, wanted: Callable[[int], bool], files: int) -> None:
    """Files drawn by hypothesis."""

    @seed(draws)
    @settings(
        max_examples=files,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: Any) -> None:
        content = worker.target.mutate(data.draw, worker.valid)
        if wanted(findings.counts.total()):
            findings.add(*worker.read(content), content)

    one()
