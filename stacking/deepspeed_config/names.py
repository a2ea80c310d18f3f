"""Guesses what a mistyped key was meant to be: by its letters, its place and its meaning."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from stacking.deepspeed_config.ds_facts import KNOWN_KEYS, SECTION_KEYS
from stacking.deepspeed_config.facts import OPTIMIZER_PARAMETERS

_LONGEST = 80
_ADAM = frozenset().union(*OPTIMIZER_PARAMETERS.values())

MEANINGS: Mapping[str, str] = {
    "max_grad_norm": "gradient_clipping",
    "grad_clip": "gradient_clipping",
    "clip_grad": "gradient_clipping",
    "clip_grad_norm": "gradient_clipping",
    "gradient_clip_val": "gradient_clipping",
    "gradient_clip": "gradient_clipping",
    "gradient_clip_norm": "gradient_clipping",
    "max_norm": "gradient_clipping",
    "clip": "gradient_clipping",
    "gradient_accumulation": "gradient_accumulation_steps",
    "bp16": "bf16",
    "bfp16": "bf16",
    "fp16_enabled": "fp16.enabled",
    "bf16_enabled": "bf16.enabled",
    "checkpointing": "activation_checkpointing",
    "gradient_checkpointing": "activation_checkpointing",
    "recompute": "activation_checkpointing",
    "zero": "zero_optimization",
    "zero_stage": "zero_optimization.stage",
    "learning_rate": "optimizer.params.lr",
    "adam_epsilon": "optimizer.params.eps",
    "optimizer.params.epsilon": "optimizer.params.eps",
    "optimizer.params.learning_rate": "optimizer.params.lr",
    "zero3_save_16bit_model": "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    "zero_optimization.comm_overlap": "zero_optimization.overlap_comm",
    "zero_optimization.prefetch_bucket_size": "zero_optimization.stage3_prefetch_bucket_size",
    "batch_size": "train_batch_size",
    "global_batch_size": "train_batch_size",
    "micro_batch_size": "train_micro_batch_size_per_gpu",
    "micro_batch_size_per_gpu": "train_micro_batch_size_per_gpu",
    "per_device_train_batch_size": "train_micro_batch_size_per_gpu",
    "accumulation_steps": "gradient_accumulation_steps",
    "grad_accumulation_steps": "gradient_accumulation_steps",
    "logging_steps": "steps_per_print",
    "print_steps": "steps_per_print",
    "csv": "csv_monitor",
    "compile.enabled": "stacking.compile",
}
"""Dotted names that other programs use, with DeepSpeed's own names."""

RENAMED: Mapping[str, str] = {
    "bfloat16": "bf16",
    "aio.thread_count": "aio.intra_op_parallelism",
    "allgather_size": "zero_optimization.allgather_bucket_size",
    "zero_optimization.allgather_size": "zero_optimization.allgather_bucket_size",
    "zero_optimization.max_elements_per_comm": "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": (
        "zero_optimization.stage3_gather_16bit_weights_on_model_save"
    ),
    "activation_checkpointing.partitioned_activations": "activation_checkpointing.partition_activations",
}
"""Names of earlier versions, with the current ones."""


_EVERYWHERE = frozenset(("enabled", "verbose", "debug", "type", "params", "device", "project", "team", "group"))
"""Names that say nothing about the section they belong to."""


def known_keys(section: str) -> Iterable[str]:
    """Returns the keys allowed in a dotted section; ``""`` is the top."""
    return SECTION_KEYS.get(section, ()) if section else KNOWN_KEYS


def meant(path: str) -> str:
    """Returns the dotted key that an unknown ``path`` was probably meant to be; empty if none is similar.

    The running time is bounded by the number of DeepSpeed's keys, for names of any length.
    """
    if path.lower() in MEANINGS:
        return MEANINGS[path.lower()]
    section, _, name = path[: 2 * _LONGEST].rpartition(".")
    name = name[:_LONGEST]
    if section == "optimizer" and name in _ADAM:
        return f"optimizer.params.{name}"
    if near := closest(name, known_keys(section)):
        return f"{section}.{near}" if section else near
    return _elsewhere(section, name)


def closest(name: str, names: Iterable[str], cutoff: float = 0.8) -> str:
    """Returns the one of ``names`` whose letters are most similar; empty if none is."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return found[0] if found else ""


def _elsewhere(section: str, name: str) -> str:
    """Returns the place of a key given in the wrong section; empty if there is none, or more than one."""
    if name in _EVERYWHERE:
        return ""
    homes = [home for home in ("", *SECTION_KEYS) if home != section and name in known_keys(home)]
    if not section and name in _ADAM:
        homes.append("optimizer.params")
    if len(homes) != 1:
        return ""
    return f"{homes[0]}.{name}" if homes[0] else name


def named(path: str, near: str) -> str:
    """Returns ``near`` as shown in a message about ``path``: without their common section."""
    section = path.rpartition(".")[0]
    return near.rpartition(".")[2] if near.rpartition(".")[0] == section else near


def surely(path: str) -> bool:
    """Whether `meant` is almost certainly right about ``path``.

    That is a typo of a letter or two, a name in `MEANINGS`, or a key in the section around or beside its own.
    """
    section, _, name = path.rpartition(".")
    if path.lower() in MEANINGS or closest(name[:_LONGEST], known_keys(section), cutoff=0.88):
        return True
    near = meant(path)
    home, _, other = near.rpartition(".")
    return other == name and (not section or not home or home == f"{section}.params")
