"""Has DeepSpeed validate the final configuration of every stage in a separate process, before anything starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import xxhash

from stacking.config.reading import shown
from stacking.deepspeed_config import probe
from stacking.deepspeed_config.examination import MISSING, get
from stacking.deepspeed_config.findings import ConfigConflict, FinalConfig, Findings
from stacking.errors import StackingError, UserError

_SECONDS = 300
_KEPT_LINES = 3


def check_finals(finals: Sequence[FinalConfig]) -> None:
    """Lets the installed DeepSpeed read every configuration; accepted ones are cached.

    Nothing is checked if DeepSpeed is not installed.

    Raises:
        ConfigConflict: DeepSpeed rejects at least one; each complaint names key and value.
        StackingError: the check cannot run.
    """
    findings = Findings()
    findings.extend(error for _, error in refusals(finals))
    findings.raise_if_any()


def with_complaints(conflict: ConfigConflict) -> ConfigConflict:
    """Adds what DeepSpeed says against the rest of the configurations, so that all mistakes come in one answer."""
    told = {error.where for error in conflict.errors}
    more = {str(error): error for _, error in refusals(conflict.finals)}
    new = [error for error in more.values() if error.where not in told]
    return ConfigConflict([*conflict.errors, *new], conflict.command) if new else conflict


def refusals(finals: Sequence[FinalConfig]) -> list[tuple[str, UserError]]:
    """Returns what the installed DeepSpeed refuses: the dotted key, empty where none is named, and the error."""
    new = [final for final in finals if not _accepted(final).exists()]
    if not new or find_spec("deepspeed") is None:
        return []
    asked = json.dumps([{"config": final.config, "ranks": final.ranks} for final in new])
    refused = []
    for final, complaints in zip(new, _ask(asked), strict=True):
        refused += [_refusal(final, complaint) for complaint in complaints]
        if not complaints:
            _remember(final)
    return refused


def _ask(asked: str) -> list[list[dict[str, str]]]:
    command = [sys.executable, "-m", "stacking.deepspeed_config.probe"]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": path}
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        raise StackingError(f"DeepSpeed did not read the configuration in {_SECONDS} s; plan with --fast") from None
    if done.returncode != 0:
        said = " / ".join(done.stderr.strip().splitlines()[-_KEPT_LINES:])
        raise StackingError(f"DeepSpeed could not check the configuration: {said}")
    answers: list[list[dict[str, str]]] = json.loads(done.stdout)
    return answers


def _refusal(final: FinalConfig, complaint: dict[str, str]) -> tuple[str, UserError]:
    key = ".".join(filter(None, (complaint["section"], complaint["key"])))
    value = get(final.config, key, MISSING) if key else MISSING
    said = f"is {shown(value)}: " if value is not MISSING and not isinstance(value, dict) else ""
    message = complaint["message"].rstrip(".")
    problem = f"{said}DeepSpeed {_version()} refuses it: {message}"
    return key, UserError(f"{final.where}: {key or final.stage}", problem, "correct it, or remove it")


def _version() -> str:
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return ""


def _accepted(final: FinalConfig) -> Path:
    """Returns the file that marks this configuration as accepted by this version of DeepSpeed."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    rules = Path(probe.__file__).read_text(encoding="utf-8")
    content = json.dumps([final.config, final.ranks, _version(), sys.version, rules], sort_keys=True)
    return Path(base) / "stacking" / "accepted" / xxhash.xxh3_128_hexdigest(content.encode())


def _remember(final: FinalConfig) -> None:
    mark = _accepted(final)
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        pass  # checked again next time
