"""Preparing data: the same bytes every time, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from stacking.data import prepare as module
from stacking.data import shards
from stacking.data.corpus import Corpus
from stacking.data.prepare import Prepared, prepare
from stacking.data.sentences import split_sentences
from stacking.data.workers import worker_processes
from stacking.errors import UserError
from stacking.storage.files import verify_folder
from tests.data.conftest import prose, write_corpus

PART = 1500


def run(inputs: list[Path | str], out: Path, **options: Any) -> Prepared:
    settings = {"vocabulary_size": 300, "held_out": 0.1, "workers": 1} | options
    return prepare([str(each) for each in inputs], out, **settings)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tokens_are_those_of_the_sentences(tmp_path: Path) -> None:
    long = " ".join(["word"] * 600) + "."
    texts = {"a.txt": "One two. Three [SEP] four.\n\nFive.", "b.txt": long, "c.txt": prose(1, 30)}
    (tmp_path / "text").mkdir()
    for name, text in texts.items():
        (tmp_path / "text" / name).write_text(text)
    run([tmp_path / "text"], tmp_path / "out", held_out=0.01)
    tokenizer = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    expected = {
        tuple(ids[start : start + 256])
        for text in texts.values()
        for sentence in split_sentences(text)
        for ids in [tokenizer.encode(sentence, add_special_tokens=False).ids]
        for start in range(0, len(ids), 256)
    }
    found = set()
    for split in ("train", "held_out"):
        corpus = Corpus(tmp_path / "out", split)
        starts = corpus.sentence_start(np.arange(corpus.sentences + 1))
        found |= {tuple(corpus.take(np.arange(*span)).tolist()) for span in pairwise(starts)}
        assert not {0, 2, 4} & set(corpus.take(np.arange(corpus.tokens)).tolist())
    assert found == expected


def test_the_number_of_workers_changes_nothing(
    tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_CHARACTERS", PART)
    for workers in (1, 2):
        run([text_folder], tmp_path / str(workers), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert verify_folder(tmp_path / "1")["digest"] == verify_folder(tmp_path / "2")["digest"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


KILLED = """
import sys, time, pathlib
from stacking.data import prepare as module
write = module.write_part
def slowly(*arguments):
    write(*arguments); time.sleep(0.15)
module.write_part, module.PART_CHARACTERS = slowly, int(sys.argv[3])
module.prepare([sys.argv[1]], pathlib.Path(sys.argv[2]), vocabulary_size=300, held_out=0.1, workers=1)
"""


def test_a_killed_run_is_taken_up_where_it_was(
    tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, parts = tmp_path / "out", tmp_path / ".out.partial" / "parts"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(text_folder), str(out), str(PART)])
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.npz"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(parts.glob("*.npz")))
    assert done >= 3 and not out.exists()

    written: list[Path] = []
    trained: list[int] = []
    monkeypatch.setattr(module, "PART_CHARACTERS", PART)
    monkeypatch.setattr(module, "write_part", _recorded(shards.write_part, written))
    monkeypatch.setattr(module.vocabulary, "train", _recorded(module.vocabulary.train, trained))
    run([text_folder], out)
    resumed = len(written)
    assert not trained
    run([text_folder], tmp_path / "clean")
    assert len(written) - resumed == resumed + done
    assert content(out) == content(tmp_path / "clean")
    assert not (tmp_path / ".out.partial").exists()


def _recorded(function: Any, calls: list[Any]) -> Any:
    def call(*arguments: Any) -> Any:
        calls.append(arguments[-1])
        return function(*arguments)

    return call


def sleep_and_tell(_: int) -> str:
    time.sleep(0.2)
    return Path("/proc/self/status").read_text()


def test_ctrl_c_is_for_the_parent_alone() -> None:
    with worker_processes(2) as processes:
        for status in processes.map(sleep_and_tell, range(3)):
            blocked = int(status.split("SigBlk:")[1].split()[0], 16)
            assert blocked >> (signal.SIGINT - 1) & 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_a_torn_part_is_made_again(tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "merge_parts", fail)
        with pytest.raises(KeyboardInterrupt):
            run([text_folder], tmp_path / "out")
    part = next((tmp_path / ".out.partial/parts").glob("*.npz"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    run([text_folder], tmp_path / "out")
    run([text_folder], tmp_path / "clean")
    assert content(tmp_path / "out") == content(tmp_path / "clean")


def test_preparing_again_finds_the_same_and_refuses_another(tmp_path: Path) -> None:
    texts = write_corpus(tmp_path / "text", documents=8)
    out = tmp_path / "out"
    assert not run([texts], out).already_there
    before = content(out)
    assert run([texts], out).already_there
    with pytest.raises(UserError, match="was prepared with another vocabulary_size"):
        run([texts], out, vocabulary_size=301)
    (texts / "more.txt").write_text("One more text.")
    with pytest.raises(UserError, match="was prepared from other text"):
        run([texts], out)
    assert content(out) == before and sorted(path.name for path in tmp_path.iterdir()) == ["out", "text"]


def test_held_out_documents_are_chosen_by_content(tmp_path: Path, text_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join('{"text": "The same text. Twice."}\n' for _ in range(5)))
    (tmp_path / "b.txt").write_text("Another text. It is here once.")
    manifest = run([tmp_path / "a.jsonl", tmp_path / "b.txt"], tmp_path / "out", held_out=0.5).manifest
    assert sorted(split["documents"] for split in manifest["splits"].values()) == [1, 5]


def test_held_out_inputs_are_the_held_out_split(tmp_path: Path, text_folder: Path) -> None:
    held_out = write_corpus(tmp_path / "held out", documents=5, seed=7)
    manifest = run([text_folder], tmp_path / "out", held_out_inputs=[str(held_out)]).manifest
    assert {split: counts["documents"] for split, counts in manifest["splits"].items()} == {"train": 40, "held_out": 5}


def test_an_existing_tokenizer_is_taken_as_it_is(tmp_path: Path, text_folder: Path, data_folder: Path) -> None:
    manifest = run([text_folder], tmp_path / "out", tokenizer=data_folder / "vocab.txt").manifest
    assert (tmp_path / "out/vocab.txt").read_bytes() == (data_folder / "vocab.txt").read_bytes()
    assert content(tmp_path / "out/train") == content(data_folder / "train")
    assert manifest["vocabulary"] == Corpus(data_folder).vocabulary


def test_embedded_corpus_can_be_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stacking.data import embedded

    monkeypatch.setattr(embedded, "PACKAGES", ())
    monkeypatch.setattr(embedded, "LIMIT", 200_000)
    first = run([], tmp_path / "out", embedded=True, vocabulary_size=1000)
    assert first.manifest["splits"]["train"]["tokens"] > 20_000
    assert first.manifest["source"][0]["input"] == "embedded"
    assert run([], tmp_path / "out", embedded=True, vocabulary_size=1000).already_there


def test_a_dataset_name_streams_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"text": prose(seed, 6)} for seed in range(10)]
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> list[dict[str, str]]:
        asked.append((arguments, options))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    manifest = run(["owner/name:plain"], tmp_path / "out").manifest
    assert sum(split["documents"] for split in manifest["splits"].values()) == 10
    assert asked == [(("owner/name", "plain"), {"split": "train", "streaming": True})]
    assert run(["owner/name:plain"], tmp_path / "out").already_there and len(asked) == 1


def test_a_dataset_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network\nand more lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="neither a path here nor a dataset that can be read") as caught:
        run(["owner/name"], tmp_path / "out")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        (None, {}, "does not exist"),
        ("", {}, "holds no text"),
        ("", {"workers": 2}, "holds no text"),
        ("Only one document.", {"workers": 2}, "single document"),
        (" \n\n ", {}, "holds no text"),
        ("Only one document.", {}, "single document"),
        ("A text.", {"vocabulary_size": 10}, "--vocabulary-size: 10 is out of range"),
        ("A text.", {"held_out": 0.0}, "--held-out: 0.0 is not a share"),
        ("A text.", {"held_out": 1.0}, "--held-out: 1.0 is not a share"),
        ("A text.", {"workers": 0}, "--workers: 0 processes"),
        ("A text.", {"tokenizer": Path("none")}, "none: does not exist"),
        ("A text.", {"held_out_inputs": ["none.txt"]}, "none.txt: does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, text: str | None, options: dict[str, Any], problem: str
) -> None:
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
    before = content(tmp_path)
    with pytest.raises(UserError, match=problem) as caught:
        run([tmp_path / "a.txt"], tmp_path / "out", **options)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert content(tmp_path) == before and len(list(tmp_path.iterdir())) == len(before)


def test_no_input_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no input"):
        run([], tmp_path / "out")


def test_text_in_another_encoding_is_refused_by_workers_too(tmp_path: Path, text_folder: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"latin\.txt: is not UTF-8 at byte 3"):
        run([text_folder, tmp_path / "latin.txt"], tmp_path / "out", workers=2)


def test_a_result_inside_its_own_input_is_refused(tmp_path: Path, text_folder: Path) -> None:
    with pytest.raises(UserError, match="lies inside the input"):
        run([text_folder], text_folder / "deeper" / "out")
    with pytest.raises(UserError, match="an input without a name"):
        run([""], tmp_path / "out")


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path, text_folder: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a prepared data folder"):
        run([text_folder], tmp_path / "out")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a prepared data folder"):
        run([text_folder], tmp_path / "file")


MEASURED = """
import pathlib, re, sys
from stacking.data import prepare as module
module.PART_CHARACTERS = module.vocabulary.SAMPLE_CHARACTERS = 400_000
tokenizer = pathlib.Path(sys.argv[3]) if sys.argv[3:] else None
module.prepare([sys.argv[1]], pathlib.Path(sys.argv[2]), tokenizer=tokenizer, vocabulary_size=1000, workers=1)
print(int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_input(tmp_path: Path, data_folder: Path) -> None:
    """Ten times the text, in one file, takes about the same memory."""
    unit = prose(0, 12_000).encode()
    texts = {copies: b"\n\n".join(b"%d. " % number + unit for number in range(copies)) for copies in (2, 20)}
    assert len(texts[20]) > 10 << 20
    small, large = (_peak(tmp_path / f"{copies}.txt", text, data_folder) for copies, text in texts.items())
    assert large - small < 6, (small, large)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_input_when_a_vocabulary_is_trained(tmp_path: Path) -> None:
    lines = [json.dumps({"text": prose(number, 40)}).encode() + b"\n" for number in range(400)]
    texts = {copies: b"".join(lines) * copies for copies in (1, 4)}
    small, large = (_peak(tmp_path / f"{copies}.jsonl", text) for copies, text in texts.items())
    assert large - small < 6, (small, large)


def _peak(file: Path, text: bytes, *tokenizer: Path) -> int:
    """MiB that a process needs which prepares ``text`` in small parts, with a small sample for the vocabulary."""
    file.write_bytes(text)
    command = [sys.executable, "-c", MEASURED, str(file), str(file.with_suffix(".out")), *map(str, tokenizer)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
