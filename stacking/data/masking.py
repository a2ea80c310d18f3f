"""Draws masked-language-model targets: the positions to predict, and what replaces them (Devlin et al., 2019)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stacking.data.batch import I64
from stacking.data.random import below, branch, hash64

U64 = npt.NDArray[np.uint64]

MASKED_SHARE = 0.8
RANDOM_SHARE = 0.1

_CHOICE, _KIND, _REPLACEMENT = 1, 2, 3
_LAST = np.uint64(2**64 - 1)


class Masking:
    """The masking rule of one run; every draw is a hash of (seed, sample, position).

    In each sample exactly round(probability * maskable) positions are predicted, at least one if any is maskable. Of
    these, 80 % become ``mask``, 10 % a random non-special id, and 10 % stay.

    Args:
        special: the ids that are neither masked nor drawn, including ``mask``.
    """

    def __init__(self, seed: int, probability: float, vocabulary: int, special: dict[str, int]) -> None:
        self.seed, self.probability, self.mask_id = seed, probability, special["mask"]
        self._specials = sorted(set(special.values()))
        self._is_text = np.ones(vocabulary, dtype=bool)
        self._is_text[self._specials] = False

    def apply(self, input_ids: I64, position_ids: I64, lengths: I64, sample_ids: I64) -> tuple[I64, I64]:
        """Masks ``input_ids`` in place.

        Args:
            input_ids: int64 [T], the concatenated samples; modified.
            position_ids: int64 [T], from 0 in each sample.
            lengths: int64 [B], tokens of each sample.
            sample_ids: int64 [B].

        Returns:
            Indices into the T tokens, int64 [P], ascending, and their original ids, int64 [P].
        """
        # One hash per (seed, sample, position), from which the three draws derive.
        state = branch(np.repeat(hash64(self.seed, sample_ids), lengths), position_ids)
        positions = np.flatnonzero(self._chosen(branch(state, _CHOICE), self._is_text[input_ids], lengths))
        labels, state = input_ids[positions], state[positions]
        kind = branch(state, _KIND).astype(np.float64) / 2.0**64
        random_ids = self._random_ids(branch(state, _REPLACEMENT))
        replaced = np.where(kind < MASKED_SHARE + RANDOM_SHARE, random_ids, labels)
        input_ids[positions] = np.where(kind < MASKED_SHARE, self.mask_id, replaced)
        return positions, labels

    def _chosen(self, keys: U64, maskable: npt.NDArray[np.bool_], lengths: I64) -> npt.NDArray[np.bool_]:
        """Selects, as bool [T], the maskable positions of each sample with its smallest ``keys``, all distinct."""
        starts = np.cumsum(lengths) - lengths
        available = np.add.reduceat(maskable, starts, dtype=np.int64) if len(starts) else lengths
        wanted = np.minimum(np.maximum(np.rint(self.probability * available).astype(np.int64), 1), available)
        keys[~maskable] = _LAST
        rows = np.full((len(lengths), int(lengths.max(initial=0))), _LAST)
        rows[np.arange(rows.shape[1]) < lengths[:, None]] = keys
        rows.sort(axis=1)
        threshold = rows[np.arange(len(rows)), np.maximum(wanted, 1) - 1]
        return (keys <= np.repeat(threshold, lengths)) & maskable

    def _random_ids(self, bits: U64) -> I64:
        """Draws uniform non-special ids: from a smaller range, then shifted past each special id."""
        ids = below(bits, len(self._is_text) - len(self._specials))
        for taken in self._specials:
            ids += ids >= taken
        return ids
