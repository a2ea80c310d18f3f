"""The training steps that `tools/gpu_bench` measures: models, lengths, contenders and aims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stacking.bench.targets import Wanted
from stacking.bench.trial import Contender

_BOTH: tuple[Contender, ...] = ("hugging-face", "hugging-face-compiled")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One benchmark on one GPU, in the precision that suits it."""

    title: str
    wanted: Wanted
    against: tuple[Contender, ...] = _BOTH
    least_mfu: float | None = None
    """The target on an H200 in bf16."""
    least_ratio: float | None = None
    """The same, in tokens/s against compiled Hugging Face."""

    def small(self) -> Case:
        """Returns the same case with a model of two layers, for a look at whether it works."""
        return replace(self, wanted=replace(self.wanted, target="bert-small", layers=(2,), micro_batch=8))


def _model(name: str, length: int, micro_batch: int, layers: Sequence[int] = (), ragged: bool = False) -> Wanted:
    return Wanted(target=name, sequence_length=length, micro_batch=micro_batch, layers=layers, ranks=1, ragged=ragged)


CASES: Mapping[str, Case] = {
    "large-128": Case(
        title="BERT-large, 128 tokens", wanted=_model("bert-large", 128, 256), least_mfu=0.5, least_ratio=1.5
    ),
    "large-512": Case(
        title="BERT-large, 512 tokens", wanted=_model("bert-large", 512, 64), least_mfu=0.5, least_ratio=1.5
    ),
    "base-128": Case(
        title="BERT-base, 128 tokens", wanted=_model("bert-base", 128, 512), least_mfu=0.45, least_ratio=1.5
    ),
    "base-128-6": Case(title="6 layers of BERT-base, 128 tokens", wanted=_model("bert-base", 128, 512, layers=(6,))),
    "base-128-3": Case(title="3 layers of BERT-base, 128 tokens", wanted=_model("bert-base", 128, 512, layers=(3,))),
    "ragged-512": Case(
        title="BERT-base, ragged up to 512 tokens",
        wanted=_model("bert-base", 512, 64, ragged=True),
        against=("padded", "hugging-face"),
    ),
}
"""Initial micro-batch; halved until it fits."""
SHALLOW, DEEP, MOST_SHARE = "base-128-3", "base-128", 1 / 3.3
"""Maximum step time of 3 layers, as a share of that of 12."""
