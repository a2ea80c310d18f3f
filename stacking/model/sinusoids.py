"""Computes the fixed vectors of sinusoidal positions, without torch: an export writes them too."""

from __future__ import annotations

import numpy as np


def sinusoids(positions: int, hidden: int) -> np.ndarray:
    """Returns sines, then cosines, of geometrically spaced wavelengths from 2π to 10⁴ · 2π: fp32 [positions, hidden].

    This is the layout of the code released with Gong et al. (2019), after Vaswani et al. (2017).
    """
    half = hidden // 2
    frequencies = 10_000.0 ** (-np.arange(half) / (half - 1))
    angles = np.arange(positions)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
