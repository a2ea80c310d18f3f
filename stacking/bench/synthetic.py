"""Draws synthetic samples for runs without data: random tokens in the form of `stacking.data.sampler`."""

from __future__ import annotations

import numpy as np

from stacking.data.batch import I64, Batch
from stacking.data.masking import Masking
from stacking.data.random import below, hash64
from stacking.data.unpad import Unpadded, pad, positions_in


def special_ids(padding_id: int) -> dict[str, int]:
    """Returns the ids of the special tokens: padding, and the four lowest other ids."""
    lowest = [number for number in range(5) if number != padding_id]
    return {"pad": padding_id, "unk": lowest[0], "cls": lowest[1], "sep": lowest[2], "mask": lowest[3]}


SPECIAL = special_ids(padding_id=0)
SHORTEST_SHARE = 16
"""Ragged lengths are drawn uniformly from [S / 16, S]: 47 % of a padded batch is padding.

That is close to what single documents leave of 512 positions: Krell et al., 2021 (arXiv 2107.02027) count over 50 % for
Wikipedia.
"""
_LENGTH, _TOKEN, _NSP = 1, 2, 3


class SyntheticSampler:
    """Pairs of two segments of random tokens; a pure function of (seed, sample number), as with real data.

    Args:
        padding_id: the padding token, which is never drawn.
        ragged: draw the lengths (`SHORTEST_SHARE`) instead of filling every sequence.
        pairs: whether there is a next-sentence task.
    """

    def __init__(
        self,
        vocabulary: int,
        sequence_length: int,
        seed: int,
        mask_probability: float,
        ragged: bool,
        pairs: bool,
        padding_id: int = 0,
    ) -> None:
        self.vocabulary, self.sequence_length, self.seed = vocabulary, sequence_length, seed
        self.ragged, self.pairs = ragged, pairs
        self.special = special_ids(padding_id)
        self._masking = Masking(seed, mask_probability, vocabulary, self.special)

    def unpadded(self, sample_ids: I64) -> Unpadded:
        """Returns the samples with these numbers, int64 [B]."""
        lengths = self._lengths(sample_ids)
        position_ids, first = positions_in(lengths), np.cumsum(lengths) - lengths
        tokens = hash64(self.seed, _TOKEN, np.repeat(sample_ids, lengths), position_ids)
        input_ids = below(tokens, self.vocabulary - len(self.special))
        for taken in sorted(self.special.values()):
            input_ids += input_ids >= taken
        input_ids[first] = self.special["cls"]
        input_ids[first + lengths // 2] = input_ids[first + lengths - 1] = self.special["sep"]
        segment_ids = (position_ids > np.repeat(lengths // 2, lengths)).astype(np.int64) * self.pairs
        nsp_labels = below(hash64(self.seed, _NSP, sample_ids), 2) if self.pairs else None
        positions, labels = self._masking.apply(input_ids, position_ids, lengths, sample_ids)
        return Unpadded(input_ids, segment_ids, position_ids, lengths, positions, labels, nsp_labels)

    def batch(self, sample_ids: I64) -> Batch:
        """Returns the same samples, each padded to ``sequence_length``."""
        return pad(self.unpadded(sample_ids), self.sequence_length, self.special["pad"])

    def _lengths(self, sample_ids: I64) -> I64:
        if not self.ragged:
            return np.full(len(sample_ids), self.sequence_length, dtype=np.int64)
        shortest = max(5, self.sequence_length // SHORTEST_SHARE)
        return shortest + below(hash64(self.seed, _LENGTH, sample_ids), self.sequence_length - shortest + 1)
