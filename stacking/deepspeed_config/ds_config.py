"""DeepSpeed's configuration: the only place that spells its keys.

A user's JSON is taken as it is. It is checked first against what DeepSpeed accepts and what the recipe says, so that
nothing fails after a job has started; then the values that the plan decides are filled in.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stacking.config.reading import nearest, read_json_mapping, shown
from stacking.config.recipe import Optimizer
from stacking.config.shipped import DS_CONFIGS
from stacking.deepspeed_config.ds_facts import (
    AUTO_KEYS,
    CHOICES,
    FLAG,
    KNOWN_KEYS,
    NUMBER,
    OTHER,
    POSITIVE_KEYS,
    READ_FROM,
    REMOVED_KEYS,
    REMOVED_OPTIMIZERS,
    SECTION_KEYS,
    TEXT,
    UNSUPPORTED,
)
from stacking.errors import UserError
from stacking.hardware.presets import Compiled, DeviceClass, Precision

Json = dict[str, Any]
OWN = "stacking"
"""The section that is for this program; DeepSpeed does not get it."""
_QUIET = 1_000_000_000
"""``steps_per_print``: the training loop reports, DeepSpeed need not."""


@dataclass(frozen=True)
class UserConfig:
    """A user's DeepSpeed configuration and the name under which errors speak of it."""

    content: Json
    where: str

    def error(self, key: str, problem: str, remedy: str) -> UserError:
        """A mistake at ``key``."""
        return UserError(f"{self.where}: {key}" if key else self.where, problem, remedy)


@dataclass(frozen=True)
class BatchKeys:
    """The batch as a user's configuration gives it: sequences per update, per rank and micro-step, and micro-steps."""

    total: int | None
    micro: int | None
    accumulation: int | None


@dataclass(frozen=True)
class StageFacts:
    """What the plan has decided about a stage before its configuration is written."""

    micro_batch: int
    accumulation: int
    ranks: int
    precision: Precision
    peak_learning_rate: float
    hidden: int
    optimizer: Optimizer
    cuda: bool
    fused_adam: bool
    """Whether DeepSpeed's own Adam kernel can be had."""
    compiled: Compiled = "possible"
    """What torch.compile does on the device."""

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.ranks


def load(reference: str | Json | None, where: str, beside: Path) -> UserConfig:
    """The configuration that a recipe refers to, checked for what is wrong in any stage.

    Args:
        reference: a path (looked up beside the recipe, in the current directory, then among the ready ones of the
            checkout), the content itself, or nothing.
        where: the recipe's key, for errors about inline content.
        beside: the recipe's folder.

    Raises:
        UserError: no such file, not JSON, or a key that is unknown, removed or impossible here.
    """
    if isinstance(reference, str):
        tried = (beside / reference, Path(reference), DS_CONFIGS / reference)
        path = next((candidate for candidate in tried if candidate.is_file()), None)
        if path is None:
            raise UserError(where, f"{reference} does not exist", "give a path relative to the recipe or to here")
        user = UserConfig(read_json_mapping(path), str(reference))
    else:
        user = UserConfig(copy.deepcopy(reference or {}), where)
    check(user)
    return user


def check(user: UserConfig) -> None:
    """Refuse what DeepSpeed would reject or what this program cannot honour.

    Raises:
        UserError: names the file and the key.
    """
    for key in user.content:
        if key in REMOVED_KEYS:
            raise user.error(key, f"was removed from DeepSpeed, which stops at it ({READ_FROM})", REMOVED_KEYS[key])
        if key not in KNOWN_KEYS:
            raise user.error(str(key), "is not a key of DeepSpeed", nearest(str(key), sorted(KNOWN_KEYS)))
    for path, (allowed, problem, remedy) in UNSUPPORTED.items():
        value = _get(user.content, path)
        if value is not None and not _is_allowed(value, allowed):
            raise user.error(path, problem, remedy)
    for key, value in user.content.items():
        if key in SECTION_KEYS:
            _check_section(user, key, value)
        else:
            _check_value(user, key, value, KNOWN_KEYS[key])
    _check_choices(user)
    _check_zero(user)
    _check_own(user)
    _check_optimizer(user)
    _check_scheduler(user)
    if _enabled(user.content, "fp16") and _enabled(user.content, "bf16"):
        raise user.error("bf16.enabled", "is true and so is fp16.enabled", "enable one of them")


def batch_keys(user: UserConfig) -> BatchKeys:
    """The batch sizes that the configuration fixes; ``auto`` and absent ones are None.

    Raises:
        UserError: one of them is not a positive whole number.
    """
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    found = []
    for name in names:
        value = user.content.get(name, "auto")
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise user.error(name, f"is {shown(value)}", 'give a whole number above 0, or "auto"')
        found.append(None if value == "auto" else value)
    return BatchKeys(*found)


def resolve(user: UserConfig, facts: StageFacts) -> Json:
    """The whole configuration that DeepSpeed gets: the user's, with what the plan decides filled in.

    Raises:
        UserError: the user's values contradict the recipe or do not suit the device.
    """
    config = with_batch(user.content, facts.global_batch, facts.micro_batch, facts.accumulation)
    config["steps_per_print"] = config.get("steps_per_print", _QUIET)
    if config["steps_per_print"] == "auto":
        config["steps_per_print"] = _QUIET
    config.pop(OWN, None)
    config.pop("scheduler", None)  # only one left to us ("auto") passed the check
    config["gradient_clipping"] = _clipping(user, facts)
    config["optimizer"] = _optimizer(user, facts)
    _fill_precision(config, facts)
    _fill_zero(config, facts)
    return config


@dataclass(frozen=True)
class StageKernels:
    """How the layers of a stage are computed, besides what the device decides."""

    compile: bool
    activation_checkpointing: bool


def stage_kernels(user: UserConfig, facts: StageFacts) -> StageKernels:
    """What the configuration's own section says; ``auto``, and nothing, compile where that is faster.

    ZeRO 3 gathers weights around the modules that own them, which a compiled layer would not let it.

    Raises:
        UserError: it asks for what cannot be.
    """
    section = user.content.get(OWN, {})
    wanted, sharded = section.get("compile", "auto"), _get(user.content, "zero_optimization.stage") == 3
    if wanted is True and sharded:
        raise user.error(f"{OWN}.compile", "is true with ZeRO stage 3, which compiled layers break", "give false")
    if wanted is True and facts.compiled == "refused":
        raise user.error(f"{OWN}.compile", "is true, but Triton needs compute capability 7.0", "give false")
    compiled = facts.compiled == "faster" and not sharded if wanted == "auto" else wanted
    return StageKernels(compiled, section.get("activation_checkpointing") is True)


def with_batch(config: Mapping[str, Any], total: int, micro: int, accumulation: int) -> Json:
    """A copy of ``config`` for updates of ``total`` sequences, ``micro`` at once and ``accumulation`` times a rank."""
    return {
        **copy.deepcopy(dict(config)),
        "train_batch_size": total,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
    }


def requested_precision(user: UserConfig) -> Precision | None:
    """What ``fp16.enabled`` and ``bf16.enabled`` say; None where they leave it open."""
    if _enabled(user.content, "fp16"):
        return "fp16"
    if _enabled(user.content, "bf16"):
        return "bf16"
    given = [_get(user.content, f"{name}.enabled") for name in ("fp16", "bf16")]
    return "fp32" if False in given and "auto" not in given else None


def check_precision(precision: Precision, device: DeviceClass, where: str) -> None:
    """Refuse a precision that the device cannot do well.

    Raises:
        UserError: says why, and what suits the device.
    """
    if precision in device.unfit:
        problem = f"{precision} on {device.name}: {device.unfit[precision]}"
        raise UserError(where, problem, f"use {device.precision}")


def zero_stage(config: Mapping[str, Any]) -> int:
    """The ZeRO stage of a resolved configuration."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def precision(config: Mapping[str, Any]) -> Precision:
    """The precision of a resolved configuration."""
    if config.get("fp16", {}).get("enabled"):
        return "fp16"
    return "bf16" if config.get("bf16", {}).get("enabled") else "fp32"


def offloads(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a resolved configuration keeps in the host's memory: any of ``optimizer`` and ``param``."""
    zero = config.get("zero_optimization", {})
    return tuple(
        name for name in ("optimizer", "param") if (zero.get(f"offload_{name}") or {}).get("device", "none") != "none"
    )


_AUTO_ZERO: Mapping[str, Callable[[int], int]] = {
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "allgather_bucket_size": lambda hidden: hidden * hidden,
    "stage3_prefetch_bucket_size": lambda hidden: hidden * hidden * 9 // 10,
    "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}
"""What ``auto`` means in ``zero_optimization``, as users of Hugging Face's Trainer expect it."""


_ENABLED = '{"enabled": true}'
_EXAMPLES = {
    "optimizer": '{"type": "AdamW"}',
    "scheduler": '{"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}',
    "zero_optimization": '{"stage": 2}',
}


def _check_section(user: UserConfig, name: str, section: Any) -> None:
    if not isinstance(section, dict):
        raise user.error(name, f"is {shown(section)}", f"give an object, such as {_EXAMPLES.get(name, _ENABLED)}")
    known = SECTION_KEYS[name]
    for key, value in section.items():
        place = f"{name}.{key}"
        if key not in known:
            raise user.error(place, f"is not a key of {name}", nearest(str(key), sorted(known)))
        _check_value(user, place, value, known[key])


def _check_value(user: UserConfig, place: str, value: Any, kind: str) -> None:
    if value == "auto" and kind != TEXT:
        if place not in AUTO_KEYS:
            raise user.error(place, "is 'auto', which nothing here fills in", "give a value or remove it")
    elif not _is_a(kind, value):
        raise user.error(place, f"is {shown(value)}", f"give {kind}")


def _check_choices(user: UserConfig) -> None:
    for path, words in CHOICES.items():
        value = _get(user.content, path)
        if value is not None and str(value).lower() not in {word.lower() for word in words}:
            raise user.error(path, f"is {shown(value)}", nearest(str(value), words))
    for path in POSITIVE_KEYS:
        if _get(user.content, path) == 0:
            raise user.error(path, "is 0", "give a number greater than 0")


def _is_a(kind: str, value: Any) -> bool:
    """Whether a JSON value is what a key of a section must hold."""
    if kind == FLAG:
        return value is None or isinstance(value, bool)
    if kind == TEXT:
        return isinstance(value, str)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
    return kind == OTHER or (number and (kind == NUMBER or value == int(value)))


def _check_zero(user: UserConfig) -> None:
    zero = user.content.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise user.error("zero_optimization.stage", f"is {shown(stage)}", "give 0, 1, 2 or 3")
    for name, needed in (("offload_optimizer", 1), ("offload_param", 3)):
        offload = zero.get(name)
        if offload is None:
            continue
        if not isinstance(offload, dict):
            raise user.error(f"zero_optimization.{name}", f"is {shown(offload)}", 'give an object: {"device": "cpu"}')
        _check_section(user, f"zero_optimization.{name}", offload)
        device = offload.get("device", "none")
        if device not in ("none", "cpu"):
            problem = f"is {shown(device)}, which checkpoints here cannot be consolidated from"
            raise user.error(f"zero_optimization.{name}.device", problem, "give 'cpu' or 'none'")
        if device == "cpu" and stage < needed:
            problem = f"needs ZeRO stage {needed} or more, and the stage is {stage}"
            raise user.error(f"zero_optimization.{name}", problem, "raise the stage or remove it")


def _check_own(user: UserConfig) -> None:
    section = user.content.get(OWN, {})
    compiled, why = section.get("compile", "auto"), section.get("why", {})
    if compiled != "auto" and not isinstance(compiled, bool):
        raise user.error(f"{OWN}.compile", f"is {shown(compiled)}", 'give true, false or "auto"')
    if not isinstance(why, dict):
        raise user.error(f"{OWN}.why", f"is {shown(why)}", "give an object of texts, or remove it")
    for key, reason in why.items():
        if not isinstance(reason, str):
            raise user.error(f"{OWN}.why.{key}", f"is {shown(reason)}", "give a text, or remove it")


def _check_optimizer(user: UserConfig) -> None:
    section = user.content.get("optimizer", {})
    name = section.get("type", "AdamW")
    if not isinstance(name, str):
        raise user.error("optimizer.type", f"is {shown(name)}", "give 'AdamW'")
    if name.lower() in REMOVED_OPTIMIZERS:
        raise user.error("optimizer.type", f"{name} was removed from DeepSpeed ({READ_FROM})", "use 'AdamW'")
    if name.lower() not in ("adam", "adamw"):
        raise user.error(
            "optimizer.type", f"is {shown(name)}, but a state holds the two moments of Adam", "use 'AdamW'"
        )
    parameters = section.get("params", {})
    if not isinstance(parameters, dict):
        raise user.error("optimizer.params", f"is {shown(parameters)}", "give an object")
    if "max_grad_norm" in parameters:
        raise user.error("optimizer.params.max_grad_norm", "is refused by DeepSpeed", "use gradient_clipping")
    if parameters.get("adam_w_mode") is False and name.lower() == "adam":
        raise user.error("optimizer.params.adam_w_mode", "is false, but weight decay here is decoupled", "remove it")
    for key in parameters:
        if key not in _OPTIMIZER_PARAMETERS:
            remedy = nearest(key, _OPTIMIZER_PARAMETERS)
            raise user.error(f"optimizer.params.{key}", "is not a parameter of Adam", remedy)


_OPTIMIZER_PARAMETERS = (
    *("lr", "betas", "eps", "weight_decay"),
    *("torch_adam", "adam_w_mode", "bias_correction", "foreach", "fused"),
)


def _check_scheduler(user: UserConfig) -> None:
    section = user.content.get("scheduler", {})
    parameters = section.get("params", {})
    if not isinstance(parameters, dict):
        raise user.error("scheduler.params", f"is {shown(parameters)}", "give an object")
    if "type" in section and not parameters:
        problem = "has no params, but the recipe's schedule decides the learning rate"
        raise user.error("scheduler", problem, 'remove it, or write "auto" for its params')
    fixed = [key for key, value in parameters.items() if value != "auto"]
    if fixed:
        problem = f"is {shown(parameters[fixed[0]])}, but the recipe's schedule decides the learning rate"
        raise user.error(f"scheduler.params.{fixed[0]}", problem, 'remove scheduler, or write "auto"')


def _clipping(user: UserConfig, facts: StageFacts) -> float:
    clip, given = facts.optimizer.clip, user.content.get("gradient_clipping", "auto")
    if given != "auto" and given != clip:
        remedy = f"set optimizer.clip={given:g} in the recipe, or remove it here"
        raise user.error("gradient_clipping", f"is {given:g}, but the recipe's optimizer.clip is {clip:g}", remedy)
    return clip


def _optimizer(user: UserConfig, facts: StageFacts) -> Json:
    section = user.content.get("optimizer", {})
    wanted: Json = {
        "lr": facts.peak_learning_rate,
        "betas": list(facts.optimizer.betas),
        "eps": facts.optimizer.eps,
        "weight_decay": facts.optimizer.weight_decay,
    }
    given = {key: value for key, value in section.get("params", {}).items() if value != "auto"}
    for key, value in wanted.items():
        if key in given and given[key] != value:
            remedy = "remove it here or change the recipe"
            raise user.error(f"optimizer.params.{key}", f"is {given[key]}, but the recipe says {value}", remedy)
    return {"type": section.get("type", "AdamW"), "params": {**given, **wanted, **_implementation(facts, given)}}


def _implementation(facts: StageFacts, given: Json) -> Json:
    """PyTorch's Adam, in one kernel for each tensor, where DeepSpeed's fused one cannot run."""
    if facts.fused_adam and "torch_adam" not in given:
        return {}
    torch_adam = given.get("torch_adam", True)
    fuse = torch_adam and not {"fused", "foreach"} & given.keys()
    return {"torch_adam": torch_adam, **({"fused": True} if fuse else {})}


def _fill_precision(config: Json, facts: StageFacts) -> None:
    for name in ("fp16", "bf16"):
        if facts.precision == name:
            config[name] = {**config.get(name, {}), "enabled": True}
        elif name in config:
            config[name] = {**config[name], "enabled": False}
    loss_scaling = config.get("fp16", {})
    for key in [key for key, value in loss_scaling.items() if value == "auto"]:
        del loss_scaling[key]  # DeepSpeed's own default


def _fill_zero(config: Json, facts: StageFacts) -> None:
    # One GPU alone: without flat groups, 16-bit training would wait for the overflow check of every parameter.
    flat = facts.cuda and facts.precision != "fp32" and not facts.fused_adam
    zero = config.setdefault("zero_optimization", {"stage": 2 if facts.ranks > 1 else int(flat)})
    for key, value in zero.items():
        if value == "auto":
            zero[key] = _AUTO_ZERO[key](facts.hidden)
    if not facts.cuda and "optimizer" in offloads(config):
        config.setdefault("zero_force_ds_cpu_optimizer", False)  # on a CPU PyTorch's Adam serves as well


def _get(content: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None."""
    value: Any = content
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _enabled(content: Mapping[str, Any], name: str) -> bool:
    return _get(content, f"{name}.enabled") is True


def _is_allowed(value: Any, allowed: object) -> bool:
    """Whether a value leaves an unsupported feature off."""
    if isinstance(value, Mapping):
        return value.get("enabled", True) is False
    return value == allowed
