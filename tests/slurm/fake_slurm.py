"""Slurm's programs as scripts that print what a test tells them to and record how they were called."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

_PROGRAM = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
name = pathlib.Path(sys.argv[0]).name
with open(folder / "calls", "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
answer = json.loads((folder / f"{{name}}.json").read_text())
sys.stdout.write(answer["stdout"])
sys.stderr.write(answer["stderr"])
sys.exit(answer["code"])
"""


class FakeSlurm(NamedTuple):
    folder: Path

    def answers(self, program: str, stdout: str = "", stderr: str = "", code: int = 0) -> None:
        (self.folder / f"{program}.json").write_text(json.dumps({"stdout": stdout, "stderr": stderr, "code": code}))
        path = self.folder / program
        path.write_text(_PROGRAM.format(python=sys.executable, folder=str(self.folder)))
        path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        calls = self.folder / "calls"
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A machine whose only programs are those for which the test provides an answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return FakeSlurm(folder)
