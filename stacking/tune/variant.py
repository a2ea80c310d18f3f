"""Sets one stage's DeepSpeed configuration to a candidate, for the plans of trials and for the tuned files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stacking.config.recipe import Recipe
from stacking.deepspeed_config import ds_config
from stacking.deepspeed_config.ds_config import Json, with_batch
from stacking.deepspeed_config.settle import settled, without_rates
from stacking.hardware.machine import Machine
from stacking.planning.make_plan import make_plan
from stacking.planning.plan import Plan, StagePlan
from stacking.planning.stage import user_config
from stacking.tune.candidate import Candidate, Setting


class Variants:
    """Plans of one recipe that differ only in tunable values.

    Args:
        manifest: manifest of the prepared data; None: planned without data.
        samples_per_epoch: rows of the sample index.
    """

    def __init__(
        self, recipe: Recipe, manifest: Mapping[str, Any] | None, samples_per_epoch: int | None, machine: Machine
    ) -> None:
        self.machine = machine
        self._manifest, self._samples = manifest, samples_per_epoch
        self.base = make_plan(recipe, manifest, samples_per_epoch, machine)
        users = [user_config(recipe, i) for i in range(len(recipe.stages))]
        self.recipe = settled(recipe, users)

    def config(self, index: int, candidate: Candidate) -> Json:
        """Returns the stage's DeepSpeed configuration as a user would write it: the recipe's, with tuned values set."""
        stage = self.base.stages[index]
        content = without_rates(user_config(self.recipe, index).content)
        accumulation = stage.global_batch // (candidate.micro_batch * stage.ranks)
        assert candidate.micro_batch * accumulation * stage.ranks == stage.global_batch
        content = with_batch(content, stage.global_batch, candidate.micro_batch, accumulation)
        if stage.precision != "fp32":
            content[stage.precision] = {**content.get(stage.precision, {}), "enabled": True}
        content["zero_optimization"] = _zero(stage.ds_config["zero_optimization"], candidate.setting)
        content["stacking"] = {
            **content.get("stacking", {}),
            "compile": candidate.setting.compile,
            "activation_checkpointing": candidate.setting.activation_checkpointing,
        }
        return content

    def plan(self, index: int, candidate: Candidate) -> Plan:
        """Plans the whole run with one stage set to ``candidate``."""
        stages = list(self.recipe.stages)
        stages[index] = self.tuned_stage(index, self.config(index, candidate))
        changed = self.recipe.model_copy(update={"stages": tuple(stages)})
        return make_plan(changed, self._manifest, self._samples, self.machine)

    def trial(self, index: int, candidate: Candidate, share: int) -> Plan:
        """Plans a trial whose updates have ``share`` sequences per rank."""
        plan = self.plan(index, candidate)
        stages = list(plan.stages)
        stages[index] = _shortened(stages[index], share)
        return plan.model_copy(update={"stages": tuple(stages)})

    def tuned_stage(self, index: int, reference: str | Json) -> Any:
        """Returns the recipe's stage with a DeepSpeed configuration that defines how its batch is split."""
        changes = {"micro_batch": None, "ranks": self.base.stages[index].ranks, "ds_config": reference}
        return self.recipe.stages[index].model_copy(update=changes)


def _zero(section: Mapping[str, Any], setting: Setting) -> Json:
    """Returns the recipe's ZeRO section at another stage, with another offload."""
    kept = {key: value for key, value in section.items() if key not in ("stage", "offload_optimizer", "offload_param")}
    zero: Json = {"stage": setting.zero_stage, **kept}
    if setting.offload != "none":
        zero["offload_optimizer"] = section.get("offload_optimizer") or {"device": "cpu", "pin_memory": True}
    if setting.offload == "optimizer+param":
        zero["offload_param"] = section.get("offload_param") or {"device": "cpu", "pin_memory": True}
    return zero


def _shortened(stage: StagePlan, share: int) -> StagePlan:
    """Returns the stage with fewer micro-steps per update, never more, to shorten a trial."""
    accumulation = max(1, min(stage.accumulation, share // stage.micro_batch))
    total = accumulation * stage.micro_batch * stage.ranks
    config = ds_config.with_batch(stage.ds_config, total, stage.micro_batch, accumulation)
    changes = {"accumulation": accumulation, "global_batch": total, "ds_config": config}
    return stage.model_copy(update=changes)
