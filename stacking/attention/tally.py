"""Sums attention probabilities over sequences, in memory that does not depend on how many there are.

Shapes: L layers, B sequences, A heads, S positions, W the window. A query is the token that attends, a key the one that
is attended to. Every mean is over all real queries, so each token counts the same; padding counts nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

_SUM_TOLERANCE = 1e-2
"""By how much a row of probabilities may miss 1; bfloat16 misses it by some thousandths."""


class NotProbabilities(ValueError):
    """Raised if a model's attention over the real tokens does not add up to 1."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Means over all queries; all but ``entropy`` are shares of a query's attention.

    The leading dimensions are [L, A] for a model, and none for a reference.
    """

    first: F64
    """To the first token, [CLS] in BERT."""
    separators: F64
    """To all separators of the sequence together, [SEP] in BERT."""
    itself: F64
    """Of a query to its own position."""
    entropy: F64
    """In nats, over the real tokens."""
    by_position: F64
    """[..., 2W + 1]: to the key ``d`` positions further right, for d from -W to W; the ends hold all beyond them."""


class Tally:
    """Running sums over the sequences of one model.

    Args:
        window: W, the largest relative position that is told apart.
    """

    def __init__(self, layers: int, heads: int, window: int) -> None:
        self.layers, self.heads, self.window = layers, heads, window
        self.sequences = self.queries = 0
        self._own = _Sums((layers, heads), window)
        self._even = _Sums((), window)
        self._cosine = np.zeros((heads, layers, layers))

    def add(self, probabilities: F32, mask: Bool, separators: Bool) -> None:
        """Adds B sequences.

        Args:
            probabilities: [L, B, A, S, S], the last dimension over keys. Overwritten.
            mask: [B, S], True at real tokens.
            separators: [B, S], True at real separators.

        Raises:
            NotProbabilities: a real query's attention to real keys does not add up to 1.
        """
        probabilities *= mask[:, None, None, :]
        _check(probabilities, mask)
        probabilities *= mask[:, None, :, None]
        self.sequences += len(mask)
        self.queries += int(mask.sum())
        self._add_shares(probabilities, separators)
        self._add_cosines(probabilities)
        self._add_even(mask, separators)

    def means(self) -> Measures:
        """Returns the model's means so far, [L, A]."""
        return self._own.means(self.queries)

    def even(self) -> Measures:
        """Returns what a head would have that attends to all real tokens evenly."""
        return self._even.means(self.queries)

    def cosines(self) -> F64:
        """Returns the similarity [L, L] of all pairs of layers.

        It is the cosine between two layers' attention of the same query in the same head, averaged over queries and
        heads.
        """
        cosines: F64 = self._cosine.mean(axis=0) / self.queries
        return cosines

    def _add_shares(self, probabilities: F32, separators: Bool) -> None:
        own = self._own
        to_keys = probabilities.sum(axis=3, dtype=np.float64)  # [L, B, A, S]
        own.first += to_keys[..., 0].sum(axis=1)
        own.separators += np.einsum("lbak,bk->la", to_keys, separators.astype(np.float64))
        own.entropy += _entropy(probabilities)
        offsets = _by_offset(probabilities.sum(axis=1, dtype=np.float64))
        own.itself += offsets[..., probabilities.shape[-1] - 1]
        own.by_position += _clipped(offsets, self.window)

    def _add_cosines(self, probabilities: F32) -> None:
        for head in range(self.heads):
            rows = probabilities[:, :, head]
            length = np.sqrt(np.einsum("lbqk,lbqk->lbq", rows, rows))
            unit = (rows / np.maximum(length, 1e-12)[..., None]).reshape(self.layers, -1)
            self._cosine[head] += unit @ unit.T

    def _add_even(self, mask: Bool, separators: Bool) -> None:
        even = self._even
        for length, ends in zip(mask.sum(axis=1), separators.sum(axis=1), strict=True):
            n = int(length)
            even.first += 1.0
            even.separators += float(ends)
            even.itself += 1.0
            even.entropy += n * np.log(n)
            even.by_position += _clipped((n - np.abs(np.arange(1 - n, n))) / n, self.window)


class _Sums:
    def __init__(self, leading: tuple[int, ...], window: int) -> None:
        self.first, self.separators, self.itself, self.entropy = (np.zeros(leading) for _ in range(4))
        self.by_position = np.zeros((*leading, 2 * window + 1))

    def means(self, count: int) -> Measures:
        return Measures(**{name: total / count for name, total in vars(self).items()})


def _check(probabilities: F32, mask: Bool) -> None:
    totals = probabilities.sum(axis=-1)  # [L, B, A, S]
    off = np.abs(totals - 1).max(axis=(0, 2))[mask]
    if not (off <= _SUM_TOLERANCE).all():
        raise NotProbabilities(f"a token's attention to the other real tokens adds up to {1 + off.max():.3g}, not to 1")


def _entropy(probabilities: F32) -> F64:
    """Returns the sum over queries of -Σ p ln p, [L, A]; layer by layer, for the logarithms take memory."""
    sums = []
    for layer in probabilities:
        logs = np.log(layer, out=np.zeros_like(layer), where=layer > 0)
        sums.append(-np.einsum("baqk,baqk->a", layer, logs, dtype=np.float64))
    return np.stack(sums)


def _by_offset(square: F64) -> F64:
    """Sums the diagonals of [..., S, S]: [..., 2S - 1], from keys far to the left to keys far to the right."""
    size = square.shape[-1]
    return np.stack([np.trace(square, d, axis1=-2, axis2=-1) for d in range(1 - size, size)], axis=-1)


def _clipped(offsets: F64, window: int) -> F64:
    """Fold [..., 2S - 1] relative positions into [..., 2W + 1]; the ends collect what lies beyond them."""
    reach = (offsets.shape[-1] - 1) // 2
    positions = np.clip(np.arange(-reach, reach + 1), -window, window) + window
    folded = np.zeros((*offsets.shape[:-1], 2 * window + 1))
    for position in range(2 * window + 1):
        folded[..., position] = offsets[..., positions == position].sum(axis=-1)
    return folded
