"""Gathers the facts in separate processes, each with a time limit, because any of them may crash or hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from stacking.doctor.facts import NO_ANSWER
from stacking.launch.process import die_with_parent

Found = dict[str, Any]
Failures = dict[str, str]

ALWAYS = ("host", "tools", "gpus", "packages", "torch", "deepspeed")
"""Sections of `probe`, fast ones first."""
OPTIONAL = {"apex": "apex", "flash_attn": "flash-attn", "mpi4py": "mpi4py"}
"""Sections that run only if a package of that name is installed."""
_PATIENCE = 90.0
"""Time limit of a section in seconds: torch and DeepSpeed may load from a slow file server."""
_DISK_PATIENCE = 45.0


def gather(folder: Path, container: Sequence[str] = ()) -> Found:
    """Gathers the fields of `Facts`; what cannot be determined is listed under ``failures``.

    Args:
        folder: the run's folder; it need not exist.
        container: the words before each rank's command, so that the ranks' own environment is examined.
    """
    found, failures = probe(ALWAYS, container)
    wanted = [section for section, package in OPTIONAL.items() if package in found.get("packages", {})]
    more, wrong = probe(wanted, container)
    argv = [sys.executable, "-m", "stacking.doctor.disk", str(folder)]
    ended = _run(argv, _DISK_PATIENCE)
    if ended.reason:
        wrong["folder"] = ended.reason
    else:
        more["folder"] = json.loads(ended.lines[-1])
    return {**found, **more, "failures": {**failures, **wrong}}


def probe(
    sections: Sequence[str], container: Sequence[str] = (), patience: float = _PATIENCE
) -> tuple[Found, Failures]:
    """Runs `stacking.doctor.probe`; if a section kills it or hangs, continues with the next section."""
    found: Found = {}
    failures: Failures = {}
    left = list(sections)
    while left:
        ended = _run([*container, sys.executable, "-m", "stacking.doctor.probe", *left], patience)
        answers = [json.loads(line) for line in ended.lines if line.startswith("{")]
        if not answers:
            return found, failures | {"probe": ended.reason or "it did not answer"}
        for given in (answer for answer in answers if len(answer) > 1):
            if "found" in given:
                found[given["section"]] = given["found"]
            else:
                failures[given["section"]] = given["failure"]
            left.remove(given["section"])
        if len(answers[-1]) == 1:  # asked, but never answered
            failures[answers[-1]["section"]] = ended.reason or "it ended without an answer"
            left.remove(answers[-1]["section"])
    return found, failures


class _Ended(NamedTuple):
    lines: list[str]
    reason: str
    """Why it failed; empty if it succeeded."""


def _run(argv: Sequence[str], patience: float) -> _Ended:
    """Runs a program until it ends or has written nothing for ``patience`` seconds."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        die = die_with_parent(signal.SIGKILL)
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, preexec_fn=die)
        except OSError as error:
            return _Ended([], f"{argv[0]}: {error.strerror}")
        seen, since = 0, time.monotonic()
        while (code := process.poll()) is None and time.monotonic() - since < patience:
            time.sleep(0.02)
            if (size := os.fstat(output.fileno()).st_size) > seen:
                seen, since = size, time.monotonic()
        if code is None:
            process.kill()  # without waiting: a process blocked on a dead file server does not end
            reason = f"{NO_ANSWER} for {patience:.0f} s"
        elif code < 0:
            reason = f"it was killed by {signal.Signals(-code).name}"
        else:
            reason = "" if code == 0 else _last_line(_text(errors)) or f"exit code {code}"
        return _Ended(_text(output).splitlines(), reason)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
