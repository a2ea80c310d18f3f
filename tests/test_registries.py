"""A new operator, kind of samples, launcher, device or variant needs only one function or class and one row.

The rows are added in a running program, without a change elsewhere: then a recipe takes the name, its plan carries it,
and the named object does its work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stacking.config.recipe import recipe_from
from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS, PackedSampler, _Text
from stacking.data.samples import build_samples
from stacking.errors import UserError
from stacking.estimate.prediction import predict
from stacking.estimate.setting import open_setting
from stacking.growth.apply import grow
from stacking.growth.operators import OPERATORS, OPTIMIZER_STATES, Operator
from stacking.hardware.presets import DEVICE_CLASSES, SHAPES, device_class
from stacking.launch.job import Job
from stacking.launch.local import Local, LocalJob
from stacking.launch.registry import LAUNCHERS, LauncherEntry, open_launcher
from stacking.model.bert import PostLNBert, build
from stacking.model.config import VARIANTS, ModelConfig
from stacking.model.size import parameter_shapes
from stacking.planning.make_plan import make_plan
from stacking.planning.plan import Plan
from stacking.state.format import WEIGHTS, State
from stacking.state.layers import LayerSource
from tests.data.conftest import write_numbers
from tests.small_recipe import MACHINE
from tests.states import SMALL, random_weights, write_state

STAGES = [{"layers": 1, "steps": 1, "batch_sequences": 1, "learning_rate": {"peak": 1e-3}}]
TABLES: dict[str, Any] = {
    "growth.operator": OPERATORS,
    "growth.optimizer_state": OPTIMIZER_STATES,
    "data.samples": SAMPLERS,
    "launch.launcher": LAUNCHERS,
    "launch.device": DEVICE_CLASSES,
    "model.shape": SHAPES,
    "model.variant": VARIANTS,
}


def plan_with(*overrides: str) -> Plan:
    """The plan of two stages, 2 layers that grow to 4, in which one key has the new name."""
    stages = [dict(STAGES[0], layers=2), {"layers": 4, "steps": 1}]
    return make_plan(recipe_from({"stages": stages}, Path("r.yaml"), list(overrides)), None, None, MACHINE)


@pytest.mark.parametrize("key", TABLES)
def test_a_new_row_is_a_valid_name(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f'{key}: is "newest"; choose one of|did you mean'):
        recipe_from({"stages": STAGES}, Path("r.yaml"), [f"{key}=newest"])
    monkeypatch.setitem(TABLES[key], "newest", next(iter(TABLES[key].values())))
    recipe = recipe_from({"stages": STAGES}, Path("r.yaml"), [f"{key}=newest"])
    section, name = key.split(".")
    assert getattr(getattr(recipe, section), name) == "newest"


def upside_down(source_layers: int, target_layers: int) -> tuple[LayerSource, ...]:
    """The stack, and on top of it its mirror image."""
    return tuple(LayerSource(i if i < source_layers else target_layers - 1 - i) for i in range(target_layers))


def test_an_operator_is_a_function_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "newest", Operator(upside_down, lambda old, new: new == 2 * old))
    growth = plan_with("growth.operator=newest").stages[1].growth
    assert growth is not None and growth.operator == "newest"
    config = ModelConfig(**SMALL)
    weights = random_weights(config)
    grown = grow(State(write_state(tmp_path / "old", config, weights)), tmp_path / "new", 4, operator="newest")
    names = ["layers.3.attention.qkv.weight", "layers.0.attention.qkv.weight"]
    old = weights[names[1]].numpy().reshape(-1)
    assert all(np.array_equal(grown.read(WEIGHTS, name).reshape(-1), old) for name in names)


class Backwards(PackedSampler):
    """Packed samples whose tokens run from the end to the start."""

    def _text(self, rows: Any, sample_ids: Any) -> _Text:
        text = super()._text(rows, sample_ids)
        return text._replace(input_ids=text.input_ids[::-1].copy(), lengths=text.lengths[::-1].copy())


def test_a_kind_of_samples_is_a_class_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "newest", Backwards)
    assert plan_with("data.samples=newest").data.samples == "newest"
    corpus = Corpus(write_numbers(tmp_path / "data"), split="train")
    sampler = SAMPLERS["newest"](corpus, build_samples(corpus, "newest", 16), 16, seed=1)
    drawn, packed = (kind.unpadded(np.arange(2)) for kind in (sampler, PackedSampler(corpus, sampler.samples, 16, 1)))
    assert drawn.nsp_labels is None
    assert drawn.input_ids[0] == packed.input_ids[-1] == corpus.special["sep"]


class Twice(Local):
    """Starts each job's ranks a second time, as no launcher should."""

    def start(self, job: Job, inherited: Sequence[int] = ()) -> LocalJob:
        return super().start(replace(job, ranks=2 * job.ranks), inherited)


def test_a_launcher_is_a_class_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAUNCHERS, "newest", LauncherEntry(Twice))
    plan = plan_with("launch.launcher=newest")
    job = Job(name="job", argv=["/bin/true"], ranks=1, logs=tmp_path)
    running = open_launcher(plan.launch.launcher).start(job)
    while (outcome := running.poll()) is None:
        time.sleep(0.01)
    assert outcome.exit_code == 0
    assert len(list(tmp_path.glob("job.rank*.log"))) == 2
    with pytest.raises(UserError, match="the launcher is newest; add --launcher mpi"):
        open_launcher("newest", tmp_path)


def test_a_device_class_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(DEVICE_CLASSES["a100"], name="newest", pattern="N9000", peak={"fp32": 39.0, "bf16": 624.0})
    monkeypatch.setitem(DEVICE_CLASSES, "newest", row)  # type: ignore[arg-type]
    plan, a100 = (plan_with(f"launch.device={name}", "launch.ranks=1") for name in ("newest", "a100"))
    assert (plan.launch.device, plan.launch.accelerator, plan.stages[0].precision) == ("newest", "cuda", "bf16")
    assert device_class("NVIDIA N9000", 1 << 36, 10.0) is row
    newer, older = (open_setting(plan, MACHINE) for plan in (plan, a100))
    assert newer is not None and older is not None
    assert predict(plan, newer).seconds < predict(a100, older).seconds


class WithoutPooler(PostLNBert):
    """A BERT that scores the next sentence from the first token itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        del self.pooler

    def nsp_logits(self, first: torch.Tensor) -> torch.Tensor:
        return self.nsp_head(first)  # type: ignore[no-any-return]


def test_a_variant_is_a_class_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = {name: part for name, part in VARIANTS["post_ln"].heads.items() if name != "pooler"}
    row = replace(VARIANTS["post_ln"], model=f"{__name__}:WithoutPooler", heads=heads, hugging_face="")
    monkeypatch.setitem(VARIANTS, "newest", row)
    plan, known = plan_with("model.variant=newest", "model.hidden=64"), plan_with("model.hidden=64")
    assert known.stages[0].parameters - plan.stages[0].parameters == 64 * 64 + 64
    model = build(plan.model)
    assert isinstance(model, WithoutPooler)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == parameter_shapes(plan.model)
    assert not plan.model.has_hugging_face_class
