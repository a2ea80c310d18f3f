"""Dropout's random numbers, as a function of where the training is."""

from __future__ import annotations

import hashlib

import torch


def seed_dropout(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Seed torch for one micro-batch, so that a restart at any step draws the numbers that it would have drawn.

    Args:
        step: update number in the whole run, from 0.
        micro_step: position of the micro-batch within the update.
    """
    name = f"dropout {seed} {step} {micro_step} {rank}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1)
