"""Reads a DeepSpeed checkpoint of any ZeRO stage and world size as an unsharded training state.

`ZeroCheckpoint` first locates every element of the fp32 master weights and both moments, and then reads slices. It
executes no code from the files (see `torch_file`) and holds no tensors.

    stage     files                                             what a file holds
    0         mp_rank_00_model_states.pt                        weights, or masters; Adam's state by position
    1, 2      [bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt  the R-th part of every flattened parameter group
    3         the same, and zero_pp_rank_R_…_model_states.pt    the R-th part of every parameter

The layouts are those of DeepSpeed 0.19.8: runtime/engine.py, zero/stage_1_and_2.py, zero/stage3.py,
bf16_optimizer.py, fp16/fused_optimizer.py, fp16/unfused_optimizer.py and utils/zero_to_fp32.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from stacking.errors import DamagedFile, UserError
from stacking.model.config import ModelConfig
from stacking.state.format import BUFFERS, MOMENTS, WEIGHTS, TrainingState
from stacking.state.zero_schema import ADAM, MODEL, SHARD, WRAPPED, checked, number, stored
from stacking.storage.files import MANIFEST, block_digests, read_sealed, verify_folder
from stacking.storage.partition import (
    PARAMETER_NAMES,
    Piece,
    Shape,
    cut,
    numel,
    packed,
    sharded,
    split_into_groups,
    whole,
)
from stacking.storage.safetensors_file import TensorSpec
from stacking.storage.torch_file import StoredTensor, read_torch_file
from stacking.storage.verified_files import VerifiedFiles
from stacking.terminal.units import counted

PROGRESS = "progress.json"
_REMEDY = "give a folder written by engine.save_checkpoint"
_NAMES_REMEDY = f'list the names in each group of the optimizer under "{PARAMETER_NAMES}" and save again'
_LONGEST_NAME = 255
_SHARD = re.compile(r"(bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")


class SavedMaster(NamedTuple):
    """Describes a saved tensor that DeepSpeed's inner optimizer steps: its pieces and its Adam state."""

    pieces: list[Piece]
    weights: StoredTensor
    state: Mapping[str, Any]
    group: int
    """Index of the optimizer's parameter group, or of its sub-group in ZeRO 3."""


class ParsedCheckpoint(NamedTuple):
    """Holds the parsed files of a checkpoint, whose tensors stay in the files."""

    folder: Path
    model_file: Path
    model: Mapping[str, Any]
    shards: list[tuple[Path, Mapping[str, Any]]]
    """Each rank's file and its ``optimizer_state_dict``. Empty without ZeRO."""


class ZeroCheckpoint(TrainingState):
    """Opens a DeepSpeed checkpoint as a `TrainingState`; checkpoints of this project are verified as they are read.

    Args:
        path: the folder of one checkpoint (``…/global_step100``), or its parent with a ``latest`` file.

    Raises:
        UserError: there is no such folder, or its kind is not supported.
        DamagedFile: a shard is missing or truncated; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = _tagged_folder(Path(path))
        self.verified = _verified(self.path)
        try:
            self._read_metadata()
        except DamagedFile:
            raise
        except Exception as error:
            if self.verified is not None:  # what looks like another error may be damage
                self.verified.verify_rest()
            if isinstance(error, UserError):
                raise
            problem = f"has an unknown layout ({type(error).__name__})"
            raise UserError(self.path, problem, _REMEDY) from error

    def _read_metadata(self) -> None:
        checkpoint = _open(self.path)
        masters = _LAYOUTS[_stage(checkpoint)](checkpoint)
        module = checkpoint.model["module"]
        self.shards = len(checkpoint.shards)
        self._shapes = _shapes(checkpoint, masters)
        self.names = tuple(name for name in module if name in self._shapes)
        self._places = {kind: _places(self._shapes, masters, kind) for kind in (WEIGHTS, *MOMENTS)}
        self._check_complete(checkpoint)
        self._buffers: dict[str, StoredTensor] = {
            name: stored(module[name], checkpoint.model_file) for name in checkpoint.model["buffer_names"] or ()
        }
        self.buffers = {name: TensorSpec(t.read_dtype, t.shape) for name, t in self._buffers.items()}
        self.moments = any(self._places[MOMENTS[0]].values())
        steps = _steps(self.path, masters)
        self.optimizer_step = max(steps.values(), default=0)
        self.parameter_steps = {name: step for name, step in steps.items() if step != self.optimizer_step}
        self.progress, self.model = _recorded(self.path / PROGRESS)

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def fill(self, kind: str, name: str, start: int, into: np.ndarray) -> None:
        if kind == BUFFERS:
            self._buffers[name].fill(start, into, self.verified)
            return
        if not self._places[kind][name]:
            into[:] = 0  # a parameter that was never stepped has no moments
        for piece, tensor in self._places[kind][name]:
            low, high = max(piece.start, start), min(piece.start + piece.numel, start + into.size)
            if low < high:
                tensor.fill(low + piece.offset - piece.start, into[low - start : high - start], self.verified)

    def _check_complete(self, checkpoint: ParsedCheckpoint) -> None:
        for name, shape in self._shapes.items():
            for kind in (WEIGHTS, *MOMENTS):
                found = sum(piece.numel for piece, _ in self._places[kind][name])
                if found != numel(shape) and (found or kind == WEIGHTS):
                    raise DamagedFile(checkpoint.folder, f"lacks a part of {name}")


def _recorded(file: Path) -> tuple[dict[str, Any] | None, ModelConfig | None]:
    """Returns the progress and the model that the trainer saved with a checkpoint."""
    if not file.exists():
        return None, None
    progress = read_sealed(file)
    if progress.get("model") is None:
        return progress, None
    try:
        return progress, ModelConfig.model_validate(progress["model"])
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        key = ".".join(str(part) for part in ("model", *first["loc"]))
        raise DamagedFile(file, f"does not describe a model: {key}: {first['msg']}") from None


def _verified(folder: Path) -> VerifiedFiles | None:
    """Returns a verifying reader; None for a checkpoint of another program, which holds none of our own files.

    Raises:
        DamagedFile: the manifest is missing, or a file that it lists is missing or has another size.
    """
    if not (folder / MANIFEST).exists() and not (folder / PROGRESS).exists():
        return None
    manifest = verify_folder(folder, checksums=False)
    return VerifiedFiles(block_digests(folder, manifest["files"]))


def _tagged_folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(path, "is not a folder", "give the folder of a DeepSpeed checkpoint")
    latest = path / "latest"
    if not latest.is_file():
        return path
    with open(latest, "rb") as file:
        name = file.read(_LONGEST_NAME).decode(errors="replace").strip()
    if name in ("", "..") or name != Path(name).name:
        raise DamagedFile(latest, f"names {name!r}, which is not a folder next to it")
    if not (path / name).is_dir():
        raise DamagedFile(latest, f"names {name}, which is missing")
    return path / name


def _where_to_look(folder: Path) -> str:
    """Suggests a path in place of a folder without a checkpoint."""
    below = [path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/mp_rank_00_model_states.pt")]
    below += [path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/*_optim_states.pt")]
    if below:
        newest = max({path.parent for path in below}, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])
        return f"there is one inside: run `stacking consolidate {quote(str(newest))} --out STATE`"
    states = sorted(path.parent for place in (".", "state", "*/state") for path in folder.glob(f"{place}/{MANIFEST}"))
    if states:
        return f"{states[-1]} needs no consolidating if it is a state: grow or export it"
    return "give a folder with mp_rank_00_model_states.pt"


def _open(folder: Path) -> ParsedCheckpoint:
    files = {match: folder / match[0] for p in sorted(folder.iterdir()) if (match := _SHARD.fullmatch(p.name))}
    if any(int(match[3]) for match in files) or any(folder.glob("layer_*-model_*_states.pt")):
        raise UserError(folder, "is of a model- or pipeline-parallel run", "give one of a data-parallel run")
    ranks = {int(match[2]): file for match, file in files.items()}
    if len(ranks) != len(files):
        raise UserError(folder, "holds the shards of two runs", "remove those of one")
    if ranks and 0 not in ranks:
        raise DamagedFile(folder / re.sub(r"rank_\d+_mp", "rank_0_mp", next(iter(files.values())).name), "is missing")
    shards = [(ranks[rank], _entry(ranks[rank], "optimizer_state_dict")) for rank in sorted(ranks)]
    if shards:
        _check_world_size(folder, ranks, shards[0])
    stage3 = bool(shards) and shards[0][1].get("zero_stage") == 3
    model_file = folder / f"{'zero_pp_rank_0_' if stage3 else ''}mp_rank_00_model_states.pt"
    if not ranks and not model_file.exists():
        raise UserError(folder, "holds no DeepSpeed checkpoint", _where_to_look(folder))
    model = read_torch_file(model_file)
    if not isinstance(model, Mapping) or not {"module", "buffer_names", "optimizer"} <= set(model):
        raise UserError(model_file, "is not a model file of DeepSpeed", _REMEDY)
    checked(MODEL, model, model_file)
    if model.get("frozen_param_shapes"):
        raise UserError(model_file, "holds frozen parameters", "save the checkpoint with all parameters trainable")
    return ParsedCheckpoint(folder, model_file, model, shards)


def _check_world_size(folder: Path, ranks: Mapping[int, Path], first: tuple[Path, Mapping[str, Any]]) -> None:
    count = first[1].get("partition_count")
    world_size = max(count) if isinstance(count, list) else count
    if not isinstance(world_size, int):
        raise UserError(first[0], "is not an optimizer file of ZeRO", _REMEDY)
    for rank in range(world_size):
        if rank not in ranks:
            raise DamagedFile(folder / first[0].name.replace("rank_0_mp", f"rank_{rank}_mp"), "is missing")
    if len(ranks) != world_size:
        problem = f"holds shards of {counted(len(ranks), 'rank')}, but rank 0 was one of {world_size}"
        raise UserError(folder, problem, "remove those of another run")


def _stage(checkpoint: ParsedCheckpoint) -> int:
    if not checkpoint.shards:
        return 0
    file, shard = checkpoint.shards[0]
    # DeepSpeed's BF16_Optimizer (ZeRO 1, gradients accumulated in fp32) saves no stage; its layout is that of stage 1
    stage = shard.get("zero_stage", 1 if "single_partition_of_fp32_groups" in shard else None)
    if stage not in _LAYOUTS or stage == 0:
        raise UserError(file, f"has the unknown ZeRO stage {stage}", f"known are {', '.join(map(str, _LAYOUTS))}")
    return int(stage)


def _flat_groups(checkpoint: ParsedCheckpoint) -> list[SavedMaster]:
    """Returns the masters of ZeRO 1 and 2: each group with padding is one flat tensor, split over the ranks."""
    _, first = checkpoint.shards[0]
    groups = _groups(checkpoint, "single_partition_of_fp32_groups")
    paddings = first.get("param_alignment_paddings") or [None] * len(groups)
    masters = []
    for index, shapes in enumerate(groups):
        pieces, position = packed(shapes.items(), paddings[index]), 0
        for file, shard in checkpoint.shards:
            weights = stored(shard["single_partition_of_fp32_groups"][index], file)
            state = _base_state(shard["base_optimizer_state"], index, shard.get("base_optimizer_state_step"))
            masters.append(SavedMaster(cut(pieces, position, position + weights.numel), weights, state, index))
            position += weights.numel
    return masters


def _sharded_groups(checkpoint: ParsedCheckpoint) -> list[SavedMaster]:
    """Returns the masters of ZeRO 3: one flat tensor per sub-group, with the rank's share of every parameter."""
    ranks, groups = len(checkpoint.shards), _groups(checkpoint, "fp32_flat_groups")
    masters = []
    for rank, (file, shard) in enumerate(checkpoint.shards):
        for index, shapes in enumerate(groups):
            weights = stored(shard["fp32_flat_groups"][index], file)
            state = _base_state(shard["optimizer_state_dict"], index)
            masters.append(SavedMaster(sharded(shapes.items(), rank, ranks), weights, state, index))
    return masters


def _groups(checkpoint: ParsedCheckpoint, masters: str) -> list[dict[str, Shape]]:
    """Returns the shapes of each group's parameters, after checking that every rank has ``masters`` for all groups."""
    groups: list[dict[str, Shape]] = checkpoint.model["param_shapes"] or []
    for file, shard in checkpoint.shards:
        if not groups or len(shard[masters]) != len(groups):
            problem = f"has {len(shard[masters])} groups of parameters where {checkpoint.model_file.name} has "
            raise UserError(file, f"{problem}{len(groups)}", _REMEDY)
    return groups


def _replicated(checkpoint: ParsedCheckpoint) -> list[SavedMaster]:
    """Returns the masters without ZeRO: an optimizer's state by position, possibly in DeepSpeed's 16-bit wrappers."""
    file, saved = checkpoint.model_file, checkpoint.model["optimizer"]
    parameters = _module_parameters(checkpoint)
    if saved is not None:
        checked(ADAM if "state" in saved else WRAPPED, saved, file)
    if saved is None or not (saved if "state" in saved else saved["optimizer_state_dict"])["state"]:
        return [SavedMaster(whole(name, t.shape), t, {}, 0) for name, t in parameters.items()]
    if "fp32_groups_flat" in saved:
        return _replicated_flat(checkpoint, parameters)
    base = saved if "state" in saved else saved["optimizer_state_dict"]
    weights = [stored(t, file) for group in saved.get("fp32_groups", ()) for t in group]
    shapes = [[_state_shape(base, i, file) for i in group["params"]] for group in base["param_groups"]]
    groups = _group_names(file, parameters, base["param_groups"], shapes)
    named = [(name, group) for group, names in enumerate(groups) for name in names]
    weights = weights or [parameters[name] for name, _ in named]
    return [
        SavedMaster(whole(name, parameters[name].shape), master, _base_state(base, index), group)
        for index, ((name, group), master) in enumerate(zip(named, weights, strict=True))
    ]


def _replicated_flat(checkpoint: ParsedCheckpoint, parameters: Mapping[str, StoredTensor]) -> list[SavedMaster]:
    """Returns the masters of FP16_Optimizer: one flat tensor per group, without saved shapes."""
    file, saved = checkpoint.model_file, checkpoint.model["optimizer"]
    base, flats = saved["optimizer_state_dict"], [stored(t, file) for t in saved["fp32_groups_flat"]]
    named = [group.get(PARAMETER_NAMES) for group in base["param_groups"]]
    if len(flats) == 1 and named[0] is None:
        named = [list(parameters)]
    if None in named or any(name not in parameters for group in named for name in group):
        raise UserError(file, "does not name the parameters of its groups", _NAMES_REMEDY)
    masters = []
    for index, (group, flat) in enumerate(zip(named, flats, strict=True)):
        pieces = packed((name, parameters[name].shape) for name in group)
        masters.append(SavedMaster(pieces, flat, _base_state(base, index), index))
    return masters


_LAYOUTS: dict[int, Callable[[ParsedCheckpoint], list[SavedMaster]]] = {
    0: _replicated,
    1: _flat_groups,
    2: _flat_groups,
    3: _sharded_groups,
}


def _group_names(
    file: Path, parameters: Mapping[str, StoredTensor], groups: list[dict[str, Any]], shapes: list[list[Shape]]
) -> list[list[str]]:
    """Returns each group's parameter names: as saved, or inferred if only one split fits the shapes."""
    if all(PARAMETER_NAMES in group for group in groups):
        return [list(group[PARAMETER_NAMES]) for group in groups]
    try:
        return split_into_groups([(name, tensor.shape) for name, tensor in parameters.items()], shapes)
    except ValueError as error:
        raise UserError(file, f"does not name its parameters: {error}", _NAMES_REMEDY) from None


def _module_parameters(checkpoint: ParsedCheckpoint) -> dict[str, StoredTensor]:
    """Returns the module's parameters in order; a tied one appears once, under its first name."""
    buffers = set(checkpoint.model["buffer_names"] or ())
    found: dict[tuple[int, Shape], str] = {}
    parameters: dict[str, StoredTensor] = {}
    for name, value in checkpoint.model["module"].items():
        if name in buffers or not isinstance(value, StoredTensor):
            continue
        if found.setdefault((value.offset, value.shape), name) == name:
            parameters[name] = stored(value, checkpoint.model_file)
    return parameters


def _base_state(base: Any, index: int, step: int | None = None) -> Mapping[str, Any]:
    """Returns the Adam state of master ``index``, from a torch state dict or ZeRO's elastic list of states."""
    if isinstance(base, list):
        return {"step": step, **base[index]} if base[index] else {}
    owners = [(i, group) for group in base["param_groups"] for i in group["params"]]
    key, group = owners[index]
    state = base["state"].get(key, {})
    return {"step": group.get("step"), **state} if state else {}


def _state_shape(base: Mapping[str, Any], key: int, file: Path) -> Shape:
    state = base["state"].get(key)
    if not state:
        raise UserError(file, "holds no optimizer state for some parameters", _NAMES_REMEDY)
    return stored(state.get(MOMENTS[0]), file).shape


def _shapes(checkpoint: ParsedCheckpoint, masters: Iterable[SavedMaster]) -> dict[str, Shape]:
    if not checkpoint.shards:
        return {name: tensor.shape for name, tensor in _module_parameters(checkpoint).items()}
    return {name: tuple(shape) for group in checkpoint.model["param_shapes"] for name, shape in group.items()}


def _places(
    shapes: Iterable[str], masters: Iterable[SavedMaster], kind: str
) -> dict[str, list[tuple[Piece, StoredTensor]]]:
    """Returns, for each parameter, the locations of its elements of ``kind``."""
    places: dict[str, list[tuple[Piece, StoredTensor]]] = defaultdict(list, {name: [] for name in shapes})
    for master in masters:
        if kind in MOMENTS and not master.state:
            continue
        tensor = master.weights if kind == WEIGHTS else master.state.get(kind)
        if not isinstance(tensor, StoredTensor):
            raise UserError(master.weights.path, f"has optimizer state without {kind}", "only Adam is supported")
        for piece in master.pieces:
            if piece.offset + piece.numel > tensor.numel:
                raise DamagedFile(master.weights.path, f"is too short for {piece.name}")
            places[piece.name].append((piece, tensor))
    return dict(places)


def _steps(folder: Path, masters: Iterable[SavedMaster]) -> dict[str, int]:
    """Returns the step count of every parameter that was ever stepped.

    torch's Adam counts in one tensor per master. DeepSpeed's optimizers use plain numbers, and its FusedAdam updates
    only that of a group's last tensor and uses it for the whole group, so the group's maximum is correct.
    """
    stepped = [(master, master.state["step"]) for master in masters if master.state.get("step") is not None]
    counts = [(master, number(step, folder), isinstance(step, StoredTensor)) for master, step in stepped]
    highest: dict[int, int] = {}
    for master, count, _ in counts:
        highest[master.group] = max(count, highest.get(master.group, 0))
    return {
        piece.name: count if own else highest[master.group] for master, count, own in counts for piece in master.pieces
    }


def _entry(file: Path, key: str) -> Mapping[str, Any]:
    content = read_torch_file(file)
    if not isinstance(content, Mapping) or not isinstance(content.get(key), Mapping):
        raise UserError(file, "is not an optimizer file of DeepSpeed", _REMEDY)
    shard: Mapping[str, Any] = checked(SHARD, content[key], file)
    return shard
