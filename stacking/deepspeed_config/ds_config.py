"""Turns a user's DeepSpeed configuration into that of a stage.

A user's JSON is examined key by key (`stacking.deepspeed_config`), so that nothing fails after a job has started; then
the plan's values are filled in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stacking.config.recipe import Optimizer
from stacking.config.shipped import DS_CONFIGS
from stacking.deepspeed_config.ds_facts import BATCH_KEYS
from stacking.deepspeed_config.examination import get as _get
from stacking.deepspeed_config.examine import examine
from stacking.deepspeed_config.findings import KeyRow
from stacking.deepspeed_config.optimizer import adam_class, given_parameters, refused_parameters
from stacking.deepspeed_config.read import read_config
from stacking.errors import UserError
from stacking.hardware.presets import Compiled, DeviceClass, Precision
from stacking.storage.frozen import Frozen

Json = dict[str, Any]
OWN = "stacking"
"""The section for this program; it is not passed to DeepSpeed."""
LAMB = "Lamb"
"""The type of a stage's optimizer that this program makes; DeepSpeed's own of this name is not built."""
_OURS: Json = {"steps_per_print": 1_000_000_000, "timers": {"throughput": {"enabled": False}}}
"""The training loop reports progress, so DeepSpeed need not; its timer would wait for the device at every step."""
_NOT_TOLD = ("is a comment", "is null", "is 'auto'", "only has the value 'auto'")


@dataclass(frozen=True)
class UserConfig:
    """A user's DeepSpeed configuration and its name in error messages."""

    content: Json
    """The content after its examination."""
    where: str
    rows: tuple[KeyRow, ...] = ()
    """The keys that were changed or removed."""
    path: Path | None = None
    """The file; None: the configuration is inline in the recipe."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The user's name of each key that was renamed."""

    @property
    def errors(self) -> Iterator[UserError]:
        """Yields the errors that make a plan impossible."""
        return (self.error(row.key, row.problem, row.remedy) for row in self.rows if row.refused)

    @property
    def notes(self) -> Iterator[str]:
        """Yields notes for the user about keys that were translated or have no effect here."""
        for row in self.rows:
            if not row.refused and row.problem not in _NOT_TOLD:
                yield f"{self.where}: {row.key}: {row.problem}; {row.remedy}"

    def error(self, key: str, problem: str, remedy: str) -> UserError:
        """Creates an error at ``key``."""
        return UserError(self.key(key) if key else self.where, problem, remedy)

    def key(self, key: str) -> str:
        """Returns ``FILE: key`` under the name that the user gave it."""
        return f"{self.where}: {self.names.get(key, key)}"


@dataclass(frozen=True)
class BatchKeys:
    """The batch keys of a user's configuration: sequences per update, sequences per micro-step, micro-steps."""

    total: int | None
    micro: int | None
    accumulation: int | None


def load(reference: str | Json | None, where: str, beside: Path) -> UserConfig:
    """Examines the configuration that a recipe refers to; the plan raises its ``errors``.

    Args:
        reference: a path (relative to the recipe, to the current directory, or to the ready configurations), the
            content itself, or nothing.
        where: the recipe's key, for errors about inline content.
        beside: the recipe's folder.

    Raises:
        UserError: the file does not exist, or is neither JSON nor HJSON.
    """
    path, content, name = None, reference or {}, where
    if isinstance(reference, str):
        tried = (beside / reference, Path(reference), DS_CONFIGS / reference)
        path = next((candidate for candidate in tried if candidate.is_file()), None)
        if path is None:
            raise UserError(where, f"{reference} does not exist", "give a path relative to the recipe or to here")
        content, name = read_config(path), reference
    assert isinstance(content, dict)
    found = examine(content)
    return UserConfig(found.content, name, tuple(found.rows), path, found.names)


def batch_keys(user: UserConfig) -> BatchKeys:
    """Returns the batch sizes that an examined configuration sets; ``auto`` and missing ones are None."""
    given = (user.content.get(name, "auto") for name in BATCH_KEYS)
    return BatchKeys(*(None if value == "auto" else value for value in given))


def resolve(
    user: UserConfig,
    *,
    micro_batch: int,
    accumulation: int,
    ranks: int,
    optimizer: Optimizer,
    peak_learning_rate: float,
    precision: Precision,
    hidden: int,
    cuda: bool,
    stage: str,
) -> Json:
    """Returns the complete DeepSpeed configuration: the user's, with the plan's values filled in.

    Args:
        stage: the stage's name: DeepSpeed's output files are separate for each stage.
    """
    config = with_batch(user.content, micro_batch * accumulation * ranks, micro_batch, accumulation)
    for key, value in _OURS.items():
        if config.get(key, "auto") == "auto":
            config[key] = copy.deepcopy(value)
    config.pop(OWN, None)
    config.pop("scheduler", None)  # the plan's schedule applies
    config["gradient_clipping"] = optimizer.clip
    config["optimizer"] = _optimizer(user, optimizer, peak_learning_rate)
    _fill_precision(config, precision)
    _fill_zero(config, hidden, ranks, cuda, precision)
    _separate_files(config, stage)
    return config


class StageKernels(Frozen):
    """How the layers of a stage are computed, except for what the device decides (`stacking.model.kernels`)."""

    compile: bool = False
    activation_checkpointing: bool = False


_COMPILED_FROM = 512
"""The hidden size from which compiling is assumed to pay. A narrower layer is bound by kernel launches, and compiling
saves few: with torch 2.11, forward and backward of 3 layers of 128 launch 314 kernels instead of 326."""


def stage_kernels(user: UserConfig, device: Compiled, hidden: int) -> StageKernels:
    """Reads the configuration's own section; ``auto``, the default, compiles where that is faster.

    Compiled layers do not work with ZeRO 3, which gathers weights around the modules that own them.

    Raises:
        UserError: it asks for an unsupported combination.
    """
    section = user.content.get(OWN, {})
    wanted, sharded = section.get("compile", "auto"), _get(user.content, "zero_optimization.stage") == 3
    if wanted is True and sharded:
        raise user.error(f"{OWN}.compile", "is true with ZeRO stage 3, which compiled layers break", "give false")
    if wanted is True and device == "refused":
        raise user.error(f"{OWN}.compile", "is true, but Triton needs compute capability 7.0", "give false")
    faster = device == "faster" and hidden >= _COMPILED_FROM
    compiled = faster and not sharded if wanted == "auto" else wanted
    return StageKernels(compile=compiled, activation_checkpointing=section.get("activation_checkpointing") is True)


def with_batch(config: Mapping[str, Any], total: int, micro: int, accumulation: int) -> Json:
    """Returns ``config`` for updates of ``total`` sequences: ``micro`` at once, ``accumulation`` times per rank."""
    return {
        **copy.deepcopy(dict(config)),
        "train_batch_size": total,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
    }


def requested_precision(user: UserConfig, device: DeviceClass) -> Precision | None:
    """Returns the precision that ``fp16.enabled`` and ``bf16.enabled`` select; None if they leave it open.

    A disabled precision stays disabled: if it is the device's default, the other 16-bit one is used if it is ``auto``
    and suits the device, else fp32.
    """
    given = {name: _get(user.content, f"{name}.enabled") for name in ("fp16", "bf16")}
    for name in ("fp16", "bf16"):
        if given[name] is True:
            return name  # type: ignore[return-value]
    if False not in given.values():
        return None
    if "auto" not in given.values():
        return "fp32"
    left: Precision = "fp16" if given["fp16"] == "auto" else "bf16"
    return "fp32" if device.precision == "fp32" or left in device.unfit else left


def zero_stage(config: Mapping[str, Any]) -> int:
    """Returns the ZeRO stage of a resolved configuration."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def precision(config: Mapping[str, Any]) -> Precision:
    """Returns the precision of a resolved configuration."""
    if config.get("fp16", {}).get("enabled"):
        return "fp16"
    return "bf16" if config.get("bf16", {}).get("enabled") else "fp32"


def offloads(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what a resolved configuration offloads to the host: any of ``optimizer`` and ``param``."""
    zero = config.get("zero_optimization", {})
    return tuple(
        name for name in ("optimizer", "param") if (zero.get(f"offload_{name}") or {}).get("device", "none") != "none"
    )


_BUCKET = 100_000_000
"""Elements; DeepSpeed's own default takes 1 to 2 GB of a GPU, whatever the model."""
_AUTO_ZERO: Mapping[str, Callable[[int], int]] = {
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "allgather_bucket_size": lambda hidden: hidden * hidden,
    "stage3_prefetch_bucket_size": lambda hidden: hidden * hidden * 9 // 10,
    "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}
"""Values of ``auto`` in ``zero_optimization``, as in Hugging Face's Trainer."""


def optimizer_errors(user: UserConfig, optimizer: Optimizer) -> Iterator[UserError]:
    """Returns what does not go with LAMB, or what DeepSpeed's class of Adam for this stage does not accept."""
    if optimizer.type == "lamb":
        yield from (user.error(*conflict) for conflict in lamb_conflicts(user.content))
    else:
        for key, problem, remedy in refused_parameters(user.content):
            yield user.error(f"optimizer.params.{key}", problem, remedy)


def lamb_conflicts(content: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields what does not go with a recipe's LAMB: key, problem, remedy.

    It needs the norm of whole tensors, and ZeRO steps parts of flattened groups; DeepSpeed refuses the two together.
    """
    if _get(content, "zero_optimization.stage", 0):
        problem = "cuts tensors, but the recipe's optimizer.type is lamb, which needs whole ones"
        yield "zero_optimization.stage", problem, "give 0, or train with adam"
    if "optimizer" in content:
        problem = "configures Adam, but the recipe's optimizer.type is lamb"
        yield "optimizer", problem, "remove it here, and give its values in the recipe"


def compiles_adam(config: Mapping[str, Any]) -> bool:
    """Returns whether a resolved configuration's optimizer is DeepSpeed's own, which is built at the first start."""
    return config["optimizer"]["params"].get("torch_adam") is False


def _optimizer(user: UserConfig, optimizer: Optimizer, peak_learning_rate: float) -> Json:
    wanted: Json = {
        "lr": peak_learning_rate,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if optimizer.type == "lamb":
        return {"type": LAMB, "params": wanted}
    given = given_parameters(user.content)
    if adam_class(user.content) == "AdamW":
        given.pop("bias_correction", None)  # PyTorch always applies it
    wanted["torch_adam"] = given.get("torch_adam", True)  # it needs no compiler, unlike DeepSpeed's
    if wanted["torch_adam"] and not {"fused", "foreach"} & given.keys():
        wanted["fused"] = True
    return {"type": _get(user.content, "optimizer.type", "AdamW"), "params": {**given, **wanted}}


def _fill_precision(config: Json, precision: Precision) -> None:
    if precision == "bf16":  # a check of every gradient; `stacking.train.finite` reads the norm instead
        config["bf16"] = {"check_grad_overflow": False, **config.get("bf16", {})}
    for name in ("fp16", "bf16"):
        if precision == name:
            config[name] = {**config.get(name, {}), "enabled": True}
        elif name in config:
            config[name] = {**config[name], "enabled": False}
    loss_scaling = config.get("fp16", {})
    for key in [key for key, value in loss_scaling.items() if value == "auto"]:
        del loss_scaling[key]  # use DeepSpeed's default


def _separate_files(config: Json, stage: str) -> None:
    """Names DeepSpeed's output files after the stage, so that no stage overwrites another's."""
    for name in ("csv_monitor", "tensorboard"):
        if _get(config, f"{name}.enabled"):
            config[name] = {**config[name], "job_name": f"{config[name].get('job_name', 'DeepSpeedJobName')}/{stage}"}
    profile = _get(config, "flops_profiler.output_file")
    if isinstance(profile, str) and profile:
        file = Path(profile)
        config["flops_profiler"] = {
            **config["flops_profiler"],
            "output_file": str(file.with_name(f"{file.stem}.{stage}{file.suffix}")),
        }


def _automatic(stage: int, cuda: bool) -> Json:
    """Returns the section for a configuration without one; on a GPU each bucket is allocated whole."""
    buckets = {"reduce_bucket_size": _BUCKET, "allgather_bucket_size": _BUCKET}
    return {"stage": stage, **(buckets if cuda and stage else {})}


def _fill_zero(config: Json, hidden: int, ranks: int, cuda: bool, precision: Precision) -> None:
    # A single GPU: without flat groups, 16-bit training would wait for every parameter's overflow check.
    flat = cuda and precision != "fp32"
    scaled = config.get("prescale_gradients") or config.get("gradient_predivide_factor", 1) != 1
    sharded = 1 if scaled else 2  # ZeRO 2 does not scale gradients before reducing them
    lamb = config["optimizer"]["type"] == LAMB
    stage = 0 if lamb else sharded if ranks > 1 else int(flat)
    zero = config.setdefault("zero_optimization", _automatic(stage, cuda))
    for key, value in zero.items():
        if value == "auto":
            zero[key] = _AUTO_ZERO[key](hidden)
    if not lamb and not compiles_adam(config) and "optimizer" in offloads(config):
        config.setdefault("zero_force_ds_cpu_optimizer", False)
