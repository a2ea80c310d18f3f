"""Implements `stacking adopt`: turns a DeepSpeed configuration into a ``ds_config.json`` and a recipe that fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from stacking.config.reading import read_yaml_mapping, shown
from stacking.config.recipe import Recipe, find_recipe, load_recipe, recipe_from
from stacking.config.shipped import DS_CONFIGS
from stacking.deepspeed_config import ds_config
from stacking.deepspeed_config.accelerate import read_any
from stacking.deepspeed_config.ds_config import UserConfig
from stacking.deepspeed_config.ds_facts import WITHOUT_EFFECT
from stacking.deepspeed_config.examination import Examination, get, leaves
from stacking.deepspeed_config.examine import examine, kept_rows
from stacking.deepspeed_config.findings import FinalConfig, KeyRow, Verdict
from stacking.deepspeed_config.names import known_keys
from stacking.deepspeed_config.optimizer import refused_parameters
from stacking.deepspeed_config.own_check import check_finals, refusals
from stacking.deepspeed_config.schedulers import schedule_of
from stacking.deepspeed_config.settle import OPTIMIZER_KEYS
from stacking.errors import UserError
from stacking.hardware.machine import Machine, find_machine
from stacking.planning.adopted_batch import adopt_batch
from stacking.planning.devices import Devices, find_devices
from stacking.planning.make_plan import make_plan
from stacking.storage.files import require_absent, write_atomically

Json = dict[str, Any]
CONFIG, RECIPE = "ds_config.json", "recipe.yaml"
_STEPS, _PEAK, _WARMUP = 30_000, 1e-4, 1000
_RATE, _TUNED = "optimizer.params.lr", "stacking.why"


@dataclass(frozen=True)
class Adopted:
    """The result of adopting a configuration."""

    config: Json
    recipe: Json
    """The content of the recipe file."""
    rows: tuple[KeyRow, ...]
    """One for every key, in the order of the user's file."""
    finals: tuple[FinalConfig, ...]
    """What every stage gives to DeepSpeed."""


def adopt(file: Path, recipe: str | None, gpus: int | None, out: Path) -> Adopted:
    """Writes ``out``/ds_config.json and ``out``/recipe.yaml.

    Args:
        file: JSON, HJSON or Accelerate's YAML; or the name of a ready one, such as ``cpu/bert-base.json``.
        recipe: the recipe to complete; None: progressive stacking of BERT-base.
        gpus: number of ranks for the batch arithmetic; None: the recipe's, or this machine's.

    Raises:
        UserError: a file cannot be read, the recipe is wrong, or no valid result exists.
    """
    require_absent(out)
    if not file.exists() and (DS_CONFIGS / file).is_file():
        file = DS_CONFIGS / file
    content, around = read_any(file)
    adopted = _accepted(content, recipe, gpus, str(file))
    adopted = replace(adopted, rows=(*around, *adopted.rows))
    if content and not _is_known(content, adopted.rows):
        raise UserError(file, "has no key that DeepSpeed knows", "give a DeepSpeed configuration")
    out.mkdir(parents=True)
    write_atomically(out / CONFIG, json.dumps(adopted.config, indent=2, ensure_ascii=False) + "\n")
    head = f"# Written by `stacking adopt {file.name}`.\n"
    text = yaml.safe_dump(adopted.recipe, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    write_atomically(out / RECIPE, head + text)
    return adopted


def _is_known(content: Json, rows: Iterable[KeyRow]) -> bool:
    """Whether any key of a file is DeepSpeed's, in today's spelling or another."""
    tops = {row.key.partition(".")[0] for row in rows if row.verdict != "impossible"}
    return any(key in tops or key in known_keys("") for key in content)


def _accepted(content: Json, recipe: str | None, gpus: int | None, where: str) -> Adopted:
    """Does the work of `adopt` without files; leaves out the keys that DeepSpeed itself refuses.

    Raises:
        UserError: the recipe is wrong, or nothing that fits can be made.
    """
    machine = find_machine()
    adopted = adopt_content(content, recipe, gpus, machine, where)
    refused = dict(refusals(adopted.finals))
    if not refused:
        return adopted
    rest, rows = Examination(content), list[KeyRow]()
    for key, error in refused.items():
        if not key or rest.get(key) is None:
            raise error
        rows.append(KeyRow(key, shown(rest.get(key)), "impossible", error.problem, "left out"))
        rest.remove(key)
    adopted = adopt_content(rest.content, recipe, gpus, machine, where)
    check_finals(adopted.finals)
    return replace(adopted, rows=(*adopted.rows, *rows))


def adopt_content(content: Json, recipe: str | None, gpus: int | None, machine: Machine, where: str) -> Adopted:
    """Does the work of `adopt` without files and without asking DeepSpeed.

    Raises:
        UserError: the recipe is wrong, or no valid result exists.
    """
    found = examine(content)
    raw = _raw(recipe, found)
    if gpus is not None:
        raw.setdefault("launch", {})["ranks"] = gpus
    if found.get(_TUNED) and (unchanged := _as_it_is(found, raw, machine, where)):
        return unchanged
    complete = recipe_from({**copy.deepcopy(raw), "ds_config": {}}, Path(RECIPE))
    devices = find_devices(complete, machine)
    moved = _Moved(found, raw)
    _move_precision(moved, where, devices)
    _move_schedule(moved)
    _move_optimizer(moved)
    if complete.optimizer.type == "lamb":
        _settle_lamb(moved)
    _move_batch(moved, complete, devices, gpus)
    _settle_kernels(moved, devices)
    for path in WITHOUT_EFFECT:
        found.remove(path)
    raw["ds_config"] = CONFIG
    finals = _finals(raw, found.content, machine, where)
    return Adopted(found.content, raw, _in_order(found, [*found.rows, *moved.rows]), finals)


def _finals(raw: Json, content: Json, machine: Machine, where: str) -> tuple[FinalConfig, ...]:
    """Plans a recipe with a configuration and returns what every stage gives to DeepSpeed.

    Raises:
        UserError: the two do not fit.
    """
    plan = make_plan(recipe_from({**copy.deepcopy(raw), "ds_config": content}, Path(RECIPE)), None, None, machine)
    return tuple(FinalConfig(where, stage.name, stage.ds_config, stage.ranks) for stage in plan.stages)


def _as_it_is(found: Examination, raw: Json, machine: Machine, where: str) -> Adopted | None:
    """Leaves a file of `stacking tune` unchanged where it fits the recipe; None: it does not."""
    content = found.original
    if found.content != content:
        return None
    try:
        finals = _finals(raw, content, machine, where)
    except UserError:
        return None
    return Adopted(content, {**raw, "ds_config": CONFIG}, _in_order(found, []), finals)


class _Moved:
    """The recipe that receives values, with a row for each."""

    def __init__(self, found: Examination, raw: Json) -> None:
        self.found, self.raw, self.rows = found, raw, list[KeyRow]()

    def add(self, path: str, text: str, verdict: Verdict = "moved to the recipe", problem: str = "") -> None:
        """Adds a row about the current value at ``path``."""
        name = self.found.user_name(path)
        said = get(self.found.original, name, self.found.get(path))
        self.rows.append(KeyRow(name, shown(said), verdict, problem, text))

    def move(self, path: str, place: str) -> Any:
        """Moves a value from the configuration to the recipe's ``place`` and returns it."""
        value = self.found.get(path)
        self.add(path, f"{place}: {shown(value)}")
        self.found.remove(path)
        return value


def _raw(recipe: str | None, found: Examination) -> Json:
    """Returns the recipe's content, with absolute paths."""
    if recipe is None:
        return _template(found)
    file = find_recipe(recipe)
    load_recipe(recipe)  # report its mistakes first
    raw = read_yaml_mapping(file)
    for holder, key in ((raw.get("data") or {}, "path"), (raw, "start")):
        if holder.get(key):
            holder[key] = str(Path(holder[key]).absolute())
    for stage in raw["stages"]:
        reference = stage.get("ds_config")
        if isinstance(reference, str) and (file.parent / reference).is_file():
            stage["ds_config"] = str((file.parent / reference).absolute())
    raw.setdefault("name", file.stem)
    return raw


def _template(found: Examination) -> Json:
    """Returns a BERT-base recipe stacked as in Gong et al., with the configuration's learning rates, if any."""
    total = found.get("scheduler.params.total_num_steps") or _STEPS
    steps = [max(1, total // 3), max(1, total // 3), max(1, total - 2 * (total // 3))]
    stages: list[Json] = [{"layers": n, "steps": s} for n, s in zip((3, 6, 12), steps, strict=True)]
    if not found.get("scheduler"):
        stages[0]["learning_rate"] = {"peak": _PEAK, "warmup_steps": min(_WARMUP, steps[0])}
        stages[-1]["learning_rate"] = {"end": 0}
    model, data = {"shape": "bert-base"}, {"sequence_length": 128}
    return {"name": "adopted", "data": data, "model": model, "stages": stages}


def _move_precision(moved: _Moved, where: str, devices: Devices) -> None:
    found, device = moved.found, devices.device
    user = UserConfig(found.content, where)
    asked = ds_config.requested_precision(user, device)
    if asked is None:
        return
    for name in ("fp16", "bf16"):
        path = f"{name}.enabled"
        if found.get(path) in (None, "auto"):
            continue
        if found.get(path) is True and asked in device.unfit:
            text = f"precision: {device.precision}"
            moved.add(path, text, "impossible", f"{asked} on {device.name}: {device.unfit[asked]}")
        else:
            moved.add(path, f"precision: {device.precision if asked in device.unfit else asked}")
        found.put(path, "auto")
    moved.raw["precision"] = device.precision if asked in device.unfit else asked


def _move_schedule(moved: _Moved) -> None:
    found, raw = moved.found, moved.raw
    section, rate = found.get("scheduler"), found.get(_RATE)
    rate = None if rate == "auto" else rate
    stated = (raw["stages"][0].get("learning_rate") or {}).get("peak")
    if not section:
        if rate is not None:
            _move_rate(moved, rate)
        elif stated is None and "schedule" not in raw:
            _choose_peak(moved, "stages[0].learning_rate.peak")
            raw["stages"][0]["learning_rate"] = {**(raw["stages"][0].get("learning_rate") or {}), "peak": _PEAK}
        return
    known = next(value for value in (rate, stated, _PEAK) if value is not None)
    raw["schedule"] = schedule_of(section, known)
    used = known in (raw["schedule"].get("peak"), raw["schedule"].get("warmup_max_lr"))
    place = "schedule.peak" if "peak" in raw["schedule"] else "schedule.warmup_max_lr"
    if known is _PEAK and used:
        _choose_peak(moved, place)
    for stage in raw["stages"]:
        stage.pop("learning_rate", None)
    for path, _ in leaves({"scheduler": section}):
        key = "kind" if path == "scheduler.type" else path.rpartition(".")[2]
        moved.add(path, f"schedule.{key}: {shown(raw['schedule'][key])}")
    found.remove("scheduler")
    if found.get(_RATE) is not None:
        if used:
            moved.add(_RATE, place)
        else:
            moved.add(_RATE, "left out", "without meaning here", f"{section['type']} sets the learning rate")
        found.remove(_RATE)


def _choose_peak(moved: _Moved, place: str) -> None:
    row = KeyRow(
        _RATE, "", "moved to the recipe", "nothing says what it is", f"{place}: {_PEAK:g}, as in Devlin et al."
    )
    moved.rows.append(row)


def _move_rate(moved: _Moved, rate: float) -> None:
    raw, first = moved.raw, moved.raw["stages"][0]
    if isinstance(raw.get("schedule"), Mapping) and "peak" in raw["schedule"]:
        moved.move(_RATE, "schedule.peak")
        raw["schedule"]["peak"] = rate
    elif isinstance(raw.get("schedule"), Mapping) and raw["schedule"].get("kind", "stages") != "stages":
        moved.add(_RATE, "left out", "without meaning here", f"the recipe's schedule is {raw['schedule']['kind']}")
        moved.found.remove(_RATE)
    else:
        moved.move(_RATE, "stages[0].learning_rate.peak")
        first["learning_rate"] = {**(first.get("learning_rate") or {}), "peak": rate}


def _move_optimizer(moved: _Moved) -> None:
    found, raw = moved.found, moved.raw
    for key, path in OPTIMIZER_KEYS.items():
        if found.get(path) not in (None, "auto"):
            value = moved.move(path, f"optimizer.{key}")
            raw["optimizer"] = {**(raw.get("optimizer") or {}), key: value}
    for key, problem, remedy in refused_parameters(found.content):
        found.drop(f"optimizer.params.{key}", problem, remedy, refused=True)
    for key in list(found.get("optimizer.params") or {}):
        if found.get(f"optimizer.params.{key}") == "auto":
            moved.add(f"optimizer.params.{key}", "the recipe's value applies", "kept")
    if found.get("optimizer.params") == {}:
        found.remove("optimizer.params")


def _settle_lamb(moved: _Moved) -> None:
    found = moved.found
    for key, problem, _ in list(ds_config.lamb_conflicts(found.content)):
        found.drop(key.partition(".")[0], problem, "left out", refused=True)


def _move_batch(moved: _Moved, recipe: Recipe, devices: Devices, gpus: int | None) -> None:
    found = moved.found
    keys = ds_config.batch_keys(UserConfig(found.content, ""))
    fixed = gpus or recipe.stages[0].ranks or recipe.launch.ranks
    settled = adopt_batch(recipe, keys, fixed, devices.count)
    for path, (verdict, problem, text) in settled.rows.items():
        if found.get(path) is not None or problem:
            moved.add(path, text, verdict, problem)
        found.remove(path)
    for i, stage in enumerate(moved.raw["stages"]):
        for key in ("batch_tokens", "batch_sequences", "micro_batch"):
            if key in settled.stages[i]:
                stage.pop("batch_tokens", None)
                stage[key] = settled.stages[i][key]


def _settle_kernels(moved: _Moved, devices: Devices) -> None:
    found = moved.found
    try:
        ds_config.stage_kernels(UserConfig(found.content, ""), devices.device.compiled, hidden=0)
    except UserError as error:
        found.replace("stacking.compile", False, error.problem, "false", refused=True)


def _in_order(found: Examination, rows: list[KeyRow]) -> tuple[KeyRow, ...]:
    """Returns one row per key, in the order of the user's file."""
    merged: dict[str, KeyRow] = {}
    for row in rows:
        before = merged.get(row.key)
        if before:
            problem = "; ".join(filter(None, (before.problem, row.problem)))
            worse = "impossible" in (before.verdict, row.verdict)
            row = replace(row, problem=problem, verdict="impossible" if worse else row.verdict)
        merged[row.key] = row
    merged = {one.key: one for row in merged.values() for one in _of_leaves(found, row)}
    everything = [*merged.values(), *kept_rows(found.original, merged)]
    places = {path: i for i, (path, _) in enumerate(leaves(found.original))}
    sections: dict[str, int] = {}
    for path, i in places.items():
        parts = path.split(".")
        for n in range(1, len(parts) + 1):
            sections.setdefault(".".join(parts[:n]), i)
    return tuple(sorted(everything, key=lambda row: sections.get(row.key, len(places))))


def _of_leaves(found: Examination, row: KeyRow) -> list[KeyRow]:
    """Splits a row about a section into one for each of its keys."""
    value = get(found.original, row.key)
    if not isinstance(value, Mapping) or not value:
        return [row]
    return [replace(row, key=path, said=shown(inner)) for path, inner in leaves(value, row.key)]


def table(rows: tuple[KeyRow, ...]) -> str:
    """Renders the rows for a terminal."""
    cells = [
        (row.key, row.said, row.verdict, "; ".join(filter(None, (row.problem, row.done or row.remedy)))) for row in rows
    ]
    head = ("key", "says", "verdict", "action and reason")
    widths = [min(most, max(len(row[i]) for row in (head, *cells))) for i, most in ((0, 58), (1, 28), (2, 20))]
    lines = []
    for row in (head, *cells):
        said = row[1] if len(row[1]) <= widths[1] else row[1][: widths[1] - 3] + "..."
        lines.append(f"{row[0]:<{widths[0]}}  {said:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip())
    return "\n".join(lines)
