"""The data benchmark: it measures what it claims, and prints the results in two formats."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from stacking.data import vocabulary
from stacking.data.prepare import prepare
from stacking.data.sampler import SAMPLERS
from stacking.errors import UserError
from tests.data.conftest import write_corpus
from tools.benchmarks import data as module
from tools.benchmarks.data import BARE, DATASETS, OURS, bench_data, race, read_texts
from tools.benchmarks.data_command import bench_data as command_line


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAWING_SECONDS", 0.001)
    monkeypatch.setattr(module, "VOCABULARY", 300)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "text")


def test_all_contenders_do_the_same_work(tmp_path: Path, text: Path) -> None:
    texts = read_texts([str(text)], 10**6)
    tokenizer = vocabulary.train(texts, 300, lowercase=True)
    vocabulary.save(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    results = race(texts, tmp_path / "text.jsonl", tmp_path / "tokenizer", repeats=3)
    tokens = sum(len(each.ids) for each in tokenizer.encode_batch(texts, add_special_tokens=False))
    assert [result.name for result in results] == [OURS, BARE, DATASETS]
    for result in results:
        assert len(result.seconds) == 3
        assert result.tokens_per_second * sorted(result.seconds)[1] == pytest.approx(tokens)
        assert result.characters_per_second * sorted(result.seconds)[1] == pytest.approx(sum(map(len, texts)))
    assert results[1].time_against_tokenizer == 1


def test_the_tokenizer_runs_single_threaded_and_its_setting_is_restored(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[str | None] = []
    encode = module._encode_batch

    def recorded(texts: list[str], tokenizer: Path) -> int:
        settings.append(os.environ.get("TOKENIZERS_PARALLELISM"))
        return encode(texts, tokenizer)

    monkeypatch.setattr(module, "_encode_batch", recorded)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    bench_data([str(text)], None, 10**6, 2, tmp_path)
    assert settings == ["false", "false"] and os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_every_kind_length_and_batch_is_drawn(tmp_path: Path, text: Path) -> None:
    data = prepare([str(text)], tmp_path / "data", vocabulary_size=250, workers=1).folder
    result = bench_data([str(text)], data, 10**6, 1, tmp_path)
    wanted = [(k, n, b) for k in SAMPLERS for n in module.LENGTHS for b in module.BATCHES]
    assert [(row.kind, row.sequence_length, row.batch) for row in result.drawing] == wanted
    assert all(row.tokens_per_second > 0 and 0 <= row.padding < 1 for row in result.drawing)
    used, given = (path / "vocab.txt" for path in (tmp_path / "tokenizer", data))
    assert used.read_text() == given.read_text()


def test_the_command_prints_tables_and_json(text: Path) -> None:
    command = [str(text), "--characters", "20000", "--repeats", "1"]
    shown = CliRunner().invoke(command_line, command)
    assert shown.exit_code == 0, shown.output
    assert all(name in shown.output for name in (OURS, BARE, DATASETS, *SAMPLERS))
    printed = CliRunner().invoke(command_line, [*command, "--json"])
    document = json.loads(printed.stdout)
    assert document["kind"] == "bench-data" and document["characters"] >= 20000
    assert len(document["drawing"]) == len(SAMPLERS) * len(module.LENGTHS) * len(module.BATCHES)


def test_missing_text_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        bench_data(["nowhere"], None, 1000, 1, tmp_path)
    (tmp_path / "one.txt").write_text("A single document.")
    with pytest.raises(UserError, match="gives 1 documents and a split needs two"):
        bench_data([str(tmp_path / "one.txt")], None, 1000, 1, tmp_path)
