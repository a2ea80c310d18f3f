"""The table of a measurement for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from stacking.attention.result import Attention
from stacking.report.tables import Table


def layer_table(attention: Attention) -> Table:
    """List the means over heads of every layer and, below, those of even attention."""
    described, heads, even = attention.described, attention.heads, attention.even
    window = described.window
    counterparts = {pair.lower: pair.cosine for pair in attention.similarity.halves}
    rows = []
    for layer in range(described.layers):
        shares = [_mean(values[layer]) for values in (heads.first, heads.separators, heads.itself)]
        beside = [_mean([head[window + d] for head in heads.by_position[layer]]) for d in (-1, 1)]
        cosine = f"{counterparts[layer]:.3f}" if layer in counterparts else ""
        numbers = [*shares, *beside, _mean(heads.entropy[layer])]
        rows.append((str(layer + 1), *(f"{number:.3f}" for number in numbers), cosine))
    shares = [even.first, even.separators, even.itself]
    beside = [even.by_position[window + d] for d in (-1, 1)]
    rows.append(("even", *(f"{number:.3f}" for number in (*shares, *beside, even.entropy)), ""))
    half = described.layers // 2
    like = f"like layer + {half}" if attention.similarity.halves else ""
    return Table(("layer", "to first", "separators", "itself", "before", "after", "entropy", like), rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
