"""The registry of contenders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from stacking.bench.contender import Contender
from stacking.bench.ours import Padded, Recomputed, Stacking
from stacking.bench.trial import Trial

Factory = Callable[[Trial], Contender]


def _hugging_face(compiled: bool) -> Factory:
    from stacking.bench.hugging_face import HuggingFace  # needs transformers, which the others do not

    return partial(HuggingFace, compiled=compiled)


CONTENDERS: dict[str, Callable[[], Factory]] = {
    "stacking": lambda: Stacking,
    "padded": lambda: Padded,
    "checkpointing": lambda: Recomputed,
    "hugging-face": lambda: _hugging_face(compiled=False),
    "hugging-face-compiled": lambda: _hugging_face(compiled=True),
}
"""By name: a function that imports a contender's libraries and returns its constructor."""
