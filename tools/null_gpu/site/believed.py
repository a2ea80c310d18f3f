"""Truth values on the null GPU that are what the program hopes for, and cost the host what real ones cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_ASKING = (Tensor.__bool__, Tensor.item, Tensor.tolist)
"""The host waits for the value."""
_MOVING = (Tensor.to, Tensor.cpu, Tensor.cuda)
_FOLLOWED = 1 << 16
"""Most elements of a tensor that meets told values. Gradients that are scaled have more; nobody asks for them."""


class Believed(Tensor):
    """A tensor on the device, and what the host is told when it asks for its values.

    Every operation is launched as always, and done once more on the CPU with the values that are told, unless it meets
    a large tensor: that would cost the host what it costs on no card. Other tensors of the device count as zeros there.
    """

    told: Tensor

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
            if function in _ASKING:
                return function(args[0].told)
            if function is Tensor.copy_ and not result.is_cuda:  # to the host
                return result.copy_(_told(args[1]))
            if not isinstance(result, Tensor) or any(map(_is_large, args)):
                return result
            told = args[0].told if function in _MOVING else function(*map(_told, args), **kwargs)
            return believed(result, told)


def believed(values: Tensor, told: Tensor) -> Tensor:
    """Returns ``values``, of which the host is told ``told``."""
    answer = values.as_subclass(Believed)
    answer.told = told
    return answer


def believing(test: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns a test that everything on the device passes, elementwise."""

    def passed(values: Tensor) -> Tensor:
        found = test(values)
        return believed(found, torch.ones(found.shape, dtype=torch.bool)) if found.is_cuda else found

    return passed


def _is_large(argument: Any) -> bool:
    """Whether an argument is a tensor of the device that is too large to follow."""
    return isinstance(argument, Tensor) and not isinstance(argument, Believed) and argument.numel() > _FOLLOWED


def _told(argument: Any) -> Any:
    """Returns what stands for an argument on the CPU."""
    if isinstance(argument, Believed):
        return argument.told
    if isinstance(argument, Tensor):
        return torch.zeros(argument.shape, dtype=argument.dtype)
    if isinstance(argument, list | tuple):
        return [_told(part) for part in argument]
    return argument
