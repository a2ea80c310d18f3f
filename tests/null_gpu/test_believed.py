"""Truth values of the null GPU tell what the program hopes for, through every operation until the host asks."""

from __future__ import annotations

import torch
from torch import Tensor

from tools.null_gpu.site.believed import believed, believing


def finite(*shape: int) -> Tensor:
    """What a test for finite values gives on the null GPU: its kernels left zeros behind."""
    return believed(torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool))


def test_the_host_is_told_that_all_is_finite() -> None:
    assert bool(finite())
    assert finite().item() is True
    assert finite(2).tolist() == [True, True]


def test_operations_between_test_and_question_are_followed() -> None:
    norm = torch.tensor(2.0)
    assert bool(finite(3).all())
    assert not bool(finite().logical_and(finite()).logical_not())
    assert not bool((~finite() | (norm < 0)).any())
    assert bool(torch.stack([finite(), finite()]).all())
    assert finite().to(torch.float32).item() == 1.0


def test_a_copy_to_the_hosts_memory_brings_what_is_told() -> None:
    host = torch.zeros((), dtype=torch.bool)
    host.copy_(finite(), non_blocking=True)
    assert bool(host)


def test_shapes_and_devices_are_the_real_ones() -> None:
    assert finite(2, 3).shape == (2, 3)
    assert finite(2, 3)[0].shape == (3,)
    assert finite().device == torch.device("cpu")


def test_gradients_that_are_scaled_by_what_is_told_stay_plain_tensors() -> None:
    gradients = torch.ones(1 << 17)
    assert type(gradients.mul_(finite().float())) is Tensor
    assert type(gradients[:2].mul_(finite().float())) is not Tensor


def test_what_is_on_the_cpu_is_really_tested() -> None:
    test = believing(torch.isfinite)
    assert test(torch.tensor([1.0, float("inf")])).tolist() == [True, False]
