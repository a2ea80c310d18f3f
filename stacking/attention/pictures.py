"""Draws a measurement for a paper: each picture as SVG, PDF and PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from stacking.attention.measure import Example
from stacking.attention.result import SHARES, Attention
from stacking.report.plots import STYLE, VERMILION

FORMATS: dict[str, dict[str, Any]] = {
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    "png": {"dpi": 200, "metadata": {"Software": None}},
}
_TITLES = {"first": "to the first token", "separators": "to separators", "itself": "to itself", "entropy": "entropy"}
_COLOURS = "viridis"
_GAP = 2
"""Empty lines between the squares of two heads, in tokens."""
_MOST_LABELS = 13
"""Labels along one side of a small picture."""


def write_pictures(attention: Attention, examples: Sequence[Example], folder: Path) -> None:
    """Writes every picture of the measurement into ``folder``."""
    drawn: dict[str, Callable[[], Figure]] = {
        "heads": lambda: heads(attention),
        "positions": lambda: positions(attention),
        "similarity": lambda: similarity(attention),
    }
    if examples:
        drawn["sentence"] = lambda: sentence(examples[0])
    for name, draw in drawn.items():
        with mpl.rc_context({**STYLE, "svg.hashsalt": name, "pdf.fonttype": 42}):
            figure = draw()
            for suffix, options in FORMATS.items():
                figure.savefig(folder / f"{name}.{suffix}", format=suffix, **options)


def heads(attention: Attention) -> Figure:
    """Draws the four measures of every head, layers upwards."""
    layers, count = attention.described.layers, attention.described.heads
    width = min(2.6, max(1.7, 0.2 * count + 0.9))
    figure = Figure(figsize=(4 * width, max(1.9, min(5.0, 0.19 * layers + 1.1))), layout="constrained")
    for axes, name in zip(figure.subplots(1, 4, sharey=True), _TITLES, strict=True):
        values = np.array(getattr(attention.heads, name))
        top = None if name in SHARES else max(attention.even.entropy, float(values.max()))
        drawn = _map(axes, values, 0.0, top)
        axes.set_title(_TITLES[name], fontsize=10)
        axes.set_xlabel("head")
        _number(axes, layers, count)
        _bar(figure, axes, drawn)
    figure.axes[0].set_ylabel("layer")
    return figure


def positions(attention: Attention) -> Figure:
    """Draws the mean attention by relative position of every layer, over its heads, and that of even attention."""
    window, layers = attention.described.window, attention.described.layers
    means = np.array(attention.heads.by_position).mean(axis=1)
    offsets = np.arange(-window, window + 1)[1:-1]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    colours = mpl.colormaps[_COLOURS](np.linspace(0, 0.9, layers))
    for layer, (values, colour) in enumerate(zip(means, colours, strict=True)):
        label = f"layer {layer + 1}" if layer in (0, layers - 1) or layers <= 6 else None
        axes.plot(offsets, values[1:-1], color=colour, linewidth=1.3, label=label)
    even = attention.even.by_position[1:-1]
    axes.plot(offsets, even, color=VERMILION, linewidth=1.1, linestyle=(0, (4, 3)), label="even attention")
    axes.set_xlabel("position of the key relative to the query, tokens")
    axes.set_ylabel("share of attention")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    return figure


def similarity(attention: Attention) -> Figure:
    """Draws how alike all pairs of layers attend; crosses mark layers half the depth apart."""
    figure = Figure(figsize=(8.2, 3.7), layout="constrained")
    alike = attention.similarity
    panels = (
        ("cosine of the same head's attention", alike.cosine, None, 1.0),
        ("divergence by relative position, nats", alike.divergence, 0.0, None),
    )
    for axes, (title, values, low, high) in zip(figure.subplots(1, 2), panels, strict=True):
        drawn = _map(axes, np.array(values), low, high)
        axes.set_aspect("equal")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("layer")
        axes.set_ylabel("layer")
        _number(axes, attention.described.layers, attention.described.layers)
        _bar(figure, axes, drawn)
        pairs = [(pair.lower, pair.upper) for pair in alike.halves]
        both = [*pairs, *((upper, lower) for lower, upper in pairs)]
        axes.plot([a for a, _ in both], [b for _, b in both], "x", color=VERMILION, markersize=5)
    return figure


def sentence(example: Example) -> Figure:
    """Draws every head's attention in one sentence: rows are queries, columns keys, a square a head.

    The colours show square roots, so that small shares can be seen.
    """
    layers, count, length, _ = example.probabilities.shape
    side = 0.55 if max(layers, count) > 6 else 0.9
    figure = Figure(figsize=(side * count + 0.9, side * layers + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(_mosaic(np.sqrt(example.probabilities / 255)), cmap=_COLOURS, vmin=0, vmax=1, interpolation="nearest")
    middle, step = (length - 1) / 2, length + _GAP
    axes.set_xticks([middle + step * head for head in range(count)], [str(head + 1) for head in range(count)])
    axes.set_yticks([middle + step * row for row in range(layers)], [str(layers - row) for row in range(layers)])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    return figure


def _mosaic(squares: np.ndarray) -> np.ndarray:
    """Lays squares [L, A, n, n] out as one image, the first layer at the bottom, with empty lines in between."""
    layers, count, length, _ = squares.shape
    framed = np.full((layers, count, length + _GAP, length + _GAP), np.nan)
    framed[:, :, :length, :length] = squares
    image: np.ndarray = framed[::-1].transpose(0, 2, 1, 3).reshape(layers * (length + _GAP), count * (length + _GAP))
    return image[:-_GAP, :-_GAP]


def _map(axes: Axes, values: np.ndarray, low: float | None, high: float | None) -> AxesImage:
    axes.spines[:].set_visible(False)
    return axes.imshow(
        values, cmap=_COLOURS, vmin=low, vmax=high, origin="lower", aspect="auto", interpolation="nearest"
    )


def _bar(figure: Figure, axes: Axes, drawn: AxesImage) -> None:
    bar = figure.colorbar(drawn, ax=axes, fraction=0.08, pad=0.04)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8)


def _number(axes: Axes, layers: int, columns: int) -> None:
    for count, put in ((columns, axes.set_xticks), (layers, axes.set_yticks)):
        step = -(-count // _MOST_LABELS)
        ticks = list(range(0, count, step))
        put(ticks, [str(tick + 1) for tick in ticks])
    axes.tick_params(length=0, labelsize=8)
