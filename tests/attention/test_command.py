"""`stacking attention`: what it writes, from every kind of model, and what it refuses in one line."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from stacking.attention.command import AttentionRequest, write_attention
from stacking.attention.measure import measure, shown
from stacking.attention.text import HeldOutText
from stacking.cli.main import cli
from stacking.data.prepare import prepare
from stacking.errors import UserError
from tests.attention.conftest import POST_LN, PRE_LN, read_attention
from tests.data.conftest import write_corpus, write_numbers
from tests.states import random_weights, write_state

PICTURES = {
    f"{name}.{suffix}" for name in ("heads", "positions", "similarity", "sentence") for suffix in ("svg", "pdf", "png")
}


class EvenProbe:
    """Stands in for a model: every token attends uniformly to all real ones."""

    layers, heads, vocabulary, longest, padding_id = 2, 2, 300, 40, 0

    def attend(self, input_ids: Any, segment_ids: Any, mask: Any) -> Any:
        share = (mask / mask.sum(1, keepdims=True)).astype(np.float32)
        shape = (2, len(mask), 2, mask.shape[1], mask.shape[1])
        return np.broadcast_to(share[None, :, None, None, :], shape).copy()


def wanted(data: Path, **changes: Any) -> AttentionRequest:
    return AttentionRequest(**{"data": data, "sequence_length": 32, "samples": 20, **changes})


def test_numbers_pictures_and_page_are_written(state: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = write_attention(state, out, wanted(data))
    assert {path.name for path in out.iterdir()} == PICTURES | {"attention.json", "attention.html", "manifest.json"}
    assert read_attention(out) == written
    assert (written.described.layers, written.described.heads, written.described.samples) == (4, 4, 20)
    assert written.described.model == str(state) and written.described.text == str(data)


def test_an_export_and_its_state_give_the_same_numbers(state: Path, exported: Path, data: Path, tmp_path: Path) -> None:
    ours = write_attention(state, tmp_path / "ours", wanted(data))
    theirs = write_attention(exported, tmp_path / "theirs", wanted(data))
    for name in ("first", "separators", "itself", "entropy", "by_position"):
        assert np.allclose(getattr(ours.heads, name), getattr(theirs.heads, name), atol=1e-5), name
    assert np.allclose(ours.similarity.cosine, theirs.similarity.cosine, atol=1e-5)
    assert ours.even == theirs.even


def test_uniform_attention_is_measured_as_the_reference_that_is_written(data: Path) -> None:
    text = HeldOutText(data, "segment-pair", 32, seed=0)
    attention = measure(EvenProbe(), "even", text, 30, 32, 8, lambda done: None)
    for name in ("first", "separators", "itself", "entropy", "by_position"):
        assert np.allclose(getattr(attention.heads, name)[1][0], getattr(attention.even, name), rtol=1e-5), name


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    prepare(
        [str(write_corpus(tmp_path / "text", documents=200))],
        tmp_path / "data",
        vocabulary_size=300,
        held_out=0.5,
        workers=1,
    )
    text = HeldOutText(tmp_path / "data", "segment-pair", 32, seed=0)
    few, many = (peak(text, samples) for samples in (64, 512))
    assert many < 1.05 * few


def peak(text: HeldOutText, samples: int) -> int:
    tracemalloc.start()
    attention = measure(EvenProbe(), "even", text, samples, 32, 8, lambda done: None)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert attention.described.samples == samples
    return highest


def test_a_sentence_given_by_the_user_is_shown(data: Path) -> None:
    (example,) = shown(EvenProbe(), HeldOutText(data, "segment-pair", 32, seed=0), ["The."], 3)
    n = len(example.words)
    assert example.words[0] == "[CLS]" and example.probabilities.shape == (2, 2, n, n)
    assert (example.probabilities == round(255 / n)).all()


def refused(tmp_path: Path, *arguments: str | Path) -> str:
    """The one line with which the command refuses; nothing is left behind."""
    out = tmp_path / "refused"
    done = CliRunner().invoke(cli, ["attention", *map(str, arguments), "--out", str(out)])
    assert isinstance(done.exception, UserError), done.output
    assert done.exception.exit_code == 2 and not out.exists() and "\n" not in str(done.exception)
    return str(done.exception)


def test_a_missing_model_or_text_is_refused(state: Path, data: Path, tmp_path: Path) -> None:
    assert "is not a folder" in refused(tmp_path, tmp_path / "nowhere", "--data", data)
    assert refused(tmp_path, state).startswith("--data: is missing; give the prepared data")
    assert "is not a prepared data folder" in refused(tmp_path, state, "--data", tmp_path)
    numbers = write_numbers(tmp_path / "numbers")
    assert "splits.held_out: has no held-out text" in refused(tmp_path, state, "--data", numbers)


def test_options_without_effect_are_refused(state: Path, data: Path, tmp_path: Path) -> None:
    assert refused(tmp_path, state, "--data", data, "--text", data).startswith("--text: is given beside --data")
    assert refused(tmp_path, state, "--data", data, "--tokenizer", data).startswith("--tokenizer: has no effect")
    assert refused(tmp_path, state, "--text", data, "--kind", "packed").startswith("--kind: has no effect")
    assert "use one of sentence-pair" in refused(tmp_path, state, "--data", data, "--kind", "pairs")
    (tmp_path / "text").write_text("Words.")
    assert refused(tmp_path, state, "--text", tmp_path / "text").startswith("--tokenizer: is missing")


def test_sequences_longer_than_the_model_are_refused(state: Path, data: Path, tmp_path: Path) -> None:
    line = refused(tmp_path, state, "--data", data, "--sequence-length", "64")
    assert line == "--sequence-length: 64 tokens are more than the model's 40 positions; use 40 or less"
    long = refused(tmp_path, state, "--data", data, "--sentence", "word " * 50)
    assert long.startswith("--sentence: is ") and "40 positions" in long


def test_a_vocabulary_that_does_not_fit_is_refused(exported: Path, data: Path, tmp_path: Path) -> None:
    small = POST_LN.model_copy(update={"vocabulary": 50})
    state = write_state(tmp_path / "small", small, random_weights(small))
    assert "but the model embeds 50 tokens" in refused(tmp_path, state, "--data", data)
    prepare([str(write_corpus(tmp_path / "t", seed=9))], tmp_path / "d", vocabulary_size=120, held_out=0.2, workers=1)
    line = refused(tmp_path, exported, "--data", tmp_path / "d")
    assert re.search(r"has a different vocabulary from .*: \d+ of \d+ entries agree", line)


def test_values_that_are_not_finite_are_refused(data: Path, tmp_path: Path) -> None:
    weights = random_weights(PRE_LN)
    weights["layers.1.attention.qkv.weight"][0, 0] = float("nan")
    state = write_state(tmp_path / "state", PRE_LN, weights)
    assert "adds up to nan" in refused(tmp_path, state, "--data", data)


def test_nothing_is_overwritten(state: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    done = CliRunner().invoke(cli, ["attention", str(state), "--data", str(data), "--out", str(tmp_path / "kept")])
    assert isinstance(done.exception, UserError) and "already exists" in str(done.exception)


def test_the_command_prints_one_line_per_layer(state: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["attention", state, "--data", data, "--out", tmp_path / "out", "--samples", 8, "--window", 4]
    done = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    lines = done.output.splitlines()
    assert lines[0].split("  ")[0] == "layer" and "like layer + 2" in lines[0]
    assert [line.split()[0] for line in lines[2:7]] == ["1", "2", "3", "4", "even"]
    content = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert content["described"]["window"] == 4 and len(content["heads"]["by_position"][0][0]) == 9
