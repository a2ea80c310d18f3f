"""A run measures its attention at every growth, resumes where it was interrupted, and trains as it would without."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.report.run import read_run
from stacking.run.folder import RunFolder
from stacking.state.format import State
from tests.attention.conftest import read_attention
from tests.chain import prepare_text, stacking, write_recipe

STAGES = [
    {"layers": 1, "steps": 3, "batch_sequences": 8, "micro_batch": 4, "learning_rate": {"peak": 1e-3}},
    {"layers": 2, "steps": 3},
]


@pytest.mark.slow
@pytest.mark.distributed(ranks=1)
def test_measuring_attention_does_not_change_the_training(tmp_path: Path) -> None:
    data = prepare_text(tmp_path)
    for name, attention in (("measured", {"samples": 16}), ("plain", None)):
        recipe = write_recipe(tmp_path, data, stages=STAGES, attention=attention, launch={"ranks": 1, "device": "cpu"})
        stacking("run", recipe, "--run-dir", tmp_path / name)
    run, plain = (RunFolder(tmp_path / name) for name in ("measured", "plain"))
    end, grown = (run.stage("1-L2").attention(moment) for moment in ("trained", "grown"))
    before = read_attention(run.stage("0-L1").attention("trained"))
    after, last = read_attention(grown), read_attention(end)
    assert [found.described.layers for found in (before, after, last)] == [1, 2, 2]
    assert after.described.samples == 16 and after.described.sequence_length == 32
    assert after.similarity.halves_cosine != last.similarity.halves_cosine
    assert before.heads.first[0] == pytest.approx(after.heads.first[0], abs=1e-6)  # the first layer's input is the same
    assert State(run.stage("1-L2").state).digest == State(plain.stage("1-L2").state).digest
    assert "2 layers, after growing" in run.report.read_text(encoding="utf-8")
    assert not list(plain.path.glob("*/attention-*"))
    _resume_makes_up_for_what_is_missing(run, end)


def _resume_makes_up_for_what_is_missing(run: RunFolder, end: Path) -> None:
    """Outputs lost at the end of the run are made again, the measurement among them, and nothing else."""
    done = len(run.journal.events())
    for path in (end, run.export):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    run.report.unlink()
    stacking("resume", run.path)
    again = [event["phase"] for event in read_run(run.path).events[done:] if event["event"] == "finished"]
    assert again == ["attention-trained", "export", "report"]
    assert read_attention(end).described.samples == 16
