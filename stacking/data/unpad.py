"""A batch without its padding: the real tokens of all samples, one after the other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stacking.data.batch import Batch

I64 = npt.NDArray[np.int64]


class Unpadded(NamedTuple):
    """B samples that hold T tokens together, P of which are predicted."""

    input_ids: I64
    """[T], after masking."""
    segment_ids: I64
    """[T], as in ``Batch``."""
    position_ids: I64
    """[T], from 0 in each sample."""
    lengths: I64
    """[B], tokens of each sample; T is their sum."""
    mlm_positions: I64
    """[P], indices into the T tokens, ascending."""
    mlm_labels: I64
    """[P], the ids that stood there before masking."""
    nsp_labels: I64 | None
    """[B], as in ``Batch``."""


def unpad(batch: Batch) -> Unpadded:
    """``batch`` without its padding, which is always at the end of a row."""
    width = batch.input_ids.shape[1]
    lengths = np.count_nonzero(batch.attention_mask, axis=1)
    starts = np.cumsum(lengths) - lengths
    # Flat position b * S + s becomes starts[b] + s.
    shift = np.arange(len(lengths)) * width - starts
    real = np.flatnonzero(batch.attention_mask)
    mlm_positions = batch.mlm_positions - shift[batch.mlm_positions // width]
    return Unpadded(
        input_ids=batch.input_ids.reshape(-1)[real],
        segment_ids=batch.segment_ids.reshape(-1)[real],
        position_ids=np.arange(len(real)) - np.repeat(starts, lengths),
        lengths=lengths,
        mlm_positions=mlm_positions,
        mlm_labels=batch.mlm_labels,
        nsp_labels=batch.nsp_labels,
    )
