"""`stacking tune` on the command line: mistakes give one line; a real tiny tuning resumes and its recipe runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.chain import prepare_text, stacking, write_recipe

RECIPE = """\
model: {hidden: 32, heads: 2, max_positions: 64}
data: {sequence_length: 32}
stages:
  - {layers: 1, steps: 3, batch_sequences: 8, micro_batch: 2, learning_rate: {peak: 1e-3}}
launch: {ranks: 2, accelerator: cpu}
precision: fp32
"""

MISTAKES = {
    "no folder": (["{recipe}"], "Missing option '--out'"),
    "an unknown recipe": (["dmeo", "--out", "{out}"], "did you mean 'demo'?"),
    "a recipe that is wrong": (
        ["{recipe}", "--out", "{out}", "--set", "stages[0].batch_sequences=7"],
        "stages[0].batch_sequences: is 7, not a multiple of 2 ranks",
    ),
    "no time": (["{recipe}", "--out", "{out}", "--budget-minutes", "0"], "--budget-minutes: is 0; give a number"),
    "endless time": (["{recipe}", "--out", "{out}", "--budget-minutes", "inf"], "--budget-minutes: is inf"),
    "no trials": (["{recipe}", "--out", "{out}", "--trials", "0"], "--trials: is 0; give at least 1"),
    "a stage that is not there": (["{recipe}", "--out", "{out}", "--stages", "0,3"], "--stages: there is no stage 3"),
    "stages that are no numbers": (["{recipe}", "--out", "{out}", "--stages", "first"], "--stages: is 'first'; give"),
    "a folder of other things": (["{recipe}", "--out", "{full}"], "is not empty (it holds 'thesis.tex')"),
    "a folder below a file": (["{recipe}", "--out", "{full}/thesis.tex/out"], "is a file, or is inside one"),
    "a place where nothing can be": (["{recipe}", "--out", "/proc/out"], "/proc/out"),
    "data that are not prepared": (["{recipe}", "--out", "{out}", "--data", "{full}"], "is not a prepared data"),
    "SLURM outside of a job": (["{recipe}", "--out", "{out}", "--launcher", "slurm"], "works only inside a SLURM job"),
    "an unknown launcher": (["{recipe}", "--out", "{out}", "--launcher", "pdsh"], "'pdsh' is not one of"),
    "more GPUs than there are": (
        ["{recipe}", "--out", "{out}", "--set", "launch={{ranks: 2, accelerator: cuda, device: a100}}"],
        "is planned for 2 ranks, but there is room for 0",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_line_and_exit_code_2(tmp_path: Path, mistake: str) -> None:
    arguments, words = MISTAKES[mistake]
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    places = {"recipe": tmp_path / "recipe.yaml", "out": tmp_path / "out", "full": tmp_path / "full"}
    done = stacking("tune", *(argument.format(**places) for argument in arguments), check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and words in done.stderr
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE)
    out.mkdir()
    subject = {"kind": "tune", "format": 1, "subject": {"stages[0].batch": 16}}
    (out / "tune.json").write_text(json.dumps(subject))
    done = stacking("tune", recipe, "--out", out, check=False)
    assert done.returncode == 2 and "holds trials of another recipe" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.distributed
def test_tuning_with_real_ranks_resumes_and_its_recipe_runs(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, prepare_text(tmp_path))
    content = yaml.safe_load(recipe.read_text())
    content["stages"] = content["stages"][:1]
    recipe.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"

    first = stacking("tune", recipe, "--out", out, "--trials", "1")
    assert "micro-batch 2, ZeRO 2: " in first.stderr and "0-L1.json" in first.stdout
    again = stacking("tune", recipe, "--out", out, "--trials", "2", "--json")
    assert "from an earlier run" in again.stderr.splitlines()[0]
    (stage,) = json.loads(again.stdout)["stages"]
    assert [tried["candidate"]["micro_batch"] for tried in stage["tried"]] == [2, 4]
    assert all(tried["result"] == "measured" and tried["tokens_per_second"] > 0 for tried in stage["tried"])
    assert len(stage["final_ratios"]) in (1, 3) and not stage["complete"]

    config = json.loads((out / "0-L1.json").read_text())
    batch = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2
    assert batch == config["train_batch_size"] == 8
    assert {"tune.md", "search.png", "recipe.tuned.yaml"} <= {path.name for path in out.iterdir()}
    done = stacking("run", out / "recipe.tuned.yaml", "--run-dir", tmp_path / "run")
    assert "L1" in done.stdout and (tmp_path / "run" / "export").is_dir()
