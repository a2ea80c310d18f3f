"""Samples that were never written: random tokens in the form of `stacking.data.sampler`, where there are no data."""

from __future__ import annotations

import numpy as np

from stacking.data.batch import I64, Batch
from stacking.data.masking import mask
from stacking.data.random import below, hash64

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
SHORTEST_SHARE = 16
"""Ragged lengths are drawn uniformly from [S / 16, S]: 47 % of a padded batch is padding.

That is about what single documents leave of 512 positions: Krell et al., 2021 (arXiv 2107.02027) count over 50 % for
Wikipedia.
"""
_LENGTH, _TOKEN, _NSP = 1, 2, 3


class SyntheticSampler:
    """Pairs of two segments of random tokens; a pure function of (seed, sample number), as with real data.

    Args:
        ragged: draw the lengths (`SHORTEST_SHARE`) instead of filling every sequence.
        pairs: whether there is a next-sentence task.
    """

    def __init__(
        self, vocabulary: int, sequence_length: int, seed: int, mask_probability: float, ragged: bool, pairs: bool
    ) -> None:
        self.vocabulary, self.sequence_length, self.seed = vocabulary, sequence_length, seed
        self.mask_probability, self.ragged, self.pairs = mask_probability, ragged, pairs

    def batch(self, sample_ids: I64) -> Batch:
        """The samples with these numbers, int64 [B]."""
        size, column = self.sequence_length, np.arange(self.sequence_length)[None, :]
        length = self._lengths(sample_ids)
        tokens = hash64(self.seed, _TOKEN, sample_ids[:, None], column)
        input_ids = len(SPECIAL) + below(tokens, self.vocabulary - len(SPECIAL))
        attention_mask = column < length[:, None]
        first_separator, last_separator = (length // 2)[:, None], (length - 1)[:, None]
        input_ids[:, 0] = SPECIAL["cls"]
        input_ids[(column == first_separator) | (column == last_separator)] = SPECIAL["sep"]
        input_ids[~attention_mask] = SPECIAL["pad"]
        maskable = attention_mask & (input_ids >= len(SPECIAL))
        positions, labels = mask(
            input_ids, maskable, sample_ids, self.seed, self.mask_probability, self.vocabulary, SPECIAL
        )
        segment_ids = ((column > first_separator) & attention_mask).astype(np.int64) * self.pairs
        nsp_labels = below(hash64(self.seed, _NSP, sample_ids), 2) if self.pairs else None
        assert input_ids.shape == (len(sample_ids), size)
        return Batch(input_ids, segment_ids, attention_mask, positions, labels, nsp_labels, sample_ids)

    def _lengths(self, sample_ids: I64) -> I64:
        if not self.ragged:
            return np.full(len(sample_ids), self.sequence_length, dtype=np.int64)
        shortest = max(5, self.sequence_length // SHORTEST_SHARE)
        return shortest + below(hash64(self.seed, _LENGTH, sample_ids), self.sequence_length - shortest + 1)
