"""`tools/demo` runs to its end: text, a stacked run, its baseline, a masked word."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chain import ENVIRONMENT

ROOT = Path(__file__).parent.parent
SHORT = (
    *(
        "stages[0].steps=4",
        "stages[1].steps=3",
        "stages[0].batch_sequences=4",
        "schedule.warmup_steps=1",
        "log_every=1",
    ),
    *("launch.ranks=1", "launch.accelerator=cpu", "evaluation.samples=8"),
)


def checkout(folder: Path) -> Path:
    """This checkout, with the environment of the tests as its .venv, as complete as `tools/environment` leaves it."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name, call in (("python", ""), ("stacking", " -m stacking")):
        program = folder / ".venv" / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable}{call} "$@"\n')
        program.chmod(0o755)
    for name in ("tools", "stacking", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    required = (ROOT / "pyproject.toml").read_text().partition("\n[tool.")[0]
    (folder / ".venv" / "made-for.toml").write_text(f"{required}\n")
    return folder


@pytest.mark.slow
@pytest.mark.distributed(ranks=1)
def test_the_demo_trains_both_and_fills_a_mask(tmp_path: Path) -> None:
    clone = checkout(tmp_path / "clone")
    settings = [word for setting in SHORT for word in ("--set", setting)]
    done = subprocess.run(
        [clone / "tools" / "demo", tmp_path / "out", *settings],
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"This takes about (1 minute|\d+ minutes) here", done.stdout)
    assert "The function returns a new [MASK] of the given shape.\n" in done.stdout
    files = dict(line.split() for line in done.stdout.splitlines()[-3:])
    assert list(files) == ["report", "picture", "journal"] and all(Path(file).is_file() for file in files.values())
