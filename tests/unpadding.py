"""Restores an unpadded batch from a padded one, which only tests need."""

from __future__ import annotations

import numpy as np

from stacking.data.batch import Batch
from stacking.data.unpad import Unpadded, positions_in


def unpad(batch: Batch) -> Unpadded:
    """Remove the padding of ``batch``, which is always at the end of a row."""
    real = np.flatnonzero(batch.attention_mask)
    lengths = np.count_nonzero(batch.attention_mask, axis=1)
    return Unpadded(
        input_ids=batch.input_ids.reshape(-1)[real],
        segment_ids=batch.segment_ids.reshape(-1)[real],
        position_ids=positions_in(lengths),
        lengths=lengths,
        mlm_positions=np.searchsorted(real, batch.mlm_positions),
        mlm_labels=batch.mlm_labels,
        nsp_labels=batch.nsp_labels,
    )
