"""`stacking glue --submit`: a SLURM job per task, each submitted once."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from stacking.cli.glue import glue
from stacking.errors import UserError
from stacking.glue.command import Request, _digest, arguments, jobs_of
from stacking.glue.model_source import find_model
from stacking.glue.results import Results, predictions_file, write_predictions, write_result
from stacking.glue.source import hidden_sets, open_source
from stacking.glue.tasks import TASKS, chosen
from stacking.slurm.script import title
from tests.glue.results import result
from tests.glue.small_glue import write_bert, write_glue
from tests.slurm.fake_slurm import FakeSlurm, slurm

__all__ = ["slurm"]

REQUEST = Request(
    model=Path("bert"),
    data="nyu-mll/glue",
    out=Path("scores"),
    tasks=("RTE",),
    recipe="run_glue",
    changes=("batch=8", "CoLA.epochs=2"),
    seeds=2,
    from_mnli=False,
    tokenizer=Path("words"),
)


@pytest.fixture
def place(tmp_path: Path, slurm: FakeSlurm) -> Path:
    """A model, data, a site file, and a SLURM that accepts every job and has none in its queue."""
    pytest.importorskip("sklearn")
    write_bert(tmp_path / "bert")
    write_glue(tmp_path / "data", "CoLA", "RTE")
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"partition": "p40", "gpu_option": "--gres=gpu:p40:{gpus}"}))
    slurm.answers("squeue")
    slurm.answers("sbatch", stdout="77\n")
    return tmp_path


def submit(place: Path, *options: str) -> str:
    """The command's output; it runs in this process."""
    arguments = [
        place / "bert",
        "--data",
        place / "data",
        "--out",
        place / "out",
        "--tasks",
        "CoLA,RTE",
        "--seeds",
        "2",
    ]
    arguments += ["--submit", "--site", place / "site.yaml", *options]
    return CliRunner().invoke(glue, list(map(str, arguments)), catch_exceptions=False, standalone_mode=False).stderr


def submitted(slurm: FakeSlurm) -> list[str]:
    """The names of the scripts submitted to SLURM, without those that it only checked."""
    calls = [call for call in slurm.calls() if call[0] == "sbatch" and "--test-only" not in call]
    assert not any("--hold" in call for call in calls)
    return [Path(call[-1]).stem for call in calls]


def finish(place: Path, task: str, seeds: int) -> None:
    """Leaves the files that the job of a task would leave."""
    source, results = open_source(str(place / "data")), Results(place / "out")
    digests = {"model": find_model(place / "bert").digest, "data": _digest(source, TASKS[task])}
    folder = results.place(TASKS[task])
    folder.mkdir()
    for seed in range(seeds):
        scores = {task: dict.fromkeys(TASKS[task].metrics, 0.5)}
        write_result(folder, result(task, seed, scores).model_copy(update=digests))
        for name, examples in hidden_sets(source, TASKS[task]).items():
            write_predictions(predictions_file(folder, seed, name), np.zeros(len(examples)))


def test_every_task_is_a_job_and_missing_ones_are_submitted_again(place: Path, slurm: FakeSlurm) -> None:
    said = submit(place)
    assert submitted(slurm) == ["CoLA", "RTE"]
    assert "CoLA: job 77 submitted" in said and "RTE: 0 of 2 runs finished" in said
    row = "|".join(
        ["9", "RUNNING", "p40", "n1", "0:10", "N/A", "None", title(place / "out", "RTE"), str(place / "out")]
    )
    slurm.answers("squeue", stdout=f"{row}\n")
    finish(place, "CoLA", 2)
    said = submit(place)
    assert submitted(slurm) == ["CoLA", "RTE"], "one is finished, the other is running"
    assert "RTE: job 9 is running" in said and "CoLA: 2 of 2 runs finished" in said
    assert (place / "out" / "submission" / "CoLA.tsv").is_file()
    slurm.answers("squeue")
    finish(place, "RTE", 1)
    assert "RTE: 1 of 2 runs finished" in submit(place)
    assert submitted(slurm) == ["CoLA", "RTE", "RTE"]


def test_a_job_requests_the_site_files_resources_for_one_rank(place: Path, slurm: FakeSlurm) -> None:
    submit(place)
    lines = (place / "out" / "slurm" / "RTE.sbatch").read_text().splitlines()
    asked = ["partition=p40", "gres=gpu:p40:1", "nodes=1", "ntasks=1", "cpus-per-task=1", "requeue"]
    assert {f"#SBATCH --{option}" for option in asked} <= set(lines)
    command = shlex.split(lines[-1])
    assert command[0] == "exec" and command[2:5] == ["-m", "stacking", "glue"]


def test_a_job_can_run_in_a_container_and_without_gpus(place: Path) -> None:
    site = {"container": ["echo", "$HOME/bert"], "container_python": "/opt/python", "gpu_option": "none"}
    (place / "site.yaml").write_text(yaml.safe_dump({**site, "python": "/bin/true", "requeue": False}))
    with pytest.raises(UserError, match=r"container\[0\] is echo, which is not a program|container\[0\]: is echo"):
        submit(place)
    site["container"] = ["/bin/echo", "$HOME/bert"]
    (place / "site.yaml").write_text(yaml.safe_dump({**site, "requeue": False}))
    submit(place)
    text = (place / "out" / "slurm" / "RTE.sbatch").read_text()
    assert "gres" not in text and "#SBATCH --no-requeue" in text
    assert 'exec "/bin/echo" "' in text and '/bert" /opt/python -m stacking glue ' in text


def test_a_job_that_slurm_rejects_is_named_and_none_is_submitted(place: Path, slurm: FakeSlurm) -> None:
    slurm.answers("sbatch", stderr="sbatch: error: invalid partition specified: p40", code=1)
    with pytest.raises(UserError, match=r"site\.yaml: job CoLA: sbatch says: invalid partition .*; correct it"):
        submit(place)
    assert submitted(slurm) == []


def test_a_job_runs_what_the_user_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    _, *options = arguments(REQUEST, [TASKS["RTE"]])
    monkeypatch.chdir("/")
    found = glue.make_context("glue", options).params
    assert (found["data"], found["tasks"], found["recipe"], found["seeds"]) == ("nyu-mll/glue", "RTE", "run_glue", 2)
    assert found["changes"] == REQUEST.changes and not found["from_mnli"] and not found["submit"]
    paths = [found[name].absolute() for name in ("model", "out", "tokenizer")]
    assert paths == [tmp_path / "bert", tmp_path / "scores", tmp_path / "words"]


def test_tasks_that_start_from_mnli_run_in_its_job() -> None:
    request, tasks = replace(REQUEST, from_mnli=True), chosen(["CoLA", "MRPC", "MNLI", "RTE"])
    jobs = jobs_of(request, tasks)
    assert {name: [task.name for task in group] for name, group in jobs.items()} == {
        "CoLA": ["CoLA"],
        "MNLI": ["MNLI", "MRPC", "RTE"],
    }
    assert "--from-mnli" in arguments(request, jobs["MNLI"]) and "--from-mnli" not in arguments(request, jobs["CoLA"])
    assert list(jobs_of(REQUEST, tasks)) == ["CoLA", "MRPC", "MNLI", "RTE"]
