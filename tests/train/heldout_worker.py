"""One rank that scores held-out samples with a model whose sums are awkward to add: prints the losses' bits."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import torch
import torch.distributed as dist

from stacking.train import validation


class Engine:
    """Gives a chunk a loss determined by its first sample."""

    device = torch.device("cpu")
    module = SimpleNamespace(kernels=SimpleNamespace(grouped=True))

    def __call__(self, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(first)
        mlm, nsp = torch.rand(2, generator=generator) * 10.0 ** (first % 7)
        return mlm, nsp

    def eval(self) -> None: ...

    def train(self) -> None: ...


def main() -> None:
    dist.init_process_group("gloo")
    stage = SimpleNamespace(ranks=dist.get_world_size(), steps=1)
    sampler = mock.MagicMock(unpadded=lambda numbers: numbers, __len__=lambda self: 165)
    settings = SimpleNamespace(samples=1000, every_steps=1)
    micro = lambda numbers, *_: SimpleNamespace(inputs=(int(numbers[0]),), predictions=3 * len(numbers))  # noqa: E731
    with mock.patch.object(validation, "without_padding", micro):
        held_out = validation.HeldOut(sampler, settings, stage, dist.get_rank())  # type: ignore[arg-type]
        losses = held_out.losses(Engine())  # type: ignore[arg-type]
    print(losses.loss.hex(), losses.mlm_loss.hex(), losses.nsp_loss.hex())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
