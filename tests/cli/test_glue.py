"""`stacking glue`, through the command line, on a small GLUE of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stacking.cli.glue import glue
from stacking.errors import UserError
from stacking.glue.tasks import TASKS
from stacking.model.config import ModelConfig
from tests.chain import stacking
from tests.glue.small_glue import write_bert, write_diagnostic, write_glue, write_tokenizer
from tests.report.synthetic import SyntheticRun
from tests.states import random_weights, write_state

pytestmark = pytest.mark.slow
pytest.importorskip("sklearn")

FAST = ["--set", "epochs=2", "--set", "learning_rate=1e-3", "--seeds", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a Hugging Face BERT."""
    folder = tmp_path_factory.mktemp("glue")
    write_glue(folder / "data")
    write_bert(folder / "bert")
    return folder


def run(*arguments: str | Path) -> Result:
    """The command, in this process; the training has its own."""
    return CliRunner().invoke(glue, list(map(str, arguments)), catch_exceptions=False)


def refused(*arguments: str | Path) -> str:
    """The user's mistake, as the command reports it."""
    with pytest.raises(UserError) as caught:
        run(*arguments)
    return str(caught.value)


def scored(place: Path, out: str, *arguments: str | Path) -> dict[str, Any]:
    """The scores of the Hugging Face BERT."""
    options = ["--data", place / "data", "--out", place / out, *arguments]
    summary: dict[str, Any] = json.loads(run(place / "bert", *options, "--json").stdout)
    return summary


def test_an_interrupted_command_resumes_and_a_different_one_is_refused(place: Path) -> None:
    one = ["--tasks", "RTE", *FAST]
    summary = scored(place, "rte", *one)
    kept = place / "rte" / "RTE" / "seed-0.json"
    (place / "rte" / "RTE" / "seed-1.json").unlink()
    before = kept.stat().st_mtime_ns
    assert scored(place, "rte", *one) | {"tasks": 0} == summary | {"tasks": 0}
    assert kept.stat().st_mtime_ns == before
    assert (place / "rte" / "submission" / "RTE.tsv").read_text().startswith("index\tprediction\n100\t")
    again = run(place / "bert", "--data", place / "data", "--out", place / "rte", *one)
    assert "RTE: already done" in again.stderr and "average of 1" in again.stdout
    arguments = [place / "bert", "--data", place / "data", "--out", place / "rte", *one]
    assert "seed-0.json: was made with batch 16, not 8; choose another --out" in refused(*arguments, "--set", "batch=8")


def test_a_state_is_scored_and_shown_next_to_another_model(place: Path) -> None:
    scored(place, "first", "--tasks", "CoLA", *FAST)
    vocabulary = write_tokenizer(place / "tokenizer")
    shape = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "max_positions": 32}
    config = ModelConfig(variant="pre_ln", vocabulary=vocabulary, **shape)  # type: ignore[arg-type]
    state = write_state(place / "state", config, random_weights(config))
    options = ["--tokenizer", place / "tokenizer", "--tasks", "CoLA", *FAST, "--beside", place / "first"]
    done = run(state, "--data", place / "data", "--out", place / "second", *options)
    rows = [line.split()[0] for line in done.stdout.splitlines() if " dev " in line]
    assert rows[-2:] == ["bert", "state"]
    assert "inputs have at most 32 tokens: the model has no more positions" in done.stdout


def test_tasks_can_start_from_mnli(place: Path) -> None:
    diagnostic = write_diagnostic(place / "data" / "AX" / "AX.tsv")
    summary = scored(place, "mnli", "--tasks", "MNLI,RTE", "--from-mnli", "--set", "epochs=1", "--seeds", "1")
    diagnostic.unlink()
    tasks = summary["tasks"]
    assert [(task["task"], task["from_mnli"]) for task in tasks] == [("MNLI", False), ("RTE", False), ("RTE", True)]
    assert list(tasks[0]["scores"]) == ["MNLI-m", "MNLI-mm"]
    assert (place / "mnli" / "MNLI" / "encoder.safetensors").is_file()
    answers = (place / "mnli" / "submission" / "AX.tsv").read_text().splitlines()
    assert len(answers) == 5 and {line.split("\t")[1] for line in answers[1:]} <= {*TASKS["MNLI"].labels}


def test_a_run_keeps_its_scores_and_shows_them(place: Path, tmp_path: Path) -> None:
    chain = SyntheticRun(tmp_path / "run", steps=(10, 10, 10)).whole()
    options = ["--data", place / "data", "--tasks", "CoLA", *FAST]
    assert "the last stage has not ended" in refused(chain.path, *options)
    config = ModelConfig(layers=1, hidden=16, heads=2, intermediate=32, max_positions=32, vocabulary=200)
    write_state(chain.path / chain.plan.stages[-1].name / "state", config, random_weights(config))
    assert "has no tokenizer; add --tokenizer" in refused(chain.path, *options)
    run(chain.path, *options, "--tokenizer", place / "bert")
    assert (chain.path / "glue" / "glue.json").is_file()
    page = (chain.path / "report.html").read_text(encoding="utf-8")
    assert "<h2>GLUE</h2>" in page and "Matthews correlation" in page and "stacking (Gong et al., 2019)" in page


def test_mistakes_are_reported_in_one_line(place: Path) -> None:
    bert, data = place / "bert", place / "data"
    assert "--out: is missing; name a folder for the results" in refused(bert, "--data", data)
    out = ["--out", place / "wrong"]
    assert "did you mean 'MRPC'?" in refused(bert, "--data", data, *out, "--tasks", "MRCP")
    assert "--recipe: is 'paper'; choose one of original, run_glue" in refused(
        bert, "--data", data, *out, "--recipe", "paper"
    )
    assert "needs MNLI and at least one of" in refused(bert, "--data", data, *out, "--tasks", "RTE", "--from-mnli")
    assert "does not exist; give a run folder, a state" in refused(place / "nothing", "--data", data, *out)
    assert not (place / "wrong").exists()


def test_a_mistake_found_during_training_is_reported_in_one_line(place: Path) -> None:
    vocabulary = write_tokenizer(place / "tokenizer")
    config = ModelConfig(layers=1, hidden=16, heads=2, intermediate=32, max_positions=32, vocabulary=vocabulary - 1)
    state = write_state(place / "narrow", config, random_weights(config))
    options = ["--tokenizer", place / "tokenizer", "--data", place / "data", "--tasks", "CoLA", "--seeds", "1"]
    done = stacking("glue", state, *options, "--out", place / "too-many", check=False)
    assert done.returncode == 2
    progress, line = done.stderr.splitlines()
    assert progress == "CoLA: 1 run"
    problem = f"has {vocabulary} entries, but the model embeds {vocabulary - 1} tokens"
    assert line == f"stacking: {place / 'tokenizer'}: {problem}; give the tokenizer that the model was trained with"
