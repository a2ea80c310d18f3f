"""What every event starts from: text, prepared data, recipes, and one undisturbed chain of each setting."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
LAST_STAGE = "1-L2"
PATIENCE = 300.0
"""Seconds that a command may take before it counts as hanging."""
_WORDS = (
    "river",
    "stone",
    "lamp",
    "garden",
    "window",
    "letter",
    "copper",
    "bridge",
    "winter",
    "basket",
    "candle",
    "market",
)
_ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "120",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Setting:
    """How a chain is spread over processes."""

    ranks: int
    zero: int

    def __str__(self) -> str:
        return f"{self.ranks} ranks, ZeRO {self.zero}" if self.ranks > 1 else f"1 rank, ZeRO {self.zero}"


SETTINGS = tuple(Setting(ranks, zero) for zero in (0, 1, 2, 3) for ranks in (1, 2))


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    exit_code: int | None
    """None: it hung and was killed."""
    output: str
    """Standard output and standard error."""

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output


def environment(**more: str) -> dict[str, str]:
    """The environment of every command: this checkout, the CPU, one thread."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path, **more}


def command(*arguments: str | Path) -> list[str]:
    """The argv of ``stacking ARGUMENTS``."""
    return [sys.executable, "-m", "stacking", *map(str, arguments)]


def stacking(*arguments: str | Path) -> Ended:
    """Run ``stacking ARGUMENTS`` to its end."""
    try:
        done = subprocess.run(
            command(*arguments),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired as hung:
        return Ended(None, (hung.output or b"").decode(errors="replace"))
    return Ended(done.returncode, done.stdout.decode(errors="replace"))


class Workshop:
    """A folder with everything that events need; existing parts are reused.

    A killed process may have left the data damaged, so each event begins with `fresh_data`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self.run = self.folder / "run"
        self._pristine, self._kept = self.folder / "pristine-data", self.folder / "kept"
        self.folder.mkdir(parents=True, exist_ok=True)

    def fresh_data(self) -> None:
        """Put the undamaged data where the runs expect them."""
        if not self._pristine.exists():
            text = self.folder / "text.jsonl"
            text.write_text("".join(json.dumps({"text": document}) + "\n" for document in _documents()))
            shutil.rmtree(self.data, ignore_errors=True)
            self._must(
                "prepare", text, "--out", self.data, "--vocabulary-size", "200", "--held-out", "0.2", "--workers", "1"
            )
            _copy(self.data, self._pristine)
            return
        shutil.rmtree(self.data, ignore_errors=True)
        _copy(self._pristine, self.data)

    def keep(self, run: Path) -> None:
        """Keep ``run`` as it is now, before it is damaged."""
        shutil.rmtree(self._kept, ignore_errors=True)
        _copy(run, self._kept)

    def pristine(self, path: Path) -> Path:
        """The undamaged file of ``path``, which is in the data or in the kept run."""
        in_data = path.is_relative_to(self.data)
        return self._pristine / path.relative_to(self.data) if in_data else self._kept / path.relative_to(self.run)

    def is_pristine(self, path: Path) -> bool:
        """Whether the file exists and is undamaged."""
        return path.is_file() and path.read_bytes() == self.pristine(path).read_bytes()

    def recipe(self, setting: Setting) -> Path:
        """A recipe of two stages that trains for ten updates in all."""
        path = self.folder / f"ranks{setting.ranks}-zero{setting.zero}.yaml"
        path.write_text(yaml.safe_dump(_recipe(setting, self.data), sort_keys=False))
        return path

    def reference(self, setting: Setting) -> Path:
        """The run folder of the undisturbed chain."""
        run = self.folder / "reference" / self.recipe(setting).stem
        done = run.with_name(f"{run.name}.done")
        if not done.exists():
            shutil.rmtree(run, ignore_errors=True)
            self._must("run", self.recipe(setting), "--run-dir", run)
            done.touch()
        return run

    def copy_of_reference(self, setting: Setting) -> Path:
        """A copy of the undisturbed run that an event may harm; links within it stay links."""
        run = self.scratch()
        _copy(self.reference(setting), run)
        return run

    def scratch(self) -> Path:
        """The path of a run that does not exist yet; the previous one is removed."""
        shutil.rmtree(self.run, ignore_errors=True)
        return self.run

    @staticmethod
    def _must(*arguments: str | Path) -> None:
        done = stacking(*arguments)
        if done.exit_code != 0:
            raise RuntimeError(f"stacking {' '.join(map(str, arguments))} failed undisturbed:\n{done.output}")


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def _documents() -> list[str]:
    draw = random.Random(0)
    pick = draw.choice
    return [
        " ".join(f"The {pick(_WORDS)} is near the {pick(_WORDS)} of a {pick(_WORDS)}." for _ in range(8))
        for _ in range(40)
    ]


def _recipe(setting: Setting, data: Path) -> dict[str, object]:
    first = {"layers": 1, "steps": 6, "batch_sequences": 8, "learning_rate": {"peak": 1e-3, "warmup_steps": 2}}
    return {
        "name": "chaos",
        "data": {"path": str(data), "samples": "segment-pair", "sequence_length": 32},
        "model": {"hidden": 16, "heads": 2, "max_positions": 64},
        "stages": [first, {"layers": 2, "steps": 4, "learning_rate": {"end": 0}}],
        "growth": {"operator": "stack", "optimizer_state": "copy"},
        "precision": "fp32",
        "ds_config": {"zero_optimization": {"stage": setting.zero}},
        "launch": {"accelerator": "cpu", "ranks": setting.ranks},
        "checkpoint": {"every_steps": 2},
        "evaluation": {"every_steps": 4, "samples": 16},
        "log_every": 1,
    }
