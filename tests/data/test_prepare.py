"""Preparing data: the same bytes every time, whatever happens on the way."""

from __future__ import annotations

import gzip
import json
import os
import random
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

from stacking.data import hub, shards
from stacking.data import prepare as module
from stacking.data.corpus import Corpus, load_manifest
from stacking.data.prepare import Prepared, prepare
from stacking.data.sentences import split_sentences
from stacking.data.summary import summarise
from stacking.data.workers import worker_processes
from stacking.errors import UserError
from tests.data.conftest import prose, write_corpus

PART = 1500


def run(inputs: list[Path | str], out: Path, **options: Any) -> Prepared:
    settings: dict[str, Any] = {"workers": 1}
    settings |= {} if "tokenizer" in options else {"vocabulary_size": 300}
    settings |= {} if "held_out_inputs" in options else {"held_out": 0.1}
    settings |= options
    return prepare([str(each) for each in inputs], out, **settings)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tokens_are_those_of_the_sentences(tmp_path: Path) -> None:
    long = " ".join(["word"] * 350) + "."
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
        found |= {tuple(corpus.read(*np.array([span]).T).tolist()) for span in pairwise(starts)}
        assert not {0, 2, 4} & set(corpus.head(corpus.tokens).tolist())
    assert found == expected


def test_the_number_of_workers_changes_nothing(
    tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_CHARACTERS", PART)
    for workers in (1, 2):
        run([text_folder], tmp_path / str(workers), workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert load_manifest(tmp_path / "1")["digest"] == load_manifest(tmp_path / "2")["digest"]
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


def test_a_killed_preparation_resumes_where_it_stopped(
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


def test_ctrl_c_is_handled_by_the_parent_alone() -> None:
    with worker_processes(2) as processes:
        for status in processes.map(sleep_and_tell, range(3)):
            blocked = int(status.split("SigBlk:")[1].split()[0], 16)
            assert blocked >> (signal.SIGINT - 1) & 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_a_torn_part_is_rebuilt(tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_preparing_again_reuses_the_result_and_refuses_different_options(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match="was prepared with another held_out"):
        run([texts], out, held_out=0.2)
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


def test_text_cannot_be_trained_on_and_held_out(tmp_path: Path) -> None:
    text = tmp_path / "text" / "a.txt"
    text.parent.mkdir()
    text.write_text("One river. Two stones.\n")
    (link := text.with_name("same.txt")).symlink_to("a.txt")
    for held_out in (text, link, text.parent):
        with pytest.raises(UserError, match="is an input and a --held-out-input; give it as one of the two"):
            run([text], tmp_path / "out", held_out_inputs=[str(held_out)])
    assert not (tmp_path / "out").exists()


def test_an_existing_tokenizer_is_used_unchanged(tmp_path: Path, text_folder: Path, data_folder: Path) -> None:
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
    monkeypatch.setattr(hub, "require_on_hub", lambda repository: None)
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


def test_an_unreachable_dataset_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def require_on_hub(repository: str) -> None:
        raise ConnectionError("no network\nand more lines")

    monkeypatch.setattr(hub, "require_on_hub", require_on_hub)
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
        ("A text.", {"workers": 0}, "--workers: is 0"),
        ("A text.", {"tokenizer": Path("none")}, "none: does not exist"),
        ("A text.", {"held_out_inputs": ["none.txt"]}, "none.txt: does not exist"),
    ],
)
def test_bad_input_is_reported_in_one_line_and_leaves_nothing(
    tmp_path: Path, text: str | None, options: dict[str, Any], problem: str
) -> None:
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
    before = content(tmp_path)
    with pytest.raises(UserError, match=problem) as caught:
        run([tmp_path / "a.txt"], tmp_path / "out", **options)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert content(tmp_path) == before and len(list(tmp_path.iterdir())) == len(before)


def test_missing_input_is_refused(tmp_path: Path) -> None:
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


def write_lines(path: Path, documents: int, plain: bool = True) -> Path:
    """A file in BERT's own format: documents of 8 sentences, lower-cased with spaced full stops where ``plain``."""
    texts = [prose(number, 8).replace("\n\n", " ").split(". ") for number in range(documents)]
    lines = [[line.rstrip(".").lower() + " ." if plain else line.rstrip(".") + "." for line in text] for text in texts]
    path.write_text("\n\n".join("\n".join(document) for document in lines) + "\n")
    return path


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_a_single_file_is_split_so_that_a_share_can_be_held_out(tmp_path: Path, share: float) -> None:
    """At the ends of paragraphs: no sentence is lost or cut, for any number of workers, also the second time."""
    (tmp_path / "a.txt").write_text(prose(0, 4000))
    told: list[str] = []
    made = [run([tmp_path / "a.txt"], tmp_path / str(n), held_out=share, workers=n, say=told.append) for n in (1, 2)]
    summary = summarise(made[0].manifest)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert summary.sentences == 4000 and summary.share_held_out == pytest.approx(share, rel=0.2)
    assert told[1].startswith("cutting documents at ")
    assert run([tmp_path / "a.txt"], tmp_path / "1", held_out=share).already_there


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("documents", [40, 300])
def test_berts_own_format_is_recognised(tmp_path: Path, documents: int, plain: bool) -> None:
    told: list[str] = []
    path = write_lines(tmp_path / "a.txt", documents, plain)
    summary = summarise(run([path], tmp_path / "out", held_out=0.2, say=told.append).manifest)
    assert (summary.documents, summary.sentences) == (documents, 8 * documents)
    assert summary.share_held_out == pytest.approx(0.2, abs=0.015)
    assert told == [f"{path}: reading 1 file as lines (one sentence per line)"] and not list(summary.warnings())


def test_every_file_of_a_mixed_folder_is_read_for_any_number_of_workers(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "text", documents=6)
    (folder / "sub").mkdir()
    rows = [{"text": prose(number, 5)} for number in range(20)]
    with gzip.open(folder / "sub/en.00000.json.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in [*rows, {"text": None}])
    write_lines(folder / "lines", 10)
    (folder / "wiki_00").write_text(
        "".join(f'<doc id="{n}" title="T">\nT\n\n{prose(n, 4)}\n</doc>\n' for n in range(9))
    )
    (folder / "a.pdf").write_text("passed over")
    told: list[str] = []
    manifests = [run([folder], tmp_path / str(n), workers=n, say=told.append).manifest for n in (1, 2)]
    assert content(tmp_path / "1") == content(tmp_path / "2")
    (source,) = manifests[0]["source"]
    assert source["formats"] == {"text": 6, "jsonl": 1, "lines": 1, "wiki": 1}
    assert (source["documents"], source["empty"], source["passed_over"]) == (6 + 20 + 10 + 9, 1, 1)
    assert f"{folder}: skipping 1 (suffix .pdf): a.pdf" in told
    assert "wiki articles" in told[0] and "<" not in (tmp_path / "1/vocab.txt").read_text()


SCRIPTS = {
    "Chinese": ("。！？", "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜", ""),
    "Hindi": ("।॥?", "कखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह", " "),
    "Arabic": ("۔؟!", "ابتثجحخدذرزسشصضطظعغفقكلمنهوي", " "),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_other_scripts_keep_their_characters_and_their_sentences(tmp_path: Path, script: str) -> None:
    """Sentences end at the script's own stops, with no space after them where it has none, and no token is [UNK]."""
    stops, letters, space = SCRIPTS[script]
    draw = random.Random(0)

    def sentence(number: int) -> str:
        words = ["".join(draw.choices(letters, k=draw.randint(2, 5))) for _ in range(6)]
        stop = stops[number % len(stops)]
        return space.join(words) + stop + (" " if stop in "?!" else "")

    lines = [{"text": "".join(map(sentence, range(9))) + "\n"} for _ in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = summarise(run([tmp_path / "a.jsonl"], tmp_path / "out", held_out=0.2, vocabulary_size=400).manifest)
    assert summary.sentences == 40 * 9 and summary.share_unknown == 0
    assert summary.share_held_out == pytest.approx(0.2, abs=0.03)


def test_the_alphabet_is_limited_by_the_vocabulary_size(tmp_path: Path) -> None:
    characters = [chr(0x4E00 + number) for number in range(900)]
    draw = random.Random(0)
    texts = ["".join(draw.choices(characters, k=400)) + "。" for _ in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for size in (300, 600, 1000):
        made = run([tmp_path / "a.jsonl"], tmp_path / str(size), held_out=0.2, vocabulary_size=size)
        words = (tmp_path / str(size) / "vocab.txt").read_text().splitlines()
        assert len(words) <= size and sum(map(str.isalpha, words)) >= min(900, size - 6)
        share = summarise(made.manifest).share_unknown
        assert 1 - size / 900 - 0.1 < share < 1 - size / 900 if size < 900 else share == 0
        assert bool(made.warnings) == (size < 900)


def test_text_entirely_unknown_to_the_vocabulary_is_refused(tmp_path: Path, data_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "日月盈昃。"}) + "\n" + json.dumps({"text": "寒来暑往。"}) + "\n"
    )
    with pytest.raises(UserError, match=r"makes 100% of the tokens \[UNK\].*characters of the text"):
        run([tmp_path / "a.jsonl"], tmp_path / "out", tokenizer=data_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_column_is_chosen_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"raw": prose(n, 5)}) + "\n" for n in range(9)))
    with pytest.raises(UserError, match=r"a\.jsonl: holds no text; name one of its keys with --text-key: raw"):
        run([tmp_path / "a.jsonl"], tmp_path / "out")
    assert run([tmp_path / "a.jsonl"], tmp_path / "out", text_key="raw").manifest["source"][0]["documents"] == 9


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"text_key": "content"}, "--text-key: has no effect: no input is JSON lines"),
        ({"tokenizer": Path("x"), "vocabulary_size": 300}, "--vocabulary-size: has no effect with --tokenizer"),
        ({"held_out_inputs": ["x"], "held_out": 0.1}, "--held-out: has no effect with --held-out-input"),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    path = write_lines(tmp_path / "a.txt", 5)
    with pytest.raises(UserError, match=problem):
        run([path], tmp_path / "out", **options)
    with pytest.raises(UserError, match="--format: has no effect"):
        run([], tmp_path / "out", embedded=True, format="lines")
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_result_reachable_through_a_link_in_the_input_is_refused(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "text", documents=3)
    elsewhere = write_corpus(tmp_path / "elsewhere", documents=3, seed=1)
    (folder / "link").symlink_to(elsewhere)
    with pytest.raises(UserError, match="points to the folder of --out"):
        run([folder], elsewhere / "out")


MEASURED = """
import pathlib, re, sys
from stacking.data import prepare as module
module.PART_CHARACTERS = module.vocabulary.SAMPLE_CHARACTERS = 400_000
tokenizer = pathlib.Path(sys.argv[3]) if sys.argv[3:] else None
module.prepare([sys.argv[1]], pathlib.Path(sys.argv[2]), tokenizer=tokenizer, workers=1,
    vocabulary_size=None if tokenizer else 1000)
print(int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_input(tmp_path: Path, data_folder: Path) -> None:
    """Ten times as much text, in one file, needs about the same memory."""
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
    """MiB needed by a process that prepares ``text`` in small parts, with a small sample for the vocabulary."""
    file.write_bytes(text)
    command = [sys.executable, "-c", MEASURED, str(file), str(file.with_suffix(".out")), *map(str, tokenizer)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
