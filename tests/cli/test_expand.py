"""`stacking expand`: a pretrained Hugging Face BERT becomes deeper, in one command."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from stacking.run.journal import Journal
from tests.chain import prepare_text, stacking, start
from tests.states import random_weights, write_state

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from stacking.model.config import ModelConfig  # noqa: E402

SETTINGS = [
    "--steps", "4", "--batch-sequences", "8", "--learning-rate", "1e-3", "--set", "launch.ranks=2",
    "--set", "launch.accelerator=cpu", "--set", "precision=fp32", "--set", "data.sequence_length=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def pretrained(data: Path) -> Path:
    """A BERT of two layers, as a user would download it."""
    vocabulary = json.loads((data / "manifest.json").read_text())["vocabulary"]
    model = ModelConfig(layers=2, hidden=32, heads=2, intermediate=64, vocabulary=vocabulary, max_positions=64)
    write_state(data.parent / "state", model, random_weights(model))
    stacking("export", data.parent / "state", "--data", data, "--out", data.parent / "bert")
    return data.parent / "bert"


@pytest.fixture(scope="module")
def expanded(pretrained: Path, data: Path) -> Path:
    run = data.parent / "expanded"
    done = stacking("expand", pretrained, "--layers", "3", "--data", data, "--run-dir", run, *SETTINGS)
    assert f"the expanded model is in {run / 'export'}" in done.stdout
    assert "block-expansion, moments reset, new layers alone for 2 steps" in " ".join(done.stdout.split())
    return run


def test_the_result_is_a_deeper_model_for_transformers(expanded: Path, pretrained: Path) -> None:
    before = transformers.BertForPreTraining.from_pretrained(pretrained)
    after = transformers.BertForPreTraining.from_pretrained(expanded / "export")

    assert len(before.bert.encoder.layer) == 2 and len(after.bert.encoder.layer) == 3
    for old, new in ((0, 0), (1, 1)):  # its own layers have moved a little, and the new one is no longer silent
        one, other = (m.bert.encoder.layer[i].intermediate.dense.weight for m, i in ((before, old), (after, new)))
        assert 0 < (one - other).abs().max() < 0.01
    assert after.bert.encoder.layer[2].output.dense.weight.abs().max() > 0
    assert (expanded / "export" / "tokenizer.json").exists() and (expanded / "recipe.yaml").exists()


def test_an_interrupted_expansion_is_resumed_to_the_same_bits(expanded: Path, pretrained: Path, data: Path) -> None:
    run = data.parent / "interrupted"
    process = start("expand", pretrained, "--layers", "3", "--data", data, "--run-dir", run, *SETTINGS)
    while process.poll() is None and not list(run.glob("0-L3/checkpoints/global_step*")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (run / "export").exists()

    stacking("resume", run)

    model = "export/model.safetensors"
    assert (run / model).read_bytes() == (expanded / model).read_bytes()
    assert any(event["event"] == "resumed" for event in Journal(run / "journal.jsonl").events())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "--layers: is missing; give one of them"),
        (["--layers", "3", "--layers-from", "0,1"], "--layers: cannot be used with --layers-from"),
        (["--layers", "1"], "stages[0].layers: is 1 after 2; layers can only grow"),
        (["--layers", "2"], "stages[0].growth.new_layers: has no effect: the stage keeps its 2 layers"),
        (["--layers-from", "0,2"], "layers_from: layer 2 does not exist"),
        (["--layers", "3", "--operator", "blok"], 'stages[0].growth.operator: is "blok"; choose one of stack,'),
        (["--layers", "3", "--alone-steps", "5"], "alone_steps: is 5, but stages[0] has 4 steps; give fewer"),
        (["--layers", "3", "--learning-rate", "0"], "learning_rate.peak"),
    ],
)
def test_mistakes_are_named(pretrained: Path, data: Path, tmp_path: Path, changes: list[str], message: str) -> None:
    run = tmp_path / "run"
    done = stacking("expand", pretrained, "--data", data, "--run-dir", run, *SETTINGS, *changes, check=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not run.exists()


def test_a_folder_that_already_holds_a_run_is_not_reused(expanded: Path, pretrained: Path, data: Path) -> None:
    done = stacking(
        "expand", pretrained, "--layers", "3", "--data", data, "--run-dir", expanded, *SETTINGS, check=False
    )
    assert done.returncode == 2 and f"run `stacking resume {expanded}` to continue it" in done.stderr
