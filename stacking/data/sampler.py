"""Samplers: from a global sample index to what the model sees, as a pure function of (data, seed, index).

Sample n belongs to epoch n // len(sampler). Its row of the index comes from a permutation that (seed, epoch) keys;
its NSP partner, its split and its mask from hashes of (seed, n). So neither the world size, nor the batch, nor what
was asked before makes a difference, and one integer is the whole state of the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stacking.data.batch import Batch
from stacking.data.corpus import Corpus
from stacking.data.masking import mask
from stacking.data.random import below, hash64, permute
from stacking.data.samples import fill

I64 = npt.NDArray[np.int64]

_ORDER, _IS_RANDOM, _PARTNER, _SPLIT, _MASK = range(101, 106)


class _Text(NamedTuple):
    """Samples before masking."""

    input_ids: I64
    segment_ids: I64
    length: I64
    nsp_labels: I64 | None


class Sampler(ABC):
    """One kind of sample over one corpus.

    Args:
        samples: the index that ``build_samples`` made for this corpus, kind and length; may be memory-mapped.
        sequence_length: S, every sample is padded to it.
        mask_probability: share of the maskable positions that are predicted.
    """

    def __init__(
        self, corpus: Corpus, samples: I64, sequence_length: int, seed: int, mask_probability: float = 0.15
    ) -> None:
        self.corpus, self.samples = corpus, samples
        self.sequence_length, self.seed, self.mask_probability = sequence_length, seed, mask_probability

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self.samples)

    def batch(self, sample_ids: I64) -> Batch:
        """The samples with these global indices, int64 [B], each at least 0.

        Raises:
            DamagedFile: the shards hold an id that the vocabulary has not.
        """
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        epoch, index = np.divmod(sample_ids, len(self))
        order_seed = int(hash64(self.seed, _ORDER)[0])
        rows = np.asarray(self.samples[permute(index, len(self), order_seed, epoch)])
        text = self._text(rows, sample_ids)
        special = self.corpus.special
        attention_mask = np.arange(self.sequence_length) < text.length[:, None]
        maskable = attention_mask.copy()
        for special_id in set(special.values()):
            maskable &= text.input_ids != special_id
        mask_seed = int(hash64(self.seed, _MASK)[0])
        positions, labels = mask(
            text.input_ids, maskable, sample_ids, mask_seed, self.mask_probability, self.corpus.vocabulary, special
        )
        return Batch(text.input_ids, text.segment_ids, attention_mask, positions, labels, text.nsp_labels, sample_ids)

    @abstractmethod
    def _text(self, rows: I64, sample_ids: I64) -> _Text:
        """The samples of these index ``rows`` [B, columns], unmasked."""

    def _draw(self, purpose: int, sample_ids: I64) -> npt.NDArray[np.uint64]:
        return hash64(self.seed, purpose, sample_ids)


class _PairSampler(Sampler):
    """Two segments, CLS A SEP B SEP; half of the time B is a random one from another document."""

    def _text(self, rows: I64, sample_ids: I64) -> _Text:
        first, middle, end = self._sentences(rows, sample_ids)
        is_random = (self._draw(_IS_RANDOM, sample_ids) >> np.uint64(63)).astype(bool)
        room = self.sequence_length - 3
        a_start, b_start, b_end = (self.corpus.sentence_start(sentence) for sentence in (first, middle, end))
        a_length = b_start - a_start
        if is_random.any():
            partner, partner_end = self._partner(first[is_random], sample_ids[is_random], room - a_length[is_random])
            b_start[is_random] = self.corpus.sentence_start(partner)
            b_end[is_random] = self.corpus.sentence_start(partner_end)
        a_length, b_length = _truncate(a_length, b_end - b_start, room)
        return self._assemble(a_start, a_length, b_start, b_length, is_random.astype(np.int64))

    @abstractmethod
    def _sentences(self, rows: I64, sample_ids: I64) -> tuple[I64, I64, I64]:
        """First sentence of A, first of B, end of B; B follows A."""

    @abstractmethod
    def _partner(self, first: I64, sample_ids: I64, room: I64) -> tuple[I64, I64]:
        """First and end sentence of a B for the samples whose A begins at ``first``, from other documents."""

    def _random_sentence(self, first: I64, sample_ids: I64) -> tuple[I64, I64]:
        """A sentence drawn evenly from all that are not in the document of ``first``, and its document."""
        document = self.corpus.document_of(first)
        start = self.corpus.document_start(document)
        size = self.corpus.document_start(document + 1) - start
        drawn = below(self._draw(_PARTNER, sample_ids), self.corpus.sentences - size)
        sentence = np.where(drawn >= start, drawn + size, drawn)
        return sentence, self.corpus.document_of(sentence)

    def _assemble(self, a_start: I64, a_length: I64, b_start: I64, b_length: I64, nsp_labels: I64) -> _Text:
        """Lay the token spans A and B, int64 [B] each, between the special tokens."""
        special = self.corpus.special
        column = np.arange(self.sequence_length)[None, :]
        first_separator = a_length[:, None] + 1
        last_separator = first_separator + b_length[:, None] + 1
        in_a = (column > 0) & (column < first_separator)
        in_b = (column > first_separator) & (column < last_separator)
        source = np.where(in_a, a_start[:, None] + column - 1, b_start[:, None] + column - first_separator - 1)
        text = in_a | in_b
        input_ids = np.full(text.shape, special["pad"], dtype=np.int64)
        input_ids[:, 0] = special["cls"]
        input_ids[(column == first_separator) | (column == last_separator)] = special["sep"]
        input_ids[text] = self.corpus.take(source[text])
        segment_ids = ((column > first_separator) & (column <= last_separator)).astype(np.int64)
        return _Text(input_ids, segment_ids, last_separator[:, 0] + 1, nsp_labels)


class SentencePairSampler(_PairSampler):
    """The pairs of Gong et al. (2019): two adjacent single sentences."""

    def _sentences(self, rows: I64, sample_ids: I64) -> tuple[I64, I64, I64]:
        first = rows[:, 0]
        return first, first + 1, first + 2

    def _partner(self, first: I64, sample_ids: I64, room: I64) -> tuple[I64, I64]:
        sentence, _ = self._random_sentence(first, sample_ids)
        return sentence, sentence + 1


class SegmentPairSampler(_PairSampler):
    """The pairs of Devlin et al. (2019): a full sequence of sentences, split at a drawn boundary.

    A random B is filled up by the rule that filled the sequence, so that its length does not give it away.
    """

    def _sentences(self, rows: I64, sample_ids: I64) -> tuple[I64, I64, I64]:
        first, end = rows[:, 0], rows[:, 1]
        return first, first + 1 + below(self._draw(_SPLIT, sample_ids), end - first - 1), end

    def _partner(self, first: I64, sample_ids: I64, room: I64) -> tuple[I64, I64]:
        sentence, document = self._random_sentence(first, sample_ids)
        return sentence, fill(self.corpus, sentence, self.corpus.document_start(document + 1), room)


class PackedSampler(Sampler):
    """Full sequences without NSP: CLS, the running text with SEP between documents, SEP."""

    def _text(self, rows: I64, sample_ids: I64) -> _Text:
        first, end, document, end_document = rows.T
        special = self.corpus.special
        separators = end_document - document
        inner = end - first + separators
        column = np.arange(self.sequence_length)[None, :]
        input_ids = np.full((len(rows), self.sequence_length), special["pad"], dtype=np.int64)
        input_ids[:, 0] = special["cls"]
        is_separator = self._separators(first, document, separators)
        text = (column > 0) & (column <= inner[:, None]) & ~is_separator
        source = first[:, None] + column - 1 - np.cumsum(is_separator, axis=1)
        input_ids[is_separator | (column == inner[:, None] + 1)] = special["sep"]
        input_ids[text] = self.corpus.take(source[text])
        return _Text(input_ids, np.zeros_like(input_ids), inner + 2, None)

    def _separators(self, first: I64, document: I64, count: I64) -> npt.NDArray[np.bool_]:
        """[B, S]: where the separators stand, one after each of the ``count`` documents from ``document``."""
        marks = np.zeros((len(first), self.sequence_length), dtype=bool)
        sample = np.repeat(np.arange(len(first)), count)
        nth = np.arange(len(sample)) - np.repeat(np.cumsum(count) - count, count)
        ends = self.corpus.sentence_start(self.corpus.document_start(document[sample] + nth + 1))
        marks[sample, 1 + ends - first[sample] + nth] = True
        return marks


def _truncate(a_length: I64, b_length: I64, room: int) -> tuple[I64, I64]:
    """Cut the ends of A and B until both fit into ``room`` tokens; the longer one loses first."""
    a_cut = np.minimum(a_length, np.maximum(room - b_length, room - room // 2))
    return a_cut, np.minimum(b_length, room - a_cut)


SAMPLERS: dict[str, type[Sampler]] = {
    "sentence-pair": SentencePairSampler,
    "segment-pair": SegmentPairSampler,
    "packed": PackedSampler,
}
