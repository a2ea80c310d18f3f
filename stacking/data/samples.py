"""The sample index: what belongs to each sample of an epoch, before order, partners and masks are drawn.

Computed once a run and memory-mapped afterwards. One int64 row per sample:

    sentence-pair   [first sentence]                                    the second one follows it in its document
    segment-pair    [first sentence, end sentence]                      two or more sentences of one document
    packed          [first token, end token, first document, end document]   a separator stands after each document
                                                                        from first (inclusive) to end (exclusive)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from stacking.data.corpus import Corpus
from stacking.errors import UserError

I64 = npt.NDArray[np.int64]

SHORTEST_SEQUENCE = 8


def build_samples(corpus: Corpus, kind: str, sequence_length: int) -> I64:
    """The sample index of ``corpus``, int64 [N, columns of the kind].

    Raises:
        UserError: unknown kind, too short a sequence, or a corpus without a single sample of this kind.
    """
    check_samples(corpus, kind, sequence_length)
    return INDEXES[kind](corpus, sequence_length)


def samples_per_epoch(corpus: Corpus, kind: str, sequence_length: int) -> int:
    """How many rows ``build_samples`` gives; without building them where arithmetic is enough.

    Raises:
        UserError: as ``build_samples``.
    """
    check_samples(corpus, kind, sequence_length)
    if kind == "sentence-pair":
        return corpus.sentences - corpus.documents
    if kind == "packed":
        return -(-_stream_length(corpus) // (sequence_length - 2))
    return len(INDEXES[kind](corpus, sequence_length))


def check_samples(corpus: Corpus, kind: str, sequence_length: int) -> None:
    """Refuse what cannot give a sample."""
    if kind not in INDEXES:
        raise UserError("data.samples", f"there is no kind {kind!r}", f"use one of {', '.join(INDEXES)}")
    if sequence_length < SHORTEST_SEQUENCE:
        problem = f"{sequence_length} tokens hold no pair of sentences"
        raise UserError("data.sequence_length", problem, f"use at least {SHORTEST_SEQUENCE}")
    where = f"{corpus.folder}: {corpus.split}"
    if kind == "packed":
        return
    if corpus.documents < 2:
        problem = f"{kind} samples need partners from another document and there is only one"
        raise UserError(where, problem, "prepare more documents or use packed samples")
    if corpus.sentences == corpus.documents:
        problem = f"{kind} samples need documents of two sentences or more and there are none"
        raise UserError(where, problem, "prepare longer documents or use packed samples")


def _sentence_pairs(corpus: Corpus, sequence_length: int) -> I64:
    """Every sentence that has a follower in its document, once."""
    ends = corpus.document_start(np.arange(1, corpus.documents + 1))
    has_follower = np.ones(corpus.sentences, dtype=bool)
    has_follower[ends - 1] = False
    return np.flatnonzero(has_follower)[:, None]


def _segment_pairs(corpus: Corpus, sequence_length: int) -> I64:
    """Each document cut into runs of whole sentences that fill a sequence.

    A run has at least two sentences, so that it can be split; a single sentence left at the end of a document joins
    the run before it. All documents advance together, one run a round.
    """
    bounds = corpus.document_start(np.arange(corpus.documents + 1))
    first, last = bounds[:-1], bounds[1:]
    runs: list[I64] = []
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
    return rows[np.argsort(rows[:, 0], kind="stable")]


def fill(corpus: Corpus, first: I64, last: I64, room: I64) -> I64:
    """End (exclusive) of the longest run of sentences from ``first`` that ends by ``last`` and within ``room`` tokens.

    At least one sentence, even when it does not fit. All int64 [N].
    """
    limit = corpus.sentence_start(first) + room
    end = corpus.sentence_at(np.minimum(limit, corpus.tokens - 1))
    end = np.where(limit >= corpus.tokens, corpus.sentences, end)
    return np.minimum(np.maximum(end, first + 1), last)


def _stream_length(corpus: Corpus) -> int:
    """Tokens of the split and a separator between every two documents."""
    return corpus.tokens + corpus.documents - 1


def _packed(corpus: Corpus, sequence_length: int) -> I64:
    """The stream of all documents, separated, cut into full sequences; only the last can be shorter.

    In the stream the separator after document d stands at d + (end of d in tokens), which counts the documents before
    any position.
    """
    ends = corpus.sentence_start(corpus.document_start(np.arange(1, corpus.documents + 1)))
    separators = ends + np.arange(corpus.documents)
    cuts = np.append(np.arange(0, _stream_length(corpus), sequence_length - 2), _stream_length(corpus))
    documents = np.searchsorted(separators, cuts, side="left")
    tokens = cuts - documents
    return np.stack([tokens[:-1], tokens[1:], documents[:-1], documents[1:]], axis=1)


INDEXES: dict[str, Callable[[Corpus, int], I64]] = {
    "sentence-pair": _sentence_pairs,
    "segment-pair": _segment_pairs,
    "packed": _packed,
}
