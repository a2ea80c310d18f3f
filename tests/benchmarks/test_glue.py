"""The GLUE benchmark: both contenders do the same work, alternately."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stacking.errors import UserError
from stacking.glue.model_source import find_model
from stacking.glue.recipes import settings
from stacking.model.config import ModelConfig
from tests.glue.small_glue import write_bert, write_glue
from tests.glue.test_encoders import some_inputs
from tests.states import SMALL, random_weights, write_state
from tools.benchmarks.glue import OURS, RUN_GLUE, GlueSpeed, _contenders, as_text
from tools.benchmarks.glue_command import bench_glue

pytest.importorskip("sklearn")


def test_both_contenders_start_as_the_same_model(tmp_path: Path) -> None:
    source = find_model(write_bert(tmp_path / "bert"))
    found = _contenders(source, settings("run_glue")["CoLA"])
    with torch.no_grad():
        ours, padded = (found[name].eval()(some_inputs()) for name in (OURS, RUN_GLUE))
    assert torch.allclose(ours, padded, atol=1e-5)


def test_contenders_alternate_and_both_scores_are_reported(tmp_path: Path) -> None:
    write_glue(tmp_path / "glue", "CoLA", "STS-B")
    model = write_bert(tmp_path / "bert")
    options = ["--updates", "2", "--repeats", "2", "--tasks", "CoLA,STS-B", "--json"]
    arguments = [str(model), "--data", str(tmp_path / "glue"), *options]
    done = CliRunner().invoke(bench_glue, arguments, catch_exceptions=False)
    turns = [line.split(": ")[1] for line in done.stderr.splitlines() if ", seed " in line]
    assert turns == [OURS, RUN_GLUE, RUN_GLUE, OURS] * 2
    cola, padded, *_ = results = [GlueSpeed(**row) for row in json.loads(done.stdout)]
    assert (cola.contender, padded.contender, padded.speedup) == (OURS, RUN_GLUE, 1.0)
    assert cola.updates == 2 and len(cola.seconds) == len(cola.scores["matthews"]) == 2
    assert len(as_text(results).splitlines()) == 5


def test_a_state_has_nothing_to_compete_with(tmp_path: Path) -> None:
    config = ModelConfig(**SMALL)
    state = write_state(tmp_path / "state", config, random_weights(config))
    with pytest.raises(UserError, match="is not a Hugging Face folder, which transformers could load; export it first"):
        CliRunner().invoke(bench_glue, [str(state), "--data", "x"], catch_exceptions=False)
