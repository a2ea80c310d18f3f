"""Finds the model to score, and its tokenizer. Reads descriptions only, no weights, and does not import torch."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import Literal

from stacking.errors import UserError
from stacking.huggingface.folder import find_weights, read_config
from stacking.huggingface.model_folder import kind_of
from stacking.run.decisions import settled_plan
from stacking.run.folder import RunFolder
from stacking.state.format import State
from stacking.storage.files import MANIFEST, checksum
from stacking.storage.frozen import Frozen

_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


class ModelSource(Frozen):
    """A model on disk."""

    name: str
    """For tables."""
    kind: Literal["state", "huggingface"]
    path: Path
    tokenizer: Path
    """A folder or file with the tokenizer."""
    digest: str
    """Identifies the weights."""


def find_model(model: Path, tokenizer: Path | None = None) -> ModelSource:
    """Finds the model in a run folder, a state, an export or another Hugging Face folder.

    Args:
        tokenizer: a folder or file with the tokenizer; None: the model's own, for a run that of its data.

    Raises:
        UserError: ``model`` is none of these, or there is no tokenizer.
        DamagedFile: a file of it is damaged.
    """
    if not model.is_dir():
        problem = "is a file" if model.is_file() else "does not exist"
        raise UserError(model, problem, "give a run folder, a state or a Hugging Face folder")
    kind = kind_of(model)
    if kind == "checkpoint":
        remedy = f"make a state of it: `stacking consolidate {quote(str(model))} --out STATE`"
        raise UserError(model, "is a DeepSpeed checkpoint", remedy)
    if kind == "run":
        state, own = _of_run(model)
        return _state(_name(model.resolve()), state, _found(tokenizer, own, model))
    if kind == "state":
        return _state(model.resolve().name, model, _found(tokenizer, [], model))
    where, _ = read_config(model)
    digests = [checksum(path) for path in find_weights(model, where).files]
    return ModelSource(
        name=model.resolve().name,
        kind="huggingface",
        path=model.resolve(),
        tokenizer=_found(tokenizer, [model], model),
        digest=" ".join([*digests, checksum(where)]),
    )


def _of_run(run_dir: Path) -> tuple[Path, list[Path]]:
    """Returns a run's last state, and folders that may hold its tokenizer."""
    folder = RunFolder(run_dir)
    plan = settled_plan(folder)
    state = folder.stage(plan.stages[-1].name).state
    if not (state / MANIFEST).is_file():
        remedy = "finish the run, or give the state of an earlier stage and --tokenizer"
        raise UserError(state, "does not exist: the last stage has not ended", remedy)
    data = [Path(plan.data.path)] if plan.data.path is not None else []
    return state, [*data, folder.export]


def _name(run: Path) -> str:
    """Returns a run's name for tables: that of its folder, of `stacking compare`'s runs with the arm's."""
    return f"{run.parent.name}/{run.name}" if re.fullmatch(r"seed-\d+", run.name) else run.name


def _state(name: str, state: Path, tokenizer: Path) -> ModelSource:
    opened = State(state)
    if opened.model is None:
        raise UserError(f"{state / MANIFEST}: model", "is empty", "consolidate its checkpoint with --config")
    return ModelSource(
        name=name, kind="state", path=state.resolve(), tokenizer=tokenizer.resolve(), digest=opened.digest
    )


def _found(given: Path | None, own: list[Path], model: Path) -> Path:
    if given is not None:
        if not given.exists():
            raise UserError(f"--tokenizer {given}", "does not exist", "give a folder, a tokenizer.json or a vocab.txt")
        if given.is_dir() and not _has_tokenizer(given):
            raise UserError(f"--tokenizer {given}", "has no tokenizer in it", f"give one with {_TOKENIZERS[0]}")
        return given.resolve()
    for folder in own:
        if _has_tokenizer(folder):
            return folder.resolve()
    raise UserError(
        model, "has no tokenizer", "add --tokenizer: the prepared data folder, or another with its tokenizer"
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZERS)
