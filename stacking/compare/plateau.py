"""Finds where masked-language-model training leaves its plateau.

Training begins with a long plateau near the entropy of the tokens, the loss of a model that knows how often each token
occurs and nothing about the words around it. A comparison of runs that end there shows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stacking.compare.curve import Point, cost_at, crossing
from stacking.compare.result import ArmResult
from stacking.data.corpus import Corpus
from stacking.terminal.units import count

LEFT_BELOW = 0.9
"""The plateau is left when the masked-word loss first falls to this share of the entropy."""
_COUNTED = 10_000_000
"""Maximum number of the corpus's first tokens from which the entropy is computed."""


def token_entropy(corpus: Corpus) -> float:
    """Returns the entropy of the token frequencies, in nats."""
    counts = np.bincount(corpus.head(_COUNTED))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def tokens_on_plateau(curve: Sequence[Point], entropy: float) -> float | None:
    """Returns the tokens after which a run leaves the plateau; None: it never does."""
    place = crossing([point.mlm_loss for point in curve], LEFT_BELOW * entropy)
    return None if place is None else cost_at(curve, place, "tokens")


def plateau_warnings(arms: Sequence[ArmResult], entropy: float) -> list[str]:
    """Warns of arms that end before the baseline, the first arm, has left the plateau."""
    found = []
    level = f"a masked-word loss of {LEFT_BELOW * entropy:.2f}"
    for position, run in enumerate(arms[0].runs):
        if not run.curve:
            continue
        leaves = tokens_on_plateau(run.curve, entropy)
        if leaves is None:
            found.append(f"seed {run.seed}: the baseline never leaves the plateau ({level}); train all arms longer")
            continue
        for arm in arms:
            last = arm.runs[position].final
            if last is not None and last.tokens < leaves:
                ends, left = count(last.tokens), count(leaves)
                problem = f"ends after {ends} tokens; the baseline leaves the plateau ({level}) after {left}"
                found.append(f"{arm.arm.name}, seed {run.seed} {problem}; train it longer")
    return found
