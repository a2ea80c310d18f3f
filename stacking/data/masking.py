"""Masked-language-model targets: which positions are predicted, and what stands there instead (Devlin et al., 2019)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stacking.data.random import below, hash64

I64 = npt.NDArray[np.int64]

MASKED_SHARE = 0.8
RANDOM_SHARE = 0.1

_CHOICE, _KIND, _REPLACEMENT = 1, 2, 3


def mask(
    input_ids: I64,
    maskable: npt.NDArray[np.bool_],
    sample_ids: I64,
    seed: int,
    probability: float,
    vocabulary: int,
    special: dict[str, int],
) -> tuple[I64, I64]:
    """Mask ``input_ids`` in place; every draw is a hash of (seed, sample, position).

    Of each sample exactly round(probability * maskable) positions are predicted, at least one where any is maskable.
    80 % of these become ``mask``, 10 % a random id that is not special, 10 % stay.

    Args:
        input_ids: int64 [B, S], changed in place.
        maskable: bool [B, S].
        sample_ids: int64 [B].

    Returns:
        Flat positions, int64 [P], ascending, and the ids that stood there, int64 [P].
    """
    length = input_ids.shape[1]
    positions = np.flatnonzero(_chosen(maskable, sample_ids, seed, probability))
    flat = input_ids.reshape(-1)
    labels = flat[positions]
    samples, offsets = sample_ids[positions // length], positions % length
    kind = hash64(seed, samples, offsets, _KIND).astype(np.float64) / 2.0**64
    random_ids = _random_ids(hash64(seed, samples, offsets, _REPLACEMENT), vocabulary, special)
    replaced = np.where(kind < MASKED_SHARE + RANDOM_SHARE, random_ids, labels)
    flat[positions] = np.where(kind < MASKED_SHARE, special["mask"], replaced)
    return positions, labels


def _chosen(maskable: npt.NDArray[np.bool_], sample_ids: I64, seed: int, probability: float) -> npt.NDArray[np.bool_]:
    """[B, S]: the positions of each row whose hash is among its smallest."""
    length = maskable.shape[1]
    available = maskable.sum(axis=1)
    wanted = np.minimum(np.maximum(np.rint(probability * available).astype(np.int64), 1), available)
    keys = hash64(seed, sample_ids[:, None], np.arange(length)[None, :], _CHOICE) >> np.uint64(1)
    keys = np.where(maskable, keys, np.uint64(2**64 - 1))
    order = np.argsort(keys, axis=1, kind="stable")
    chosen = np.zeros_like(maskable)
    np.put_along_axis(chosen, order, np.arange(length)[None, :] < wanted[:, None], axis=1)
    return chosen


def _random_ids(bits: npt.NDArray[np.uint64], vocabulary: int, special: dict[str, int]) -> I64:
    """Uniform ids that are not special: drawn from fewer ids, then moved past each special one."""
    specials = sorted(set(special.values()))
    ids = below(bits, vocabulary - len(specials))
    for taken in specials:
        ids += ids >= taken
    return ids
