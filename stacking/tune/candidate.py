"""What can be chosen for a stage: the table of dimensions, and one point in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

Offload = Literal["none", "optimizer", "optimizer+param"]

DIMENSIONS: Mapping[str, tuple[Any, ...]] = {
    "zero_stage": (0, 1, 2, 3),
    "compile": (False, True),
    "activation_checkpointing": (False, True),
    "offload": ("none", "optimizer", "optimizer+param"),
}
"""Every dimension beside the micro-batch, and its values: the first costs no speed, each further one buys memory or,
for ``compile``, speed. Precision, optimizer, learning rate and clipping are no dimensions: they are the recipe's."""

OFFLOAD_WORDS: Mapping[Offload, str] = {
    "none": "no offload",
    "optimizer": "optimizer offloaded",
    "optimizer+param": "all offloaded",
}
_LEAST_ZERO: Mapping[Offload, int] = {"none": 0, "optimizer": 1, "optimizer+param": 3}
"""The ZeRO stage that can offload so much."""


class Setting(BaseModel):
    """Everything that is chosen but the micro-batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        """Whether DeepSpeed has it, and the plan would take it: ZeRO 3 and compiled layers exclude each other."""
        return self.zero_stage >= _LEAST_ZERO[self.offload] and not (self.compile and self.zero_stage == 3)

    def changed(self, **values: Any) -> Setting:
        """The same with other values, and with what these exclude changed as little as can be."""
        setting = self.model_copy(update=values)
        if setting.compile and setting.zero_stage == 3:
            setting = setting.model_copy(update={"zero_stage": 2} if "compile" in values else {"compile": False})
        while not setting.possible and "offload" not in values:
            offloads: tuple[Offload, ...] = DIMENSIONS["offload"]
            setting = setting.model_copy(update={"offload": offloads[offloads.index(setting.offload) - 1]})
        return setting

    @property
    def switches(self) -> int:
        """How many things are on that could be off: what is simple has few."""
        return self.compile + self.activation_checkpointing + DIMENSIONS["offload"].index(self.offload)

    @property
    def words(self) -> str:
        """``ZeRO 2, compiled, checkpointing, optimizer offloaded``."""
        parts = [f"ZeRO {self.zero_stage}"]
        parts += ["compiled"] * self.compile + ["checkpointing"] * self.activation_checkpointing
        return ", ".join(parts + [OFFLOAD_WORDS[self.offload]] * (self.offload != "none"))


class Candidate(BaseModel):
    """A setting and a micro-batch: what a trial measures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_batch: int
    """Sequences that one rank computes at once."""
    setting: Setting

    @property
    def label(self) -> str:
        """A file's name: ``m8-z2-compile``."""
        setting = self.setting
        parts = [f"m{self.micro_batch}", f"z{setting.zero_stage}"]
        parts += ["compile"] * setting.compile + ["checkpoint"] * setting.activation_checkpointing
        return "-".join(parts + [f"offload-{setting.offload.replace('+', '-')}"] * (setting.offload != "none"))

    @property
    def words(self) -> str:
        return f"micro-batch {self.micro_batch}, {self.setting.words}"

    def at(self, micro_batch: int) -> Candidate:
        return Candidate(micro_batch=micro_batch, setting=self.setting)

    def changed(self, **values: Any) -> Candidate:
        """The same micro-batch in another setting."""
        return Candidate(micro_batch=self.micro_batch, setting=self.setting.changed(**values))
