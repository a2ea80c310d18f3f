"""Defines what a measurement found, its file ``attention.json``, and its table for the terminal."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stacking.attention.tally import Measures, Tally
from stacking.report.tables import Table
from stacking.storage.files import write_json
from stacking.storage.frozen import Frozen

RESULT = "attention.json"
SHARES = ("first", "separators", "itself")
"""Measures that are shares of a query's attention."""

F64 = npt.NDArray[np.float64]
Matrix = tuple[tuple[float, ...], ...]


class Described(Frozen):
    """What was measured: the model and the text."""

    model: str
    layers: int
    heads: int
    text: str
    samples: int
    tokens: int
    """Real ones, special tokens included."""
    sequence_length: int
    """The most tokens of a sample."""
    window: int


class Heads(Frozen):
    """Means per layer and head; see `stacking.attention.tally.Measures`."""

    first: Matrix
    separators: Matrix
    itself: Matrix
    entropy: Matrix
    by_position: tuple[Matrix, ...]


class Even(Frozen):
    """The same means for a head that attends evenly, on the same text."""

    first: float
    separators: float
    itself: float
    entropy: float
    by_position: tuple[float, ...]


class Pair(Frozen):
    """Layers i and i + L/2, counted from 0."""

    lower: int
    upper: int
    cosine: float
    divergence: float


class Similarity(Frozen):
    """How alike the layers attend."""

    cosine: Matrix
    """[L, L]: of the same query's attention in the same head; 1 where it is the same."""
    divergence: Matrix
    """[L, L]: Jensen-Shannon, in nats, between the layers' means by relative position over all heads; 0 to ln 2."""
    halves: tuple[Pair, ...]
    """Each layer of the lower half with its counterpart in the upper half; empty if L is odd."""
    halves_cosine: float | None
    """The mean over ``halves``."""
    others_cosine: float | None
    """The mean over all other pairs of different layers."""


class Attention(Frozen):
    """The whole measurement: the content of ``attention.json``."""

    kind: Literal["attention"] = "attention"
    format: Literal[1] = 1
    described: Described
    heads: Heads
    even: Even
    similarity: Similarity

    def write(self, folder: Path) -> None:
        """Writes ``attention.json`` into ``folder``, atomically."""
        write_json(folder / RESULT, self.model_dump(mode="json"))


def attention_of(tally: Tally, model: str, text: str, sequence_length: int) -> Attention:
    """Returns what ``tally`` has summed."""
    measures = tally.means()
    described = Described(
        model=model,
        layers=tally.layers,
        heads=tally.heads,
        text=text,
        samples=tally.sequences,
        tokens=tally.queries,
        sequence_length=sequence_length,
        window=tally.window,
    )
    return Attention(
        described=described,
        heads=Heads.model_validate(_lists(measures)),
        even=Even.model_validate(_lists(tally.even())),
        similarity=similarity_of(tally.cosines(), divergences(measures.by_position.mean(axis=1))),
    )


def similarity_of(cosines: F64, between: F64) -> Similarity:
    """Returns both matrices [L, L] and what they say about layers half the depth apart."""
    layers = len(cosines)
    half = layers // 2
    pairs = [(low, low + half) for low in range(half)] if layers % 2 == 0 else []
    others = [pair for pair in combinations(range(layers), 2) if pair not in pairs]
    return Similarity(
        cosine=_rows(cosines),
        divergence=_rows(between),
        halves=tuple(
            Pair(lower=a, upper=b, cosine=float(cosines[a, b]), divergence=float(between[a, b])) for a, b in pairs
        ),
        halves_cosine=_mean(cosines, pairs),
        others_cosine=_mean(cosines, others),
    )


def divergences(distributions: F64) -> F64:
    """Returns the Jensen-Shannon divergence in nats (Lin, 1991) between all pairs of L distributions [L, N]: [L, L]."""
    one, other = distributions[:, None], distributions[None]
    middle = (one + other) / 2
    found: F64 = np.maximum((_entropies(middle) - (_entropies(one) + _entropies(other)) / 2), 0.0)
    return found


def _entropies(distributions: F64) -> F64:
    logs = np.log(distributions, out=np.zeros_like(distributions), where=distributions > 0)
    entropies: F64 = -(distributions * logs).sum(axis=-1)
    return entropies


def _mean(matrix: F64, pairs: list[tuple[int, int]]) -> float | None:
    return float(np.mean([matrix[pair] for pair in pairs])) if pairs else None


def _lists(measures: Measures) -> dict[str, Any]:
    return {name: values.tolist() for name, values in vars(measures).items()}


def _rows(matrix: F64) -> Matrix:
    return tuple(tuple(row) for row in matrix.tolist())


def layer_table(attention: Attention) -> Table:
    """Lists the means over heads of every layer and, below, those of even attention."""
    described, heads, even = attention.described, attention.heads, attention.even
    window = described.window
    counterparts = {pair.lower: pair.cosine for pair in attention.similarity.halves}
    rows = []
    for layer in range(described.layers):
        shares = [fmean(values[layer]) for values in (heads.first, heads.separators, heads.itself)]
        beside = [fmean([head[window + d] for head in heads.by_position[layer]]) for d in (-1, 1)]
        cosine = f"{counterparts[layer]:.3f}" if layer in counterparts else ""
        numbers = [*shares, *beside, fmean(heads.entropy[layer])]
        rows.append((str(layer + 1), *(f"{number:.3f}" for number in numbers), cosine))
    shares = [even.first, even.separators, even.itself]
    beside = [even.by_position[window + d] for d in (-1, 1)]
    rows.append(("even", *(f"{number:.3f}" for number in (*shares, *beside, even.entropy)), ""))
    half = described.layers // 2
    like = f"like layer + {half}" if attention.similarity.halves else ""
    return Table(("layer", "to first", "separators", "itself", "before", "after", "entropy", like), rows)
