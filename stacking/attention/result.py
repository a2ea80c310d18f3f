"""What a measurement found, and its file ``attention.json``."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from stacking.attention.tally import Measures, Tally
from stacking.errors import DamagedFile
from stacking.storage.files import read_json, write_json
from stacking.storage.frozen import Frozen

RESULT = "attention.json"
SHARES = ("first", "separators", "itself")
"""Measures that are shares of a query's attention."""

F64 = npt.NDArray[np.float64]
Matrix = tuple[tuple[float, ...], ...]


class Described(Frozen):
    """What was measured, on what."""

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
    """The same of a head that attends evenly, on the same text."""

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
    """A whole measurement."""

    kind: Literal["attention"] = "attention"
    format: Literal[1] = 1
    described: Described
    heads: Heads
    even: Even
    similarity: Similarity

    def write(self, folder: Path) -> None:
        """Write ``attention.json`` into ``folder``."""
        write_json(folder / RESULT, self.model_dump(mode="json"))


def read_attention(folder: Path) -> Attention:
    """Read ``folder/attention.json``.

    Raises:
        UserError: there is none.
        DamagedFile: it is not what this version writes.
    """
    content = read_json(folder / RESULT)
    try:
        return Attention.model_validate(content)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "no object"
        raise DamagedFile(folder / RESULT, f"is not a measurement of attention ({place})", "measure again") from None


def attention_of(tally: Tally, model: str, text: str, sequence_length: int) -> Attention:
    """Return what ``tally`` has summed."""
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
    """Return both matrices [L, L] and what they say of layers half the depth apart."""
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
    """Return the Jensen-Shannon divergence in nats (Lin, 1991) between all pairs of L distributions [L, N]: [L, L]."""
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
