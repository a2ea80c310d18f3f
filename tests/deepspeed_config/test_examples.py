"""The examples of ``docs/ds_config.md``: accepted unchanged, and used for training on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stacking.config.reading import read_yaml_mapping
from stacking.config.recipe import recipe_from
from stacking.deepspeed_config.ds_facts import SECTION_KEYS, UNSUPPORTED, WITHOUT_EFFECT
from stacking.deepspeed_config.examination import get
from stacking.deepspeed_config.examine import examine
from stacking.hardware.machine import Machine
from stacking.hardware.presets import DEVICE_CLASSES
from stacking.planning.adopt import adopt_content
from stacking.planning.make_plan import make_plan
from stacking.planning.plan import write_plan
from tests.small_recipe import MACHINE, MANIFEST, SAMPLES, SMALL
from tests.train.ranks import run_ranks
from tools.ds_config_examples import EXAMPLES

NEED_A_PACKAGE = {"wandb", "comet"}
A100S = Machine(accelerators=2, device=DEVICE_CLASSES["a100"], memory=40 << 30, cores=8)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def content_of(section: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(EXAMPLES[section])
    return content


def test_every_section_with_an_effect_has_an_example() -> None:
    tops = {path for path in SECTION_KEYS if "." not in path and SECTION_KEYS[path]}
    assert tops - UNSUPPORTED.keys() - WITHOUT_EFFECT.keys() - NEED_A_PACKAGE <= EXAMPLES.keys()


@pytest.mark.parametrize("section", EXAMPLES)
def test_an_example_shows_its_section_and_can_be_planned_unchanged(section: str) -> None:
    content = content_of(section)
    assert not section or get(content, section) is not None
    assert not [row for row in examine(content).rows if row.refused]
    Path("small.yaml").write_text(SMALL)
    raw = read_yaml_mapping(Path("small.yaml"))
    if get(content, "optimizer.params.lr"):
        del raw["stages"][0]["learning_rate"]
    if "train_batch_size" in content:
        del raw["stages"][0]["batch_sequences"]
    recipe = recipe_from({**raw, "ds_config": content}, Path("recipe.yaml"))
    make_plan(recipe, MANIFEST, SAMPLES, A100S)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_train_with_every_example(tmp_path: Path) -> None:
    Path("small.yaml").write_text(SMALL)
    (tmp_path / "plans").mkdir()
    for section in EXAMPLES:
        result = adopt_content(content_of(section), "small.yaml", 2, MACHINE, "ds.json")  # fp16 becomes the CPU's
        for stage in result.recipe["stages"]:
            stage |= {"batch_sequences": 4, "micro_batch": 1}
        recipe = recipe_from({**result.recipe, "ds_config": result.config}, Path("recipe.yaml"))
        write_plan(tmp_path / "plans" / f"{section or 'top'}.json", make_plan(recipe, MANIFEST, SAMPLES, MACHINE))
    for printed in run_ranks(2, "tests.deepspeed_config.update_worker", [[tmp_path / "plans"]] * 2):
        ends = dict(line.split("\t") for line in printed.splitlines() if "\t" in line)
        assert ends == {section or "top": "trained" for section in EXAMPLES}
