"""Derives dropout's random numbers from the position in training."""

from __future__ import annotations

import hashlib

import torch


def seed_dropout(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Seeds torch for one micro-batch, so that a restart at any step draws the same numbers.

    Args:
        step: update number in the whole run, from 0.
        micro_step: position of the micro-batch within the update.
    """
    name = f"dropout {seed} {step} {micro_step} {rank}".encode()
    number = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
    # torch.manual_seed visits every device and backend, which takes as long as a layer.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(number)
