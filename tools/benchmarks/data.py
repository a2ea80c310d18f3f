"""Benchmarks data preparation (`stacking prepare` against the tokenizer that it uses) and sampling."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from stacking.data import vocabulary
from stacking.data.corpus import Corpus
from stacking.data.embedded import embedded_documents, embedded_sources
from stacking.data.find import find_files
from stacking.data.given import load
from stacking.data.prepare import prepare
from stacking.data.readers import documents
from stacking.data.sampler import SAMPLERS, SAMPLES_AT_ONCE
from stacking.data.samples import build_samples
from stacking.data.unpad import Unpadded
from stacking.data.vocabulary import Vocabulary
from stacking.errors import UserError

OURS, BARE, DATASETS = "stacking prepare", "tokenizers", "datasets.map"
VOCABULARY = 8_000
"""Size of the vocabulary to train if none is given."""

LENGTHS = (128, 512)
BATCHES = (8, 32, 256)
_DRAWING_SECONDS = 0.1


@dataclass(frozen=True)
class Tokenizing:
    """Holds one contender's seconds of every repeat, on one core and the same documents."""

    name: str
    seconds: list[float]
    characters_per_second: float
    tokens_per_second: float
    time_against_tokenizer: float
    """Median over the repeats of the contender's time relative to the bare tokenizer."""


@dataclass(frozen=True)
class Drawing:
    """Holds the speed of drawing one kind of sample, including masking and sentence pairs, without padding."""

    kind: str
    sequence_length: int
    batch: int
    tokens_per_second: float
    """Real tokens, as the loader draws them: small batches together; median of the repeats."""
    tokens_per_second_alone: float
    """The same with every batch drawn by itself."""
    padding: float
    """Share of padding if samples were padded to the sequence length."""


@dataclass(frozen=True)
class Indexing:
    """The sample index of one kind, which is made once a run."""

    kind: str
    sequence_length: int
    samples: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class DataBench:
    """Holds all measurements of ``bench_data``."""

    characters: int
    documents: int
    tokenizing: list[Tokenizing]
    corpus_tokens: int
    opening_seconds: float
    """From the folder's name to a corpus that samples can be drawn from."""
    drawing: list[Drawing]
    indexing: list[Indexing]


def bench_data(inputs: Sequence[str], data: Path | None, characters: int, repeats: int, scratch: Path) -> DataBench:
    """Measures on one core; contenders take turns, in another order each repeat.

    Args:
        inputs: files and folders with the text to tokenize; the embedded corpus where there are none.
        data: a prepared folder to draw from, with the tokenizer to use; made of the text where it is None.
        characters: the most text to tokenize.
        scratch: an empty folder for what is made on the way.
    """
    texts = read_texts(inputs, characters)
    source = scratch / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    with _one_core():
        words = load(data) if data else Vocabulary(vocabulary.train(texts, VOCABULARY, lowercase=True))
        vocabulary.save(words.tokenizer, scratch / "tokenizer", words.special)
        tokenizing = race(texts, source, scratch / "tokenizer", repeats)
        folder = data or scratch / "prepared"
        start = time.perf_counter()
        corpus = Corpus(folder)
        opening = time.perf_counter() - start
        drawn = [drawing(corpus, kind, length, repeats) for kind in SAMPLERS for length in LENGTHS]
    sizes = sum(map(len, texts)), len(texts)
    indexing = [index for index, _ in drawn]
    return DataBench(*sizes, tokenizing, corpus.tokens, opening, [row for _, rows in drawn for row in rows], indexing)


def read_texts(inputs: Sequence[str], characters: int) -> list[str]:
    """The first documents of ``inputs``, until they have ``characters``.

    Raises:
        UserError: an input cannot be read, or there are fewer than two documents.
    """
    found = (documents(file) for name in inputs for file in find_files(name).files)
    texts: list[str] = []
    for text in chain.from_iterable(found) if inputs else embedded_documents(embedded_sources(), None):
        texts.append(text)
        characters -= len(text)
        if characters <= 0:
            break
    if len(texts) < 2:
        where = inputs[0] if inputs else "bench-data"
        raise UserError(where, f"gives {len(texts)} documents and a split needs two", "give more text, or --characters")
    return texts


def race(texts: list[str], source: Path, tokenizer: Path, repeats: int) -> list[Tokenizing]:
    """Tokenizes ``texts``, which ``source`` holds as JSONL, with each contender in turn."""
    prepared = source.with_name("prepared")
    contenders: dict[str, Callable[[], int]] = {
        OURS: lambda: _prepare(source, prepared, tokenizer),
        BARE: lambda: _encode_batch(texts, tokenizer),
        DATASETS: lambda: _datasets_map(texts, tokenizer),
    }
    _datasets_map(texts[:1], tokenizer)  # its import is not the work
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    tokens: dict[str, int] = {}
    for repeat in range(repeats):
        for name in _turn(list(contenders), repeat):
            start = time.perf_counter()
            tokens[name] = contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    characters = sum(map(len, texts))
    return [
        Tokenizing(
            name=name,
            seconds=seconds[name],
            characters_per_second=characters / statistics.median(seconds[name]),
            tokens_per_second=tokens[name] / statistics.median(seconds[name]),
            time_against_tokenizer=statistics.median(
                ours / bare for ours, bare in zip(seconds[name], seconds[BARE], strict=True)
            ),
        )
        for name in contenders
    ]


def _prepare(source: Path, out: Path, tokenizer: Path) -> int:
    """Runs the whole preparation: two reads, sentence splitting, tokenizing, writing, checksums."""
    shutil.rmtree(out, ignore_errors=True)
    splits = prepare([str(source)], out, tokenizer=tokenizer, workers=1).manifest["splits"]
    return sum(split["tokens"] for split in splits.values())


def _encode_batch(texts: list[str], tokenizer: Path) -> int:
    encodings = _tokenizer(tokenizer).encode_batch(texts, add_special_tokens=False)
    return sum(len(encoding.ids) for encoding in encodings)


def _datasets_map(texts: list[str], tokenizer: Path) -> int:
    import datasets

    loaded = _tokenizer(tokenizer)

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [each.ids for each in loaded.encode_batch(rows["text"], add_special_tokens=False)]}

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": texts})
    # Without a fingerprint of its own it would hash the tokenizer, and it may find the result of another repeat.
    encoded = rows.map(encode, batched=True, remove_columns=["text"], keep_in_memory=True, new_fingerprint="bench")
    return int(sum(map(len, encoded.with_format("numpy")["ids"])))


def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _turn(names: list[str], repeat: int) -> list[str]:
    """Rotates the order of contenders, so that none always follows the same one."""
    first = repeat % len(names)
    return names[first:] + names[:first]


def drawing(corpus: Corpus, kind: str, sequence_length: int, repeats: int) -> tuple[Indexing, list[Drawing]]:
    """Indexes the corpus for one kind and length, then draws batches of every size, the sizes taking turns."""
    start = time.perf_counter()
    samples = build_samples(corpus, kind, sequence_length)
    index = Indexing(kind, sequence_length, len(samples), time.perf_counter() - start, samples.nbytes)
    sampler = SAMPLERS[kind](corpus, samples, sequence_length, seed=0)

    together: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    alone: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    lengths: dict[int, float] = {}
    for _ in range(repeats):
        for batch in BATCHES:
            numbers = (np.arange(first, first + batch) for first in count(0, batch))
            speed, lengths[batch] = _drawn(sampler.stream(numbers))
            together[batch].append(speed)
            numbers = (np.arange(first, first + batch) for first in count(0, batch))
            alone[batch].append(_drawn(map(sampler.unpadded, numbers))[0])
    rows = [
        Drawing(
            kind=kind,
            sequence_length=sequence_length,
            batch=batch,
            tokens_per_second=statistics.median(together[batch]),
            tokens_per_second_alone=statistics.median(alone[batch]),
            padding=1 - lengths[batch] / sequence_length,
        )
        for batch in BATCHES
    ]
    return index, rows


def _drawn(batches: Iterator[Unpadded]) -> tuple[float, float]:
    """Tokens a second, and tokens a sample, of drawing for a moment; whole draws of ``stream`` are counted."""
    tokens = samples = 0
    start = now = time.perf_counter()
    while now - start < _DRAWING_SECONDS:
        drawn = 0
        while drawn < SAMPLES_AT_ONCE:
            batch = next(batches)
            tokens, drawn = tokens + len(batch.input_ids), drawn + len(batch.lengths)
        samples += drawn
        now = time.perf_counter()
    return tokens / (now - start), tokens / samples


@contextmanager
def _one_core() -> Iterator[None]:
    """Restricts the tokenizer to one thread."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
