"""Samplers map a global sample index to what the model sees, as a pure function of (data, seed, index).

Sample n belongs to epoch n // len(sampler). A permutation keyed by (seed, epoch) selects its row of the index; hashes
of (seed, n) select its NSP partner, its split and its mask. So the result does not depend on the world size, the batch
or earlier calls, and a single integer is the whole state of the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from stacking.data.batch import I64, Batch
from stacking.data.corpus import Corpus
from stacking.data.masking import Masking
from stacking.data.random import below, hash64, permute
from stacking.data.sample_rows import fill, packed, segment_pairs, sentence_pairs, stream_length
from stacking.data.unpad import Unpadded, pad, positions_in, split

SAMPLES_AT_ONCE = 256
"""How many samples ``stream`` draws at once if batches are small."""

_ORDER, _IS_RANDOM, _PARTNER, _SPLIT, _MASK = range(101, 106)


class _Text(NamedTuple):
    """Concatenated samples before masking, as in ``Unpadded``."""

    input_ids: I64
    segment_ids: I64
    lengths: I64
    nsp_labels: I64 | None


class Sampler(ABC):
    """One kind of sample over one corpus.

    Args:
        samples: the index from ``build_samples`` for this corpus, kind and length; may be memory-mapped.
        sequence_length: S, the maximum number of tokens in a sample.
        mask_probability: share of the maskable positions to predict.
    """

    pairs: ClassVar[bool] = True
    """Whether a sample is a pair of segments with a next-sentence label."""

    def __init__(
        self, corpus: Corpus, samples: I64, sequence_length: int, seed: int, mask_probability: float = 0.15
    ) -> None:
        self.corpus, self.samples = corpus, np.asarray(samples)
        self.sequence_length, self.seed = sequence_length, seed
        self._order_seed = int(hash64(seed, _ORDER)[0])
        self._masking = Masking(int(hash64(seed, _MASK)[0]), mask_probability, corpus.vocabulary, corpus.special)

    def __len__(self) -> int:
        return len(self.samples)

    @staticmethod
    @abstractmethod
    def rows(corpus: Corpus, sequence_length: int) -> Iterator[I64]:
        """Yields the sample index in chunks, int64 [N, columns]."""

    @classmethod
    def count(cls, corpus: Corpus, sequence_length: int) -> int:
        """Returns the number of rows, by arithmetic where that suffices."""
        return sum(map(len, cls.rows(corpus, sequence_length)))

    def unpadded(self, sample_ids: I64) -> Unpadded:
        """Returns the samples with these global indices, int64 [B], each at least 0.

        Raises:
            DamagedFile: the shards contain an id outside of the vocabulary.
        """
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        epoch, index = np.divmod(sample_ids, len(self))
        text = self._text(self.samples[permute(index, len(self), self._order_seed, epoch)], sample_ids)
        position_ids = positions_in(text.lengths)
        positions, labels = self._masking.apply(text.input_ids, position_ids, text.lengths, sample_ids)
        return Unpadded(
            text.input_ids, text.segment_ids, position_ids, text.lengths, positions, labels, text.nsp_labels
        )

    def stream(self, batches: Iterable[I64]) -> Iterator[Unpadded]:
        """Yields ``unpadded`` for each of ``batches``, which have the same size.

        A draw has a fixed cost, equal to that of some hundred tokens, so several small batches are drawn at once.
        """
        left = iter(batches)
        for first in left:
            together = np.stack([first, *islice(left, max(0, SAMPLES_AT_ONCE // len(first) - 1))])
            yield from split(self.unpadded(together.reshape(-1)), len(first))

    def batch(self, sample_ids: I64) -> Batch:
        """Returns the same samples, each padded to ``sequence_length``."""
        return pad(self.unpadded(sample_ids), self.sequence_length, self.corpus.special["pad"])

    @abstractmethod
    def _text(self, rows: I64, sample_ids: I64) -> _Text:
        """Returns the samples of these index ``rows`` [B, columns], unmasked."""

    def _draw(self, purpose: int, sample_ids: I64) -> npt.NDArray[np.uint64]:
        return hash64(self.seed, purpose, sample_ids)

    def _lay_out(self, lengths: I64, separators: I64, tokens: I64) -> I64:
        """Assemble [T]: CLS at each sample's start, SEP at the flat positions ``separators``, ``tokens`` between."""
        special = self.corpus.special
        input_ids = np.empty(len(tokens) + len(lengths) + len(separators), dtype=np.int64)
        is_text = np.ones(len(input_ids), dtype=bool)
        for positions, id in ((np.cumsum(lengths) - lengths, special["cls"]), (separators, special["sep"])):
            input_ids[positions] = id
            is_text[positions] = False
        input_ids[is_text] = tokens
        return input_ids


class _PairSampler(Sampler):
    """Two segments, CLS A SEP B SEP; with probability ½, B is a random one from another document."""

    def _text(self, rows: I64, sample_ids: I64) -> _Text:
        first, middle, end = self._sentences(rows, sample_ids)
        is_random = (self._draw(_IS_RANDOM, sample_ids) >> np.uint64(63)).astype(bool)
        room = self.sequence_length - 3
        a_start, b_start, b_end = self._starts(first, middle, end)
        a_length = b_start - a_start
        if is_random.any():
            partner, partner_end = self._partner(first[is_random], sample_ids[is_random], room - a_length[is_random])
            b_start[is_random], b_end[is_random] = self._starts(partner, partner_end)
        a_length, b_length = _truncate(a_length, b_end - b_start, room)
        return self._assemble(a_start, a_length, b_start, b_length, is_random.astype(np.int64))

    @abstractmethod
    def _sentences(self, rows: I64, sample_ids: I64) -> tuple[I64, I64, I64]:
        """Returns the first sentence of A, the first of B and the end of B, which follows A."""

    @abstractmethod
    def _partner(self, first: I64, sample_ids: I64, room: I64) -> tuple[I64, I64]:
        """Returns first and end sentence of a B from another document, for the samples whose A begins at ``first``."""

    def _starts(self, *sentences: I64) -> list[I64]:
        """Looks up the start of all these sentences in the corpus at once."""
        return list(self.corpus.sentence_start(np.concatenate(sentences)).reshape(len(sentences), -1))

    def _random_sentence(self, first: I64, sample_ids: I64) -> I64:
        """Draws a sentence uniformly from all that are not in the document of ``first``."""
        document = self.corpus.document_of(first)
        start, end = self.corpus.document_start(np.concatenate([document, document + 1])).reshape(2, -1)
        drawn = below(self._draw(_PARTNER, sample_ids), self.corpus.sentences - (end - start))
        return np.where(drawn >= start, drawn + (end - start), drawn)

    def _assemble(self, a_start: I64, a_length: I64, b_start: I64, b_length: I64, nsp_labels: I64) -> _Text:
        """Places the token spans A and B, int64 [B] each, between the special tokens."""
        starts, spans = _interleaved(a_start, b_start), _interleaved(a_length, b_length)
        segments = _interleaved(a_length + 2, b_length + 1)  # A includes CLS and SEP, B its SEP
        input_ids = self._lay_out(
            a_length + b_length + 3, np.cumsum(segments) - 1, self.corpus.read(starts, starts + spans)
        )
        segment_ids = np.repeat(np.arange(len(segments)) & 1, segments)
        return _Text(input_ids, segment_ids, a_length + b_length + 3, nsp_labels)


class SentencePairSampler(_PairSampler):
    """The pairs of Gong et al. (2019): two adjacent single sentences."""

    rows = staticmethod(sentence_pairs)

    @classmethod
    def count(cls, corpus: Corpus, sequence_length: int) -> int:
        """Returns the number of rows: all sentences but the last of each document."""
        return corpus.sentences - corpus.documents

    def _sentences(self, rows: I64, sample_ids: I64) -> tuple[I64, I64, I64]:
        first = rows[:, 0]
        return first, first + 1, first + 2

    def _partner(self, first: I64, sample_ids: I64, room: I64) -> tuple[I64, I64]:
        sentence = self._random_sentence(first, sample_ids)
        return sentence, sentence + 1


class SegmentPairSampler(_PairSampler):
    """The pairs of Devlin et al. (2019): a full sequence of sentences, split at a drawn boundary.

    A random B is filled by the same rule as the sequence, so that its length does not give it away.
    """

    rows = staticmethod(segment_pairs)

    def _sentences(self, rows: I64, sample_ids: I64) -> tuple[I64, I64, I64]:
        first, end = rows[:, 0], rows[:, 1]
        return first, first + 1 + below(self._draw(_SPLIT, sample_ids), end - first - 1), end

    def _partner(self, first: I64, sample_ids: I64, room: I64) -> tuple[I64, I64]:
        sentence = self._random_sentence(first, sample_ids)
        end = self.corpus.document_start(self.corpus.document_of(sentence) + 1)
        return sentence, fill(self.corpus, sentence, end, room)


class PackedSampler(Sampler):
    """Full sequences without NSP: CLS, the running text with SEP between documents, SEP."""

    pairs = False
    rows = staticmethod(packed)

    @classmethod
    def count(cls, corpus: Corpus, sequence_length: int) -> int:
        """Returns the number of rows: the text and its separators, divided into full sequences."""
        return -(-stream_length(corpus) // (sequence_length - 2))

    def _text(self, rows: I64, sample_ids: I64) -> _Text:
        first, end, document, end_document = rows.T
        inner = end_document - document
        lengths = end - first + inner + 2
        stops = np.cumsum(lengths)
        # The nth separator of a sample stands after the end of its document, preceded by CLS and n separators.
        sample, nth = np.repeat(np.arange(len(rows)), inner), positions_in(inner)
        ends = self.corpus.sentence_start(self.corpus.document_start(document[sample] + nth + 1))
        separators = (stops - lengths)[sample] + 1 + ends - first[sample] + nth
        tokens = self.corpus.read(first, end)
        input_ids = self._lay_out(lengths, np.concatenate([separators, stops - 1]), tokens)
        return _Text(input_ids, np.zeros_like(input_ids), lengths, None)


def _truncate(a_length: I64, b_length: I64, room: int) -> tuple[I64, I64]:
    """Trims the ends of A and B until both fit into ``room`` tokens, the longer one first."""
    a_cut = np.minimum(a_length, np.maximum(room - b_length, room - room // 2))
    return a_cut, np.minimum(b_length, room - a_cut)


def _interleaved(one: I64, other: I64) -> I64:
    """Interleaves to one[0], other[0], one[1], other[1], ..."""
    both = np.empty((len(one), 2), dtype=np.int64)
    both[:, 0], both[:, 1] = one, other
    return both.reshape(-1)


SAMPLERS: dict[str, type[Sampler]] = {
    "sentence-pair": SentencePairSampler,
    "segment-pair": SegmentPairSampler,
    "packed": PackedSampler,
}
