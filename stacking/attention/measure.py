"""Measures the attention of a model over a text: the streaming loop, and the sentences that are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stacking.attention.result import Attention, attention_of
from stacking.attention.tally import NotProbabilities, Tally
from stacking.attention.text import Text
from stacking.errors import UserError

if TYPE_CHECKING:
    from stacking.attention.probe import Probe

U8 = npt.NDArray[np.uint8]

_PROBABILITIES = 1 << 24
"""Probabilities of all layers and heads that are held at once, if a single sequence does not have more: 64 MiB."""
_MOST_AT_ONCE = 32


@dataclass(frozen=True)
class Example:
    """One sentence of n tokens, with the attention of every head."""

    words: tuple[str, ...]
    probabilities: U8
    """[L, A, n, n], 255 for all of a token's attention."""


def measure(
    probe: Probe, model: str, text: Text, samples: int, sequence_length: int, window: int, done: Callable[[int], None]
) -> Attention:
    """Returns the measurement of ``probe`` on the first ``samples`` sequences.

    Args:
        model: its name in the result.
        done: called with the number of sequences after each batch.

    Raises:
        UserError: the model's attention is unusable.
    """
    tally: Tally | None = None
    for batch in text.sequences(samples, _at_once(probe, sequence_length)):
        probabilities = probe.attend(batch.input_ids, batch.segment_ids, batch.mask)
        tally = tally or Tally(len(probabilities), probe.heads, window)
        try:
            tally.add(probabilities, batch.mask, batch.separators)
        except NotProbabilities as error:
            raise UserError(model, str(error), "give a model with ordinary softmax attention") from None
        done(len(batch.mask))
    if tally is None:
        raise UserError(text.name, "has no sequence of tokens", "give a longer text")
    return attention_of(tally, model, text.name, sequence_length)


def shown(probe: Probe, text: Text, sentences: Sequence[str], count: int) -> list[Example]:
    """Returns the given sentences or, without any, ``count`` of the text.

    Raises:
        UserError: a sentence is too long for the model.
    """
    examples = []
    for row in [text.encode(sentence) for sentence in sentences] or text.examples(count):
        if probe.longest is not None and len(row) > probe.longest:
            problem = f"is {len(row):,} tokens long, and the model has {probe.longest:,} positions"
            raise UserError("--sentence", problem, "give a shorter one")
        ids = row[None]
        found = probe.attend(ids, np.zeros_like(ids), np.ones(ids.shape, dtype=bool))[:, 0]
        words = tuple(text.word(int(token)) for token in row)
        examples.append(Example(words, np.round(255 * found).clip(0, 255).astype(np.uint8)))
    return examples


def _at_once(probe: Probe, sequence_length: int) -> int:
    one = probe.layers * probe.heads * sequence_length**2
    return min(_MOST_AT_ONCE, max(1, _PROBABILITIES // one))
