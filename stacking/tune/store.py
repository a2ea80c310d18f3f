"""Keeps the folder of a tuning: its subject and the record of every trial, which the next run of it reuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stacking
from stacking.errors import DamagedFile, UserError
from stacking.hardware.machine import Machine
from stacking.planning.plan import Plan
from stacking.storage.files import disk_errors, read_json, write_atomically, write_json
from stacking.storage.frozen import record_of
from stacking.tune.candidate import Tried

_SUBJECT = "tune.json"


def open_folder(folder: Path, plan: Plan, machine: Machine, launcher: str) -> Path:
    """Creates ``folder`` for this tuning, or checks that it belongs to it.

    Raises:
        UserError: it holds trials of another subject, which must not be compared with these, or foreign files.
    """
    subject = _subject(plan, machine, launcher)
    path = folder / _SUBJECT
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [] if path.exists() else [p.name for p in folder.iterdir() if not p.name.startswith(".")]
        if foreign:
            problem = f"is not empty (it holds {min(foreign)!r}) and is not the folder of a tuning"
            raise UserError(folder, problem, "choose a new or empty folder")
        if not path.exists():
            write_json(path, {"kind": "tune", "format": 1, "subject": subject})
    found = read_json(path)
    if not isinstance(found, dict) or found.get("kind") != "tune" or not isinstance(found.get("subject"), dict):
        raise DamagedFile(path, "does not describe a tuning", "choose another --out, or remove that folder")
    _compare(folder, found["subject"], subject)
    return folder


class Records:
    """The records of one stage's trials: ``DIR/trials/0-L3/m8-z2.json``, next to the trial's own folder."""

    def __init__(self, folder: Path, stage: str) -> None:
        self._folder = folder / "trials" / stage

    def folder(self, label: str) -> Path:
        """Returns an empty folder for the files of a trial; leftovers of an interrupted one are removed."""
        place = self._folder / label
        with disk_errors(place):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        return place

    def read(self, label: str) -> Tried | None:
        """Returns the record of an earlier trial, if there is one.

        Raises:
            DamagedFile: the file is not a valid record.
        """
        path = self._folder / f"{label}.json"
        if not path.exists():
            return None
        return record_of(Tried, read_json(path), path, "the record of a trial", "remove it to repeat the trial")

    def write(self, label: str, tried: Tried) -> None:
        """Writes the record of a trial, atomically."""
        write_atomically(self._folder / f"{label}.json", tried.model_dump_json(indent=2) + "\n")


def _subject(plan: Plan, machine: Machine, launcher: str) -> dict[str, Any]:
    """Returns what trials must share to be comparable, under readable names."""
    data = plan.data
    facts: dict[str, Any] = {
        "version": stacking.__version__,
        "model": plan.model.model_dump(mode="json", exclude={"layers"}),
        "optimizer": plan.optimizer.model_dump(mode="json"),
        "data": {"digest": data.digest, "samples": data.samples, "sequence_length": data.sequence_length},
        "mask_probability": data.mask_probability,
        "machine": {
            "device": machine.device.name,
            "accelerators": machine.accelerators,
            "memory": machine.memory,
            "cores": machine.cores,
        },
        "launcher": launcher,
        "accelerator": plan.launch.accelerator,
    }
    for stage in plan.stages:
        own = {"layers": stage.layers, "ranks": stage.ranks, "batch": stage.global_batch}
        facts[f"stages[{stage.index}]"] = {**own, "ds_config": stage.ds_config}
    return dict(_flat("", facts))


def _flat(place: str, value: Any) -> list[tuple[str, Any]]:
    """Flattens ``{"a": {"b": 1}}`` to ``a.b: 1``, with values as in JSON."""
    if not isinstance(value, Mapping):
        return [(place, json.loads(json.dumps(value)))]
    return [pair for key, inner in value.items() for pair in _flat(f"{place}.{key}" if place else key, inner)]


def _compare(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for key in sorted({*there, *here}):
        if there.get(key) != here.get(key):
            what = "machine" if key.startswith("machine.") else "version" if key == "version" else "recipe"
            problem = f"holds trials of another {what}: {key} was {_shown(there, key)} and is {_shown(here, key)}"
            raise UserError(folder, problem, "choose another --out, or remove that folder")


def _shown(facts: Mapping[str, Any], key: str) -> str:
    return json.dumps(facts[key]) if key in facts else "absent"
