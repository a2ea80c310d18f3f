"""A sample is a pure function of (data, seed, index), whatever surrounds it."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.data import sample_rows
from stacking.data import sampler as module
from stacking.data.batch import Batch
from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS, Sampler
from stacking.data.samples import SampleIndex, build_samples
from stacking.data.unpad import split
from stacking.errors import UserError
from tests.data.conftest import write_numbers
from tests.unpadding import unpad

KINDS = list(SAMPLERS)
PAIRS = ["sentence-pair", "segment-pair"]


def make(corpus: Corpus, kind: str, length: int = 32, seed: int = 5, probability: float = 0.15) -> Sampler:
    return SAMPLERS[kind](corpus, build_samples(corpus, kind, length), length, seed, probability)


def original(batch: Batch) -> np.ndarray:
    """The ids before masking."""
    ids = batch.input_ids.copy()
    ids.reshape(-1)[batch.mlm_positions] = batch.mlm_labels
    return ids


def fields_of(batch: Batch, row: int) -> list[object]:
    """Everything about one sample, independent of its place in the batch."""
    length = batch.input_ids.shape[1]
    mine = batch.mlm_positions // length == row
    nsp = None if batch.nsp_labels is None else int(batch.nsp_labels[row])
    arrays = [batch.input_ids[row], batch.segment_ids[row], batch.attention_mask[row]]
    arrays += [batch.mlm_positions[mine] - row * length, batch.mlm_labels[mine]]
    return [array.tolist() for array in arrays] + [nsp]


@pytest.mark.parametrize("kind", KINDS)
@given(ids=st.lists(st.integers(0, 10**7), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_a_sample_does_not_depend_on_its_batch(corpus: Corpus, kind: str, ids: list[int]) -> None:
    sampler = make(corpus, kind)
    together = sampler.batch(np.array(ids))
    for row, sample in enumerate(ids):
        assert fields_of(together, row) == fields_of(sampler.batch(np.array([sample])), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_the_process(data_folder: Path, corpus: Corpus, kind: str) -> None:
    code = (
        "import sys, numpy as np, pathlib; from stacking.data.corpus import Corpus\n"
        "from stacking.data.sampler import SAMPLERS; from stacking.data.samples import build_samples\n"
        "c = Corpus(pathlib.Path(sys.argv[1]))\n"
        "s = SAMPLERS[sys.argv[2]](c, build_samples(c, sys.argv[2], 32), 32, 5)\n"
        "b = s.batch(np.array([3, 1000, 12345])); print(b.input_ids.tolist(), b.mlm_labels.tolist())"
    )
    command = [sys.executable, "-c", code, data_folder, kind]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    batch = make(corpus, kind).batch(np.array([3, 1000, 12345]))
    assert answer.stdout.strip() == f"{batch.input_ids.tolist()} {batch.mlm_labels.tolist()}"


@pytest.mark.parametrize("kind", KINDS)
def test_padded_and_unpadded_samples_are_the_same(corpus: Corpus, kind: str) -> None:
    sampler, ids = make(corpus, kind), np.arange(37)
    for one, other in zip(unpad(sampler.batch(ids)), sampler.unpadded(ids), strict=True):
        assert np.array_equal(one, other) if one is not None else other is None


@pytest.mark.parametrize("kind", KINDS)
@given(count=st.integers(1, 9), size=st.integers(1, 10))
@settings(max_examples=25, deadline=None)
def test_drawing_in_pieces_gives_the_same_samples(corpus: Corpus, kind: str, count: int, size: int) -> None:
    sampler, ids = make(corpus, kind), np.arange(count)
    pieces = split(sampler.unpadded(ids), size)
    drawn = [sampler.unpadded(ids[at : at + size]) for at in range(0, count, size)]
    assert len(pieces) == len(drawn)
    for piece, alone in zip(pieces, drawn, strict=True):
        for one, other in zip(piece, alone, strict=True):
            assert np.array_equal(one, other) if one is not None else other is None


@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_a_stream_draws_small_batches_together(corpus: Corpus, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, ids = make(corpus, "segment-pair"), np.arange(10 * size).reshape(10, size)
    expected = [sampler.unpadded(row) for row in ids]
    draws: list[int] = []
    draw = sampler.unpadded
    monkeypatch.setattr(module, "SAMPLES_AT_ONCE", 12)
    monkeypatch.setattr(sampler, "unpadded", lambda ids: (draws.append(len(ids)), draw(ids))[1])
    streamed = list(sampler.stream(ids))
    assert max(draws) == max(size, min(12, ids.size)) and sum(draws) == ids.size
    for one, other in zip(streamed, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)


@pytest.mark.parametrize("length", [8, 17, 32, 128])
def test_each_epoch_covers_every_sentence_once(corpus: Corpus, length: int) -> None:
    pairs = build_samples(corpus, "sentence-pair", length)[:, 0]
    last = corpus.document_start(np.arange(1, corpus.documents + 1)) - 1
    assert np.array_equal(pairs, np.setdiff1d(np.arange(corpus.sentences), last))

    runs = build_samples(corpus, "segment-pair", length)
    covered = np.concatenate([np.arange(first, end) for first, end in runs])
    sizes = np.diff(corpus.document_start(np.arange(corpus.documents + 1)))
    alone = corpus.document_start(np.flatnonzero(sizes == 1))
    assert np.array_equal(covered, np.setdiff1d(np.arange(corpus.sentences), alone))
    assert np.array_equal(corpus.document_of(runs[:, 0]), corpus.document_of(runs[:, 1] - 1))

    packed = build_samples(corpus, "packed", length)
    assert packed[0, 0] == 0 and packed[-1, 1] == corpus.tokens
    assert np.array_equal(packed[1:, 0], packed[:-1, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [8, 33, 128])
@pytest.mark.parametrize("sentences", [1, 50])
def test_an_index_written_in_chunks_is_the_same(
    corpus: Corpus, kind: str, length: int, sentences: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_samples(corpus, kind, length)
    monkeypatch.setattr(sample_rows, "_SENTENCES_AT_ONCE", sentences)
    path = tmp_path / "samples.npy"
    index = SampleIndex(corpus, kind, length)
    index.write(path)
    assert len(index) == len(whole)
    assert [file.name for file in tmp_path.iterdir()] == ["samples.npy"]
    written = np.load(path, mmap_mode="r")
    assert written.dtype == whole.dtype and np.array_equal(written, whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [8, 33, 128])
def test_samples_per_epoch_is_the_length_of_the_index(corpus: Corpus, kind: str, length: int) -> None:
    assert len(SampleIndex(corpus, kind, length)) == len(build_samples(corpus, kind, length))


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_visits_every_sample_once(corpus: Corpus, kind: str) -> None:
    sampler = make(corpus, kind)
    size = len(sampler)
    if kind == "packed":
        rows = original(sampler.batch(np.arange(size)))
        assert len(np.unique(rows, axis=0)) == size
    else:
        firsts = [sampler.batch(np.arange(size) + epoch * size).input_ids for epoch in (0, 1)]
        assert not np.array_equal(firsts[0], firsts[1])


def test_packed_samples_are_the_corpus_with_separators(corpus: Corpus) -> None:
    sampler = make(corpus, "packed", 16)
    index = build_samples(corpus, "packed", 16)
    text = sampler._text(index, np.arange(len(index)))
    rows = np.split(text.input_ids, np.cumsum(text.lengths)[:-1])
    stream = [id for row in rows for id in row[1:-1].tolist()]
    ends = corpus.sentence_start(corpus.document_start(np.arange(corpus.documents + 1)))
    expected: list[int] = []
    for start, end in pairwise(ends):
        expected += [*corpus.read(np.array([start]), np.array([end])).tolist(), corpus.special["sep"]]
    assert stream == expected[:-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [8, 32, 128])
def test_layout_of_specials_segments_and_padding(corpus: Corpus, kind: str, length: int) -> None:
    batch = make(corpus, kind, length).batch(np.arange(64))
    ids, special = original(batch), corpus.special
    assert ids.shape == batch.segment_ids.shape == batch.attention_mask.shape == (64, length)
    assert ids.dtype == batch.segment_ids.dtype == batch.mlm_positions.dtype == batch.mlm_labels.dtype == np.int64
    assert (ids[:, 0] == special["cls"]).all() and batch.attention_mask.dtype == bool
    lengths = batch.attention_mask.sum(axis=1)
    for row, real in zip(range(64), lengths, strict=True):
        assert batch.attention_mask[row, :real].all()
        assert ids[row, real - 1] == special["sep"]
        assert (ids[row, real:] == special["pad"]).all() and (ids[row, :real] != special["pad"]).all()
        separators = np.flatnonzero(ids[row] == special["sep"])
        if kind in PAIRS:
            first, second = separators
            expected = (np.arange(length) > first) & (np.arange(length) <= second)
            assert np.array_equal(batch.segment_ids[row], expected.astype(np.int64))
            assert first > 1 and second > first + 1
        else:
            assert not batch.segment_ids[row].any()


def sentences_of(corpus: Corpus) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """Maps each sentence's tokens to its (document, number)."""
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    starts = corpus.sentence_start(np.arange(corpus.sentences + 1))
    documents = corpus.document_of(np.arange(corpus.sentences))
    for number in range(corpus.sentences):
        tokens = tuple(corpus.read(starts[number : number + 1], starts[number + 1 : number + 2]).tolist())
        found.setdefault(tokens, []).append((int(documents[number]), number))
    return found


@pytest.mark.parametrize("kind", PAIRS)
def test_next_sentence_labels_are_correct(corpus: Corpus, kind: str) -> None:
    """Segments are looked up in a flat copy of the corpus; length 400 leaves none of them cut."""
    length = 400
    batch = make(corpus, kind, length).batch(np.arange(200))
    ids = original(batch)
    places = sentences_of(corpus)
    flat = corpus.head(corpus.tokens)
    starts = corpus.sentence_start(np.arange(corpus.sentences + 1))
    for row in range(200):
        first, second = np.flatnonzero(ids[row] == corpus.special["sep"])
        a, b = ids[row, 1:first], ids[row, first + 1 : second]
        a_places = [(d, s) for d, s in _starting(places, a, flat, starts)]
        b_places = [(d, s) for d, s in _starting(places, b, flat, starts)]
        assert a_places and b_places
        follows = any(starts[s] + len(a) == starts[t] and d == e for d, s in a_places for e, t in b_places)
        elsewhere = any(d != e for d, _ in a_places for e, _ in b_places)
        assert batch.nsp_labels is not None
        assert follows if batch.nsp_labels[row] == 0 else elsewhere


def _starting(
    places: dict[tuple[int, ...], list[tuple[int, int]]], segment: np.ndarray, flat: np.ndarray, starts: np.ndarray
) -> list[tuple[int, int]]:
    """Where in the corpus ``segment`` is, starting with a sentence."""
    candidates = [
        place for tokens, found in places.items() if tuple(segment[: len(tokens)]) == tokens for place in found
    ]
    return [(d, s) for d, s in candidates if np.array_equal(flat[starts[s] : starts[s] + len(segment)], segment)]


@pytest.mark.parametrize("kind", PAIRS)
def test_half_of_the_pairs_are_random_and_redrawn_each_epoch(corpus: Corpus, kind: str) -> None:
    labels = make(corpus, kind).batch(np.arange(8000)).nsp_labels
    assert labels is not None and abs(labels.mean() - 0.5) < 0.02


def test_partners_and_masks_are_redrawn_each_epoch(corpus: Corpus) -> None:
    sampler = make(corpus, "sentence-pair")
    size = len(sampler)
    epochs = [sampler.batch(np.arange(size) + epoch * size) for epoch in (0, 1)]
    by_first: list[dict[tuple[int, ...], tuple[list[int], list[int], int]]] = []
    for batch in epochs:
        ids, labels = original(batch), batch.nsp_labels
        assert labels is not None
        first = [int(np.flatnonzero(row == corpus.special["sep"])[0]) for row in ids]
        masked = [np.flatnonzero(batch.input_ids[row] != ids[row]).tolist() for row in range(size)]
        by_first.append(
            {tuple(ids[r, : first[r]]): (ids[r, first[r] :].tolist(), masked[r], int(labels[r])) for r in range(size)}
        )
    shared = by_first[0].keys() & by_first[1].keys()
    assert len(shared) > 0.95 * size / 1.05
    both = [(by_first[0][key], by_first[1][key]) for key in shared]
    assert any(x[2] != y[2] for x, y in both)
    random_twice = [(x[0], y[0]) for x, y in both if x[2] == y[2] == 1]
    assert sum(x != y for x, y in random_twice) > 0.9 * len(random_twice)
    assert sum(x[1] != y[1] for x, y in both) > 0.5 * len(both)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probability", [0.05, 0.15, 0.4])
def test_exactly_the_share_of_positions_is_masked_and_never_a_special(
    corpus: Corpus, kind: str, probability: float
) -> None:
    length = 48
    batch = make(corpus, kind, length, probability=probability).batch(np.arange(100))
    ids = original(batch)
    maskable = ~np.isin(ids, list(corpus.special.values()))
    assert maskable.reshape(-1)[batch.mlm_positions].all()
    assert (np.diff(batch.mlm_positions) > 0).all()
    counts = np.bincount(batch.mlm_positions // length, minlength=100)
    assert counts.tolist() == [max(1, round(probability * int(n))) for n in maskable.sum(axis=1)]


def test_masked_positions_become_mask_random_or_stay(corpus: Corpus) -> None:
    batch = make(corpus, "packed", 128, probability=0.5).batch(np.arange(600))
    now = batch.input_ids.reshape(-1)[batch.mlm_positions]
    total = len(now)
    masked, kept = now == corpus.special["mask"], now == batch.mlm_labels
    assert abs(masked.mean() - 0.8) < 0.01
    assert abs(kept.mean() - 0.1) < 0.01
    replaced = now[~masked & ~kept]
    assert abs(len(replaced) / total - 0.1) < 0.01
    assert not np.isin(replaced, list(corpus.special.values())).any()
    assert len(np.unique(replaced)) > 0.9 * (corpus.vocabulary - 5)


def test_random_partners_are_as_long_as_true_ones(corpus: Corpus) -> None:
    batch = make(corpus, "segment-pair", 64).batch(np.arange(8000))
    assert batch.nsp_labels is not None
    lengths = batch.attention_mask.sum(axis=1)
    full = [np.mean(lengths[batch.nsp_labels == label] > 50) for label in (0, 1)]
    assert abs(full[0] - full[1]) < 0.2


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("sentence-pair", "771240754a9ee32b"),
        ("segment-pair", "bc9d48c3487f77e4"),
        ("packed", "a157c73b21c87e10"),
    ],
)
def test_samples_are_those_of_earlier_versions(tmp_path: Path, kind: str, digest: str) -> None:
    """Uses a corpus made only of numbers, so that nothing but the sampling matters."""
    corpus = Corpus(write_numbers(tmp_path / "data"))
    ids = np.array([0, 1, 2, 500, 10**9 + 7])
    batch = make(corpus, kind, 64).batch(ids)
    content = b"".join(np.asarray(array).astype("<i8").tobytes() for array in (*batch, ids) if array is not None)
    assert xxhash.xxh3_64_hexdigest(content) == digest


def test_impossible_kinds_and_lengths_are_refused(corpus: Corpus) -> None:
    with pytest.raises(UserError, match="use one of sentence-pair, segment-pair, packed"):
        build_samples(corpus, "sentence_pair", 128)
    with pytest.raises(UserError, match="at least 8"):
        build_samples(corpus, "packed", 4)
