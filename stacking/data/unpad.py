"""Defines the batch without padding: the concatenated real tokens of all samples."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from stacking.data.batch import I64, Batch


class Unpadded(NamedTuple):
    """B samples with T tokens in total, P of which are predicted."""

    input_ids: I64
    """[T], after masking."""
    segment_ids: I64
    """[T], as in ``Batch``."""
    position_ids: I64
    """[T], counted from 0 in each sample."""
    lengths: I64
    """[B], tokens of each sample; T is their sum."""
    mlm_positions: I64
    """[P], indices into the T tokens, ascending."""
    mlm_labels: I64
    """[P], the original ids before masking."""
    nsp_labels: I64 | None
    """[B], as in ``Batch``."""


def positions_in(lengths: I64) -> I64:
    """Returns 0, 1, ... for each consecutive piece of these ``lengths`` [B]: int64 [sum of the lengths]."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def pad(unpadded: Unpadded, width: int, pad_id: int) -> Batch:
    """Pads each sample to ``width`` tokens, with ``pad_id`` and segment 0."""
    attention_mask = np.arange(width) < unpadded.lengths[:, None]
    real = np.flatnonzero(attention_mask)
    input_ids, segment_ids = np.full(attention_mask.size, pad_id), np.zeros(attention_mask.size, dtype=np.int64)
    input_ids[real], segment_ids[real] = unpadded.input_ids, unpadded.segment_ids
    return Batch(
        input_ids=input_ids.reshape(attention_mask.shape),
        segment_ids=segment_ids.reshape(attention_mask.shape),
        attention_mask=attention_mask,
        mlm_positions=real[unpadded.mlm_positions],
        mlm_labels=unpadded.mlm_labels,
        nsp_labels=unpadded.nsp_labels,
    )


def split(unpadded: Unpadded, size: int) -> list[Unpadded]:
    """Splits ``unpadded`` into views of ``size`` samples each (the last may be smaller)."""
    ends = np.cumsum(unpadded.lengths)
    firsts = range(0, len(ends), size)
    tokens = [0, *(int(ends[min(first + size, len(ends)) - 1]) for first in firsts)]
    predictions = np.searchsorted(unpadded.mlm_positions, tokens).tolist()
    pieces = []
    for first, (start, end), (low, high) in zip(firsts, pairwise(tokens), pairwise(predictions), strict=True):
        rows = slice(first, first + size)
        pieces.append(
            Unpadded(
                input_ids=unpadded.input_ids[start:end],
                segment_ids=unpadded.segment_ids[start:end],
                position_ids=unpadded.position_ids[start:end],
                lengths=unpadded.lengths[rows],
                mlm_positions=unpadded.mlm_positions[low:high] - start,
                mlm_labels=unpadded.mlm_labels[low:high],
                nsp_labels=None if unpadded.nsp_labels is None else unpadded.nsp_labels[rows],
            )
        )
    return pieces
