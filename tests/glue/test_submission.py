from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stacking.errors import DamagedFile
from stacking.glue.results import (
    Results,
    answer,
    predictions_file,
    read_result,
    result_file,
    write_predictions,
    write_result,
    write_submission,
)
from stacking.glue.source import open_source
from stacking.glue.tasks import TASKS
from tests.glue.results import result
from tests.glue.small_glue import write_glue

RTE, MNLI = TASKS["RTE"], TASKS["MNLI"]


def finished(folder: Path, *accuracies: float) -> Results:
    """Runs on RTE, each of which predicts its own seed for all five test examples."""
    results = Results(folder)
    place = results.place(RTE)
    place.mkdir(parents=True)
    for seed, accuracy in enumerate(accuracies):
        write_result(place, result("RTE", seed, {"RTE": {"accuracy": accuracy}}))
        write_predictions(predictions_file(place, seed, "RTE"), np.full(5, float(seed)))
    return results


def test_the_best_seed_is_submitted_with_the_servers_labels(tmp_path: Path) -> None:
    source = open_source(str(write_glue(tmp_path / "glue", "RTE")))
    (path,) = write_submission(finished(tmp_path / "out", 0.6, 0.7, 0.8), RTE, source, seeds=range(2))
    assert path == tmp_path / "out" / "submission" / "RTE.tsv"
    lines = path.read_text().splitlines()
    assert lines == ["index\tprediction", *(f"{number}\tnot_entailment" for number in range(100, 105))]


@pytest.mark.parametrize(
    ("task", "value", "expected"),
    [
        ("MNLI", 2.0, "contradiction"),
        ("CoLA", 1.0, "1"),
        ("STS-B", 3.14159, "3.142"),
        ("STS-B", 5.4, "5.000"),
        ("STS-B", -0.1, "0.000"),
        ("STS-B", float("nan"), "0.000"),
    ],
)
def test_answers_are_spelled_as_in_the_training_files(task: str, value: float, expected: str) -> None:
    assert answer(TASKS[task], value) == expected


def test_submission_files_have_the_benchmarks_names() -> None:
    names = [held.name for task in TASKS.values() for held in task.held]
    assert names == ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI"]


def test_without_test_sets_nothing_is_written(tmp_path: Path) -> None:
    (write_glue(tmp_path / "glue", "RTE") / "RTE" / "test.tsv").unlink()
    assert write_submission(finished(tmp_path / "out", 0.6), RTE, open_source(str(tmp_path / "glue")), [0]) == []
    assert not (tmp_path / "out" / "submission").exists()


def test_predictions_for_another_test_set_are_refused(tmp_path: Path) -> None:
    results = finished(tmp_path / "out", 0.6)
    path = write_glue(tmp_path / "glue", "RTE") / "RTE" / "test.tsv"
    path.write_text(path.read_text() + "105\ta\tb\n")
    with pytest.raises(DamagedFile, match=r"seed-0.RTE.npy: has 5 predictions for 6 test examples; remove seed-0.json"):
        write_submission(results, RTE, open_source(str(tmp_path / "glue")), [0])


def test_a_changed_result_is_refused(tmp_path: Path) -> None:
    path = result_file(finished(tmp_path / "out", 0.6).place(RTE), 0)
    assert read_result(path).scores == {"RTE": {"accuracy": 0.6}}
    path.write_text(path.read_text().replace("0.6", "0.8"))
    with pytest.raises(DamagedFile, match=r"seed-0\.json"):
        read_result(path)
