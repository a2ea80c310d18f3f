"""A SLURM for tests: its commands, and waiting for what a job is expected to do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TOOL = Path(__file__).parent.parent.parent / "tools" / "slurm_lab"
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "TIMEOUT")


class Lab:
    """One SLURM of `tools/slurm_lab`, with nodes n1, n2, … and the partitions low and high."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.tool("start", *options)
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def tool(self, *arguments: str) -> str:
        """Run tools/slurm_lab on this lab: ``tool("kill", "n2")``."""
        argv = [sys.executable, str(TOOL), *arguments, "--folder", str(self.folder)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, *command: str | Path, check: bool = True) -> str:
        """Run any command with this SLURM; its output."""
        argv = list(map(str, command))
        done = subprocess.run(argv, capture_output=True, text=True, env=self.environment, timeout=120)
        assert not check or done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def sbatch(self, *arguments: str | Path) -> int:
        """Submit a job; its id."""
        return int(self.run("sbatch", "--parsable", *arguments).split(";")[0])

    def job(self, job: int) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Reason, NodeList, Restarts, ExitCode, …"""
        words = self.run("scontrol", "--oneliner", "show", "job", str(job)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: int) -> str:
        return self.job(job)["JobState"]

    def wait_until(self, moment: Callable[[], bool], patience: float = 120, every: float = 0.2) -> None:
        """Wait for ``moment``; fails and shows the queue if it does not come."""
        deadline = time.monotonic() + patience
        while not moment():
            assert time.monotonic() < deadline, self.run("scontrol", "show", "job") + self.tool("status")
            time.sleep(every)

    def wait_for(self, job: int, *states: str, patience: float = 240) -> dict[str, str]:
        """Wait until ``job`` is in one of ``states``; any other end fails."""
        self.wait_until(lambda: self.state(job) in (*states, *ENDED), patience)
        found = self.job(job)
        assert found["JobState"] in states, f"{found}\n{self.output(job)}"
        return found

    def wait_for_end(self, job: int, patience: float = 300) -> dict[str, str]:
        """Wait until ``job`` has ended for good, in whatever way, and its processes are gone."""
        self.wait_until(lambda: self.state(job) in ENDED, patience)
        return self.job(job)

    def output(self, job: int) -> str:
        path = Path(self.job(job).get("StdOut", "/dev/null"))
        return path.read_text(errors="replace") if path.is_file() else ""

    def clear(self) -> None:
        """Cancel every job and wait until all nodes are idle, reviving those that were killed."""
        self.run("scancel", "--user", str(os.getuid()), check=False)
        for line in self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%N %t").splitlines():
            node, state = line.split()
            if "down" in state or "*" in state:
                self.tool("revive", node)
        self.wait_until(lambda: not self.run("squeue", "-h").strip() and self._all_idle(), patience=90)

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split()
        return all(state == "idle" for state in states)

    def stop(self) -> None:
        self.tool("stop")
