"""The host's time of an update, beside Hugging Face's: python -m tools.null_gpu.host_time [--card A100] [--layers 3].

Kernels of the null GPU take no time, so what an update takes is the host's: Python, PyTorch, DeepSpeed and launches.
Contenders are those of `stacking bench`, with the same DeepSpeed configuration. Processor time counts, and only ratios
say something: they are those of this host.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from tools.null_gpu.card import CARDS
from tools.null_gpu.programs import host_seconds

GOAL = 0.5
"""Of Hugging Face's time, at most."""
_OURS = "stacking"
Repeats = Sequence[Mapping[str, float]]
"""Seconds of an update by section."""


class Beside(NamedTuple):
    """Our time beside that of another contender."""

    ratio: float
    """Median over the repeats."""
    least: float
    most: float


def beside(ours: Repeats, theirs: Repeats) -> Beside:
    """Compares whole updates, repeat by repeat."""
    pairs = zip(ours, theirs, strict=True)
    ratios = [sum(mine.values()) / sum(other.values()) for mine, other in pairs]
    return Beside(median(ratios), min(ratios), max(ratios))


def as_text(title: str, found: Mapping[str, Repeats]) -> str:
    """Returns a line for every contender: milliseconds of an update and of its sections, and our share of them."""
    lines = [title]
    for name, repeats in found.items():
        whole = median(sum(sections.values()) for sections in repeats)
        parts = ", ".join(f"{part} {_milliseconds(repeats, part):.1f}" for part in repeats[0])
        compared = "" if name == _OURS else f"; ours / theirs {_ratio(beside(found[_OURS], repeats))}"
        lines.append(f"  {name:22} {whole * 1e3:6.1f} ms: {parts}{compared}")
    return "\n".join(lines)


def _milliseconds(repeats: Repeats, section: str) -> float:
    return 1e3 * median(sections[section] for sections in repeats)


def _ratio(found: Beside) -> str:
    return f"{found.ratio:.2f} ({found.least:.2f}…{found.most:.2f}; goal {GOAL})"


def main() -> None:
    """Prints the times of full and of ragged samples."""
    parser = argparse.ArgumentParser(prog="python -m tools.null_gpu.host_time", description=__doc__)
    parser.add_argument("--card", choices=CARDS, default="A100")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key of the recipe")
    options = parser.parse_args()
    how = [str(number) for number in (options.layers, options.micro_batch, options.accumulation, options.repeats)]
    shape = f"{options.layers} layers of BERT-large, 128 tokens, {options.micro_batch} x {options.accumulation}"
    shape = ", ".join([shape, *options.set])
    for kind in ("full", "ragged"):
        print(
            as_text(f"{options.card}, {shape}, {kind}", host_seconds(options.card, [*how, kind, *options.set])),
            flush=True,
        )


if __name__ == "__main__":
    main()
