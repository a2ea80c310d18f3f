"""Randomness as a pure function: a counter-based hash and a permutation that needs no memory.

Nothing here has a state. A draw is a hash of what it is for (seed, sample, position, purpose), so any process can make
any draw at any time and gets the same one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6


def _finalise(words: U64) -> U64:
    """The output function of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _words(value: int | I64 | U64) -> U64:
    """``value`` as an array of at least one dimension, modulo 2**64."""
    if isinstance(value, int):
        return np.array([value & (2**64 - 1)], dtype=np.uint64)
    return np.atleast_1d(value).astype(np.uint64)


def hash64(*keys: int | I64 | U64) -> U64:
    """64 well-mixed bits for every combination of the broadcast ``keys``; the order of the keys matters."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _finalise((state ^ _words(key)) + _GOLDEN)
    return state


def below(bits: U64, bound: int | I64) -> I64:
    """Integers in [0, bound) from uniform ``bits``; the bias is below bound / 2**64."""
    return (bits % _words(bound)).astype(np.int64)


def permute(index: I64, size: int, seed: int, epoch: I64) -> I64:
    """Where ``index`` goes in the pseudo-random permutation of range(size) that belongs to (seed, epoch).

    A balanced Feistel network over the next even power of two, walked along its cycles until it is back below ``size``
    (Black and Rogaway: Ciphers with Arbitrary Finite Domains, 2002). Constant memory, about two evaluations an index.

    Args:
        index: int64 [N], each in [0, size).
        epoch: int64 [N], the epoch of each index.

    Returns:
        int64 [N], in [0, size); a bijection for every single epoch.
    """
    half_bits = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    values = np.atleast_1d(index).astype(np.uint64)
    epochs = np.broadcast_to(_words(epoch), values.shape)
    keys = [hash64(seed, epochs, i) for i in range(_ROUNDS)]
    pending = np.arange(len(values))
    while len(pending):
        values[pending] = _feistel(values[pending], half_bits, [key[pending] for key in keys])
        pending = pending[values[pending] >= np.uint64(size)]
    return values.astype(np.int64)


def _feistel(values: U64, half_bits: np.uint64, keys: list[U64]) -> U64:
    """One pass of the network over values of 2 * half_bits bits."""
    low_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & low_mask
    for key in keys:
        left, right = right, left ^ (_finalise(right ^ key) & low_mask)
    return (left << half_bits) | right
