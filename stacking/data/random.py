"""Draws random numbers as pure functions: a counter-based hash, and a permutation that needs almost no memory.

Nothing here has state. A draw is a hash of its purpose (seed, sample, position, purpose), so any process can make any
draw at any time and gets the same result.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from stacking.data.batch import I64

U64 = npt.NDArray[np.uint64]
Key = int | I64 | U64

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST_FACTOR, _SECOND_FACTOR = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1
_ROUNDS = 6


def _finalise(words: U64) -> U64:
    """The output function of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).

    A bijection. Works in place, so that a batch stays in the cache.
    """
    shifted = words >> np.uint64(30)
    words ^= shifted
    words *= np.uint64(_FIRST_FACTOR)
    np.right_shift(words, np.uint64(27), out=shifted)
    words ^= shifted
    words *= np.uint64(_SECOND_FACTOR)
    np.right_shift(words, np.uint64(31), out=shifted)
    words ^= shifted
    return words


def hash64(*keys: Key) -> U64:
    """Returns 64 well-mixed bits for every combination of the broadcast ``keys``, whose order matters."""
    plain = tuple(takewhile(lambda key: isinstance(key, int), keys))
    state = np.array([_hash_numbers(plain)], dtype=np.uint64)
    for key in keys[len(plain) :]:
        state = branch(state, key)
    return state


def branch(state: U64, key: Key) -> U64:
    """Extend the ``hash64`` behind ``state`` by one more ``key``; a bijection of ``key`` for every ``state``."""
    words = state ^ _words(key)
    words += np.uint64(_GOLDEN)
    return _finalise(words)


@lru_cache(maxsize=1024)
def _hash_numbers(keys: tuple[int, ...]) -> int:
    """Returns the ``hash64`` of scalars, such as a seed and a purpose, which recur with every batch; cached."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = branch(state, key)
    return int(state[0])


def below(bits: U64, bound: int | I64) -> I64:
    """Maps uniform ``bits`` to integers in [0, bound); the bias is below bound / 2**64."""
    return (bits % _words(bound)).view(np.int64)


def permute(index: I64, size: int, seed: int, epoch: I64) -> I64:
    """Maps ``index`` by the pseudo-random permutation of range(size) that belongs to (seed, epoch).

    A balanced Feistel network over the next even power of two, with cycle walking until the result is below ``size``
    (Black and Rogaway: Ciphers with Arbitrary Finite Domains, 2002): up to four evaluations per index on average.

    Args:
        index: int64 [N], each in [0, size).
        epoch: int64 [N], the epoch of each index.

    Returns:
        int64 [N], in [0, size); a bijection within each epoch.
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    values = np.array(index, dtype=np.int64, ndmin=1)
    epochs = np.broadcast_to(epoch, values.shape)
    for each in set(epochs.tolist()):
        tables = _round_tables(seed, each, half_bits)
        pending = np.flatnonzero(epochs == each)
        while len(pending):
            moved = _feistel(values[pending], half_bits, tables)
            values[pending] = moved
            pending = pending[moved >= size]
    return values


@lru_cache(maxsize=8)
def _round_tables(seed: int, epoch: int, half_bits: int) -> list[I64]:
    """Tabulates the network's round functions for an epoch, 2**half_bits values each, about √(corpus size)."""
    halves = np.arange(1 << half_bits, dtype=np.uint64)
    keys = [hash64(seed, epoch, number) for number in range(_ROUNDS)]
    return [(_finalise(halves ^ key) & np.uint64((1 << half_bits) - 1)).view(np.int64) for key in keys]


def _feistel(values: I64, half_bits: int, tables: list[I64]) -> I64:
    """Applies the network once to values of 2 * half_bits bits."""
    left, right = values >> half_bits, values & ((1 << half_bits) - 1)
    for table in tables:
        left, right = right, left ^ table[right]
    return (left << half_bits) | right


def _words(value: Key) -> U64:
    """Returns ``value`` as an array of at least one dimension, modulo 2**64."""
    if isinstance(value, int):
        return np.array([value & _WORD], dtype=np.uint64)
    words = np.atleast_1d(value)
    return words.view(np.uint64) if words.dtype.itemsize == 8 else words.astype(np.uint64)
