"""Runs that `stacking submit` has submitted on the lab."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from stacking.run.journal import Journal
from tests.slurm_lab.lab import Lab

ROOT = Path(__file__).parents[2]


class Submitted:
    """A run that is submitted on ``lab`` by the command line; its jobs use ``python`` as their interpreter."""

    def __init__(
        self, lab: Lab, folder: Path, recipe: Path, python: str | Path = sys.executable, **settings: Any
    ) -> None:
        self.lab, self.run, self.recipe = lab, folder / "it's a run", recipe
        self.site = folder / "site.yaml"
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        settings["environment"] = environment | settings.get("environment", {})
        # Checking the nodes takes longer than most of these jobs; test_doctor.py enables it.
        self.site.write_text(yaml.safe_dump({"python": str(python), "doctor": False, **settings}, sort_keys=False))

    def stacking(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "stacking", *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, env=self.lab.environment, timeout=200)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        arguments: list[str | Path] = ["submit", self.recipe, "--run-dir", self.run, "--site", self.site, *options]
        return self.stacking(*arguments, check=check)

    def resume(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.stacking("submit", "--resume", self.run, *options, check=check)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stacking("status", self.run, "--json").stdout)
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in Journal(self.run / "journal.jsonl").events() if e["event"] == kind]

    def jobs(self) -> dict[str, int]:
        """The newest job under each name."""
        return {event["name"]: event["job"] for event in self.events("submitted")}

    def finished(self) -> list[str]:
        return [f"{event['phase']}:{event['stage']}" for event in self.events("finished")]
