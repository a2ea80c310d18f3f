"""A roofline of `tools/gpu_bench`'s training steps: python -m tools.null_gpu.roofline. No card has been measured.

    matrices     FLOPs / (peak x share that matrix products reach)
    attention    FLOPs / (peak x share that its kernel reaches)
    memory       bytes of what lies between the matrices and of the scores / (bandwidth x share)
    optimizer    `stacking.estimate.compute`
    host         launches, as the null GPU counts them, x seconds per launch

A step takes the sum of the first four, or as long as the host if that takes longer. Every assumption has a cautious and
a hopeful value, and so has the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from stacking.bench.targets import Wanted, targets
from stacking.estimate.compute import Tabled
from stacking.hardware.presets import DEVICE_CLASSES, VALUE_BYTES, DeviceClass
from stacking.model.config import ModelConfig
from stacking.model.size import executed_flops, training_flops
from stacking.planning.plan import Plan, StagePlan
from tools.benchmarks.gpu_cases import CASES, DEEP, MOST_SHARE, SHALLOW


class Assumption(NamedTuple):
    """A number that was not measured here, as a range."""

    cautious: float
    hopeful: float
    source: str

    def at(self, hopeful: bool) -> float:
        """Returns one end of the range."""
        return self.hopeful if hopeful else self.cautious


class Traffic(NamedTuple):
    """Values that a layer's kernels between the matrices read and write per token, forward and backward."""

    hidden: int
    """In widths of the model."""
    intermediate: int
    """In widths of the feed-forward network."""


class Launches(NamedTuple):
    """Kernels of an update of one full micro-batch, as `tools.null_gpu.measure bert-base` counts them at two depths."""

    shallow: int
    """Of 3 layers."""
    deep: int
    """Of 12."""

    def at(self, layers: int) -> float:
        """Returns those of another depth, on the line through both."""
        return self.shallow + (self.deep - self.shallow) / 9 * (layers - 3)


@dataclass(frozen=True)
class Card:
    """What is assumed of a device class."""

    matrices: Assumption
    attention: Assumption
    traffic: Traffic
    score_passes: int
    """How often the vocabulary scores are read or written, beside the products that make and use them."""
    launches: Launches


FUSED, EAGER = Traffic(23, 6), Traffic(39, 6)
"""Counted by the operands of each kernel. Fused: a residual sum with dropout and LayerNorm reads 2 and writes 2 widths,
backward 5; GELU 2 and 3 of the feed-forward network's; the biases' sums read 5 and 1. Eager: dropout, sum and LayerNorm
by themselves read and write 7, backward 10."""
_ASSUMED = "assumed"
_SHAPES = 0.8
"""Cautious share of the best matrix products for BERT's, which are not of the best shape; assumed."""


def _matrices(best: float, source: str) -> Assumption:
    return Assumption(_SHAPES * best, best, source)


_HOPPER = Card(
    matrices=_matrices(0.80, "792.1 of 989 TFLOPS, H100 in stas00/ml-engineering's table of achievable matmul FLOPS"),
    attention=Assumption(
        0.1, 0.21, "204 of 989 TFLOPS at 512 tokens (Dao-AILab/flash-attention#2688), half at 128: assumed"
    ),
    traffic=FUSED,
    score_passes=3,
    launches=Launches(491, 1315),
)
CARDS: Mapping[str, Card] = {
    "p40": Card(
        matrices=_matrices(0.8, _ASSUMED),
        attention=Assumption(0.3, 0.5, _ASSUMED),
        traffic=EAGER,
        score_passes=8,
        launches=Launches(413, 1185),
    ),
    "v100": Card(
        matrices=_matrices(0.78, "97.4 of 125 TFLOPS (zzc0721/torch-performance-test-data#140)"),
        attention=Assumption(0.1, 0.2, _ASSUMED),
        traffic=FUSED,
        score_passes=8,
        launches=Launches(1210, 3501),
    ),
    "a100": replace(
        _HOPPER,
        matrices=_matrices(0.86, "267.9 of 312 TFLOPS, A100 in stas00/ml-engineering's table"),
        attention=Assumption(0.2, 0.4, _ASSUMED),
    ),
    "h100": _HOPPER,
    "h200": _HOPPER,
}
"""Scores: one kernel reads them twice and writes the gradient in their place; in PyTorch alone, with an fp32 copy,
eight passes are assumed. Hopper cards launch what an A100 does."""
FULL = tuple(name for name, case in CASES.items() if not case.wanted.ragged)
"""Cases whose samples have full length."""
MEMORY = Assumption(0.7, 0.9, _ASSUMED)
LAUNCH_SECONDS = Assumption(20e-6, 5e-6, _ASSUMED)
_HOST = f"{LAUNCH_SECONDS.hopeful * 1e6:.0f}–{LAUNCH_SECONDS.cautious * 1e6:.0f} µs of the host"
_RECOMPUTED = 7 / 6
"""Products of a flash attention kernel, which computes the scores once more, in those of plain attention."""


class Estimate(NamedTuple):
    """Seconds of one update."""

    matrices: float
    attention: float
    memory: float
    optimizer: float
    host: float

    @property
    def seconds(self) -> float:
        """The device's time, or the host's if that is longer."""
        return max(self.matrices + self.attention + self.memory + self.optimizer, self.host)


@dataclass(frozen=True)
class Row:
    """A case on a card."""

    title: str
    plan: Plan
    """Of one stage, which takes one micro-batch an update."""

    @property
    def device(self) -> DeviceClass:
        """The card's class."""
        return DEVICE_CLASSES[self.plan.launch.device]

    @property
    def stage(self) -> StagePlan:
        """The stage."""
        return self.plan.stages[0]

    @property
    def sequences_per_second(self) -> tuple[float, float]:
        """Cautious and hopeful."""
        low, high = (self.stage.micro_batch / self.estimate(hopeful).seconds for hopeful in (False, True))
        return low, high

    @property
    def mfu(self) -> tuple[float, float]:
        """The share of the peak that the model's own FLOPs take, cautious and hopeful."""
        flops = training_flops(self._model, self._length, self._predicted)
        low, high = (flops * rate / self._peak for rate in self.sequences_per_second)
        return low, high

    def estimate(self, hopeful: bool) -> Estimate:
        """Returns the seconds of one update."""
        card, batch = CARDS[self.device.name], self.stage.micro_batch
        attention = self._attention_flops()
        matrices = executed_flops(self._model, self._length, self._predicted) - attention
        optimizer = Tabled(self.plan, self.device, cores=1).work(self.stage).optimizer
        return Estimate(
            matrices=batch * matrices / (self._peak * card.matrices.at(hopeful)),
            attention=batch * _RECOMPUTED * attention / (self._peak * card.attention.at(hopeful)),
            memory=batch * self._bytes(card) / (self.device.memory_bandwidth * MEMORY.at(hopeful)),
            optimizer=optimizer / MEMORY.at(hopeful),
            host=card.launches.at(self.stage.layers) * LAUNCH_SECONDS.at(hopeful),
        )

    @property
    def _model(self) -> ModelConfig:
        return self.plan.model.with_layers(self.stage.layers)

    @property
    def _length(self) -> int:
        return self.plan.data.sequence_length

    @property
    def _predicted(self) -> float:
        return self.plan.data.mask_probability * self._length

    @property
    def _peak(self) -> float:
        return self.device.peak[self.stage.precision] * 1e12

    @property
    def _whole_layers(self) -> float:
        """Layers, of which the last one computes little but keys and values beyond the needed tokens."""
        return self.stage.layers - 1 + min(1.0, (1 + self._predicted) / self._length)

    def _attention_flops(self) -> float:
        """Returns those of a sequence, as `executed_flops` counts them."""
        return 12 * self._model.hidden * self._length**2 * self._whole_layers

    def _bytes(self, card: Card) -> float:
        """Returns what the memory-bound kernels move for a sequence; two dropout masks are written and read."""
        model, size = self._model, VALUE_BYTES[self.stage.precision]
        values = card.traffic.hidden * model.hidden + card.traffic.intermediate * model.intermediate
        layer = values * size + 4 * model.hidden
        scores = self._predicted * model.vocabulary * card.score_passes * size
        return self._length * self._whole_layers * layer + scores


def rows(cases: Iterable[str] = FULL, cards: Iterable[str] = CARDS) -> Iterator[Row]:
    """Yields cases of `tools/gpu_bench` on cards, each in the largest micro-batch that fits."""
    for name in cases:
        for card in cards:
            yield Row(CASES[name].title, _fitting(CASES[name].wanted, card))


def _fitting(wanted: Wanted, card: str) -> Plan:
    """Returns the plan with the micro-batch halved until the card holds it."""
    overrides = [f"launch.device={card}", "launch.accelerator=cuda"]
    while True:
        (target,) = targets(replace(wanted, overrides=overrides))
        assert wanted.micro_batch is not None  # every case has one
        if target.plan.stages[0].memory_per_rank <= DEVICE_CLASSES[card].memory:
            return target.plan
        wanted = replace(wanted, micro_batch=wanted.micro_batch // 2)


def as_markdown(found: Sequence[Row]) -> str:
    """Returns the table, and the ratio of depths, for every card."""
    head = "| case | card | | sequences | matrices | attention | memory | optimizer | host | step, ms | MFU |"
    lines = [head, "|---|---|---|" + "---:|" * 8, *map(_line, found), ""]
    by_depth = {title: [row for row in found if row.title == CASES[title].title] for title in (SHALLOW, DEEP)}
    ratios = [_depth_ratio(*pair) for pair in zip(*by_depth.values(), strict=True)]
    aim = f"(aim: at least 1 : {1 / MOST_SHARE:.1f})"
    lines += [*_assumptions(), ""]
    return "\n".join([*lines, f"Step time per sequence of 3 layers to 12 {aim}: {', '.join(ratios)}.", ""])


def _assumptions() -> Iterator[str]:
    """Yields a line for everything that the table rests on."""
    for name, card in CARDS.items():
        peaks = DEVICE_CLASSES[name].source
        yield f"- {name}: peaks: {peaks}; matrices: {_share(card.matrices)}; attention: {_share(card.attention)}"
    yield f"- every card: memory: {_share(MEMORY)}; {_HOST} per launch, {LAUNCH_SECONDS.source}"


def _share(assumption: Assumption) -> str:
    return f"{assumption.cautious:.0%}–{assumption.hopeful:.0%}, {assumption.source}"


def _line(row: Row) -> str:
    low, high = row.estimate(hopeful=False), row.estimate(hopeful=True)
    parts = [_range(slow * 1e3, fast * 1e3) for slow, fast in zip(low, high, strict=True)]
    step = _range(low.seconds * 1e3, high.seconds * 1e3)
    mfu = "–".join(f"{share:.0%}" for share in row.mfu)
    sizes = [row.title, row.device.name, row.stage.precision, str(row.stage.micro_batch)]
    return "| " + " | ".join([*sizes, *parts, step, mfu]) + " |"


def _range(slow: float, fast: float) -> str:
    return "–".join(f"{value:,.0f}" if value >= 100 else f"{value:.2g}" for value in (fast, slow))


def _depth_ratio(shallow: Row, deep: Row) -> str:
    pairs = zip(shallow.sequences_per_second, deep.sequences_per_second, strict=True)
    cautious, hopeful = (few / many for few, many in pairs)
    return f"{shallow.device.name} 1 : {min(cautious, hopeful):.2f}–{max(cautious, hopeful):.2f}"


if __name__ == "__main__":
    print(as_markdown(list(rows())), end="")
