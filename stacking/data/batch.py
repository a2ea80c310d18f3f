"""Defines the padded batch that a sampler passes to the model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """B samples of S positions, P of which are predicted."""

    input_ids: I64
    """[B, S], after masking."""
    segment_ids: I64
    """[B, S], 0 for the first segment and its specials, 1 for the second."""
    attention_mask: npt.NDArray[np.bool_]
    """[B, S], True at real tokens."""
    mlm_positions: I64
    """[P], flat positions b * S + s, ascending."""
    mlm_labels: I64
    """[P], the original ids before masking."""
    nsp_labels: I64 | None
    """[B], 0 if the second segment follows the first and 1 if it is random; None without this task."""
