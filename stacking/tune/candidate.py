"""Defines the table of tunable dimensions, a candidate (one point in it), and the record of its trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator

from stacking.storage.frozen import Frozen

Offload = Literal["none", "optimizer", "optimizer+param"]

DIMENSIONS: Mapping[str, tuple[Any, ...]] = {
    "zero_stage": (0, 1, 2, 3),
    "compile": (False, True),
    "activation_checkpointing": (False, True),
    "offload": ("none", "optimizer", "optimizer+param"),
}
"""Every dimension except the micro-batch, and its values: the first costs no speed, each further one saves memory or,
for ``compile``, time. Precision, optimizer, learning rate and clipping are not tuned: the recipe sets them."""

OFFLOAD_WORDS: Mapping[Offload, str] = {
    "none": "no offload",
    "optimizer": "optimizer offloaded",
    "optimizer+param": "all offloaded",
}
_LEAST_ZERO: Mapping[Offload, int] = {"none": 0, "optimizer": 1, "optimizer+param": 3}
"""The lowest ZeRO stage that supports each kind of offload."""


class Setting(Frozen):
    """Everything that is tuned except the micro-batch."""

    zero_stage: int
    compile: bool = False
    activation_checkpointing: bool = False
    offload: Offload = "none"

    @field_validator("*")
    @classmethod
    def _is_in_the_table(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in DIMENSIONS[str(info.field_name)]:
            raise ValueError(f"{value} is not one of {DIMENSIONS[str(info.field_name)]}")
        return value

    @property
    def possible(self) -> bool:
        """Whether DeepSpeed and the plan support the combination: ZeRO 3 and compiled layers exclude each other."""
        return self.zero_stage >= _LEAST_ZERO[self.offload] and not (self.compile and self.zero_stage == 3)

    def changed(self, **values: Any) -> Setting:
        """Returns a copy with other values, adjusting as little as possible where they exclude existing ones."""
        setting = self.model_copy(update=values)
        if setting.compile and setting.zero_stage == 3:
            setting = setting.model_copy(update={"zero_stage": 2} if "compile" in values else {"compile": False})
        while not setting.possible and "offload" not in values:
            offloads: tuple[Offload, ...] = DIMENSIONS["offload"]
            setting = setting.model_copy(update={"offload": offloads[offloads.index(setting.offload) - 1]})
        return setting

    @property
    def switches(self) -> int:
        """Counts the features switched on; a simpler setting has fewer."""
        return self.compile + self.activation_checkpointing + DIMENSIONS["offload"].index(self.offload)

    @property
    def words(self) -> str:
        """Describes the setting, such as ``ZeRO 2, compiled, checkpointing, optimizer offloaded``."""
        parts = [f"ZeRO {self.zero_stage}"]
        parts += ["compiled"] * self.compile + ["checkpointing"] * self.activation_checkpointing
        return ", ".join(parts + [OFFLOAD_WORDS[self.offload]] * (self.offload != "none"))


class Candidate(Frozen):
    """A setting and a micro-batch, measured by one trial."""

    micro_batch: int
    """Sequences that one rank computes at once."""
    setting: Setting

    @property
    def label(self) -> str:
        """Returns a file name, such as ``m8-z2-compile``."""
        setting = self.setting
        parts = [f"m{self.micro_batch}", f"z{setting.zero_stage}"]
        parts += ["compile"] * setting.compile + ["checkpoint"] * setting.activation_checkpointing
        return "-".join(parts + [f"offload-{setting.offload.replace('+', '-')}"] * (setting.offload != "none"))

    @property
    def words(self) -> str:
        """The micro-batch and the setting, as a phrase for the user."""
        return f"micro-batch {self.micro_batch}, {self.setting.words}"

    def at(self, micro_batch: int) -> Candidate:
        """Returns the same setting at another micro-batch."""
        return Candidate(micro_batch=micro_batch, setting=self.setting)

    def changed(self, **values: Any) -> Candidate:
        """Returns another micro-batch, or the same in another setting."""
        micro_batch = values.pop("micro_batch", self.micro_batch)
        return Candidate(micro_batch=micro_batch, setting=self.setting.changed(**values))


Result = Literal["measured", "out-of-memory", "failed", "pruned"]


class Tried(Frozen):
    """A candidate and how its trial ended, or why it had none."""

    candidate: Candidate
    result: Result
    """``pruned``: not measured, because it cannot fit."""
    tokens_per_second: float = 0.0
    """Tokens/s of all ranks, including padding; 0 if nothing was measured."""
    update_seconds: float | None = None
    """Median seconds of an update of the recipe's whole global batch."""
    spread: float | None = None
    """Interquartile range of the steps relative to their median."""
    memory_bytes: int | None = None
    """Peak bytes of one rank."""
    message: str = ""
    """One line on what went wrong or why it was left out."""

    @property
    def does_not_fit(self) -> bool:
        """Whether the candidate ran out of memory, or cannot fit."""
        return self.result in ("out-of-memory", "pruned")
