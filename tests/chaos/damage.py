"""One case of damage: a file is damaged at some point of the chain, the run resumes, and the outcome is judged."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.compare import different_files, leftovers, same, set_aside
from tests.chaos.damages import DAMAGES, FILES, REDUNDANT, aliases, files_of, harm, restore
from tests.chaos.places import PLACES, cut_back
from tests.chaos.results import Result
from tests.chaos.workshop import SETTINGS, Ended, Setting, Workshop, stacking


@dataclass(frozen=True)
class Plan:
    """Which file will be damaged, how and when."""

    setting: Setting
    place: str
    kind: str
    damage: str
    draw: random.Random
    """For the file and for the bytes."""


def plan(seed: int, number: int) -> Plan:
    """Damage ``number`` of ``seed``: every kind of file gets every kind of damage before any pair is repeated."""
    pairs = [(kind, damage) for kind in FILES for damage in DAMAGES]
    cycle, position = divmod(number, len(pairs))
    random.Random(f"pairs {seed} {cycle}").shuffle(pairs)
    kind, damage = pairs[position]
    draw = random.Random(f"damage {seed} {number}")
    return Plan(draw.choice(SETTINGS), draw.choice(_places_of(kind)), kind, damage, draw)


def _places_of(kind: str) -> list[str]:
    """The places at which the chain has files of ``kind``."""
    names = list(PLACES)
    first = {"state": 1, "grown": 2, "export": 6}.get(kind.partition(":")[0], 0)
    return names[first:]


def play(workshop: Workshop, seed: int, number: int) -> Result:
    """Play damage ``number`` of ``seed``."""
    planned = plan(seed, number)
    workshop.fresh_data()
    reference = workshop.reference(planned.setting)
    run = workshop.copy_of_reference(planned.setting)
    cut_back(run, PLACES[planned.place])
    workshop.keep(run)
    candidates = files_of(planned.kind, workshop.folder)
    file = planned.draw.choice(candidates[len(candidates) // 2 :] if planned.draw.random() < 0.5 else candidates)
    names = aliases(file, workshop.folder)
    harm(file, planned.damage, planned.draw)
    damaged = [path for path in names if not workshop.is_pristine(path)]
    judge = Judge(workshop, run, reference, damaged)
    outcome, message, details = judge.judge(stacking("resume", run))
    if outcome == "refused" and planned.kind in REDUNDANT:
        outcome = "stopped"
    name = file.relative_to(workshop.folder).as_posix()
    return Result(
        kind="damage",
        seed=seed,
        number=number,
        setting=str(planned.setting),
        row=planned.kind,
        what=f"{name}: {planned.damage}, {planned.place}",
        column=planned.damage,
        outcome=outcome,
        message=message,
        details=details,
    )


class Judge:
    """Judges the outcome of some damage.

    Args:
        damaged: all names of the file, which is already damaged.
    """

    def __init__(self, workshop: Workshop, run: Path, reference: Path, damaged: list[Path]) -> None:
        self._workshop, self._run, self._reference, self._damaged = workshop, run, reference, damaged
        self._harmed = {path: path.read_bytes() for path in damaged if path.is_file()}

    def judge(self, ended: Ended) -> tuple[str, str, list[str]]:
        """The outcome, the program's last output and what differs."""
        words = ended.output.strip().splitlines()
        last = words[-1] if words and ended.exit_code != 0 else ""
        message = next((line for line in reversed(words) if self._names_it(line)), last)
        if ended.exit_code is None:
            return "hang", message, []
        if ended.traceback or ended.exit_code not in (0, 2):
            return "crash", message, [f"exit code {ended.exit_code}"]
        if ended.exit_code == 2:
            return self._refused(ended, message)
        return self._went_on(ended, message)

    def _names_it(self, text: str) -> bool:
        return any(str(path) in text for path in self._damaged)

    def _refused(self, ended: Ended, message: str) -> tuple[str, str, list[str]]:
        last = ended.output.strip().splitlines()[-1]
        if not self._names_it(last):
            return "wrong blame", last, []
        for path in self._damaged:
            restore(path, self._workshop.pristine(path))
        again = stacking("resume", self._run)
        different = different_files(self._run, self._reference)
        if again.exit_code != 0 or different:
            return "not recoverable", message, [f"restored and resumed: exit code {again.exit_code}", *different]
        return "refused", message, []

    def _went_on(self, ended: Ended, message: str) -> tuple[str, str, list[str]]:
        names = [path.relative_to(self._workshop.folder).as_posix().removeprefix("run/") for path in self._damaged]
        different = different_files(self._run, self._reference)
        elsewhere = [name for name in different if name not in names]
        told = self._names_it(ended.output) or self._in_report(names)
        if unfinished := leftovers(self._run):
            return "different", message, [f"left over: {name}" for name in unfinished]
        if elsewhere or (different and any(name.endswith("metrics.jsonl") for name in names) and not told):
            return "UNDETECTED", message, different
        if told or set_aside(self._run):
            return "healed", message, different
        if all(self._made_again(path) for path in self._damaged):
            return "healed", "made again without a word", []
        return self._not_read_again()

    def _made_again(self, path: Path) -> bool:
        """Whether the file was rewritten since it was damaged; appending does not count."""
        if not path.is_file():
            return False
        left, now = self._harmed.get(path), path.read_bytes()
        if left is None or same(path, self._workshop.pristine(path)):
            return now != left
        return not now.startswith(left)

    def _gained_a_blank(self, path: Path) -> bool:
        """Whether a JSON file merely ends with a different line break, which does not change its content."""
        if path.suffix != ".json" or not path.is_file():
            return False
        return path.read_bytes() == self._workshop.pristine(path).read_bytes() + b"\n"

    def _in_report(self, names: list[str]) -> bool:
        report = self._run / "report.html"
        return report.exists() and any(name in report.read_text(errors="replace") for name in names)

    def _not_read_again(self) -> tuple[str, str, list[str]]:
        """The chain did not need the file; later readers must be told that it is damaged."""
        for path in self._damaged:
            folder = path.parent
            if not folder.is_dir() or self._made_again(path) or self._gained_a_blank(path):
                continue
            if folder.name in ("state", "start"):
                use: list[str | Path] = ["grow", folder, "--layers", "4", "--operator", "stack", "--out"]
            elif folder.name.startswith("global_step"):
                use = ["consolidate", folder, "--out"]
            else:
                continue
            out = self._workshop.folder / "used"
            shutil.rmtree(out, ignore_errors=True)
            used = stacking(*use, out)
            last = (used.output.strip().splitlines() or [""])[-1]
            if used.exit_code != 2 or used.traceback:
                return "UNDETECTED", last, [f"`stacking {use[0]}` took it later: exit code {used.exit_code}"]
            if not self._names_it(last):
                return "wrong blame", last, [f"by `stacking {use[0]}` later"]
            return "not read again", last, []
        return "harmless", "", []
