"""Makes the rows of the sample index: the content of each sample, before order, partners and masks are drawn.

One int64 row per sample:

    sentence-pair   [first sentence]                                    the second one follows it in its document
    segment-pair    [first sentence, end sentence]                      two or more sentences of one document
    packed          [first token, end token, first document, end document]   a separator stands after each document
                                                                        from first (inclusive) to end (exclusive)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stacking.data.batch import I64
from stacking.data.corpus import Corpus

_SENTENCES_AT_ONCE = 1 << 20


def _documents(corpus: Corpus) -> Iterator[tuple[int, I64]]:
    """Yields all documents in chunks: the number of the first, and the sentence bounds of each, including the last end.

    Documents hold few sentences (``readers.LONGEST_DOCUMENT``), so chunks bound the memory of the caller.
    """
    first = 0
    while first < corpus.documents:
        sentence = int(corpus.document_start(np.array([first]))[0]) + _SENTENCES_AT_ONCE
        end = corpus.documents
        if sentence < corpus.sentences:
            end = max(first + 1, int(corpus.document_of(np.array([sentence]))[0]))
        yield first, corpus.document_start(np.arange(first, end + 1))
        first = end


def sentence_pairs(corpus: Corpus, sequence_length: int) -> Iterator[I64]:
    """Yields every sentence that has a successor in its document, once."""
    for _, bounds in _documents(corpus):
        has_follower = np.ones(bounds[-1] - bounds[0], dtype=bool)
        has_follower[bounds[1:] - bounds[0] - 1] = False
        yield np.flatnonzero(has_follower)[:, None] + bounds[0]


def segment_pairs(corpus: Corpus, sequence_length: int) -> Iterator[I64]:
    """Cuts each document into runs of whole sentences that fill a sequence.

    A run has at least two sentences, so that it can be split; a single sentence left at the end of a document joins
    the previous run. All documents of a chunk advance together, one run per round.
    """
    for _, bounds in _documents(corpus):
        first, last = bounds[:-1], bounds[1:]
        runs = [np.empty((0, 2), dtype=np.int64)]
        while True:
            open_documents = last - first >= 2
            first, last = first[open_documents], last[open_documents]
            if not len(first):
                break
            end = fill(corpus, first, last, np.full(len(first), sequence_length - 3))
            end = np.minimum(np.maximum(end, first + 2), last)
            end = np.where(last - end == 1, last, end)
            runs.append(np.stack([first, end], axis=1))
            first = end
        rows = np.concatenate(runs)
        yield rows[np.argsort(rows[:, 0], kind="stable")]


def fill(corpus: Corpus, first: I64, last: I64, room: I64) -> I64:
    """Returns the end (exclusive) of the longest run of sentences from ``first`` to ``last`` in ``room`` tokens.

    A run has at least one sentence, even if it does not fit. All int64 [N].
    """
    limit = corpus.sentence_start(first) + room
    end = corpus.sentence_at(np.minimum(limit, corpus.tokens - 1))
    end = np.where(limit >= corpus.tokens, corpus.sentences, end)
    return np.minimum(np.maximum(end, first + 1), last)


def stream_length(corpus: Corpus) -> int:
    """Counts the tokens of the split plus one separator between every two documents."""
    return corpus.tokens + corpus.documents - 1


def packed(corpus: Corpus, sequence_length: int) -> Iterator[I64]:
    """Cuts the stream of all documents, with separators, into full sequences; only the last can be shorter.

    In the stream, the separator after document d is at d + (end of d in tokens), which counts the documents before any
    position. The stream ends where the last document's separator would be.
    """
    step, cut = sequence_length - 2, 0
    last = np.empty((0, 2), dtype=np.int64)
    for first, bounds in _documents(corpus):
        separators = corpus.sentence_start(bounds[1:]) + first + np.arange(len(bounds) - 1)
        cuts = np.arange(cut, separators[-1] + 1, step)
        cut += step * len(cuts)
        if first + len(separators) == corpus.documents and cut - step < separators[-1]:
            cuts = np.append(cuts, separators[-1])
        documents = first + np.searchsorted(separators, cuts, side="left")
        ends = np.concatenate([last, np.stack([cuts - documents, documents], axis=1)])  # tokens, documents
        last = ends[-1:]
        yield np.stack([ends[:-1, 0], ends[1:, 0], ends[:-1, 1], ends[1:, 1]], axis=1)
