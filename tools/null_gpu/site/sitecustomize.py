"""What every Python program on the null GPU does first: it takes all results for equal, finite and agreed.

A truth value that is copied from the null GPU is zero: "no" to whoever asks whether a kernel agrees with plain
PyTorch, or whether a loss is finite. And what ranks tell each other never arrives. The question whether values are
finite is still computed and waited for.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def believe_torch(torch: Any) -> None:
    """Makes everything on the device finite, and all tensors alike."""
    import believed  # needs torch, which is here now

    torch.isfinite = believed.believing(torch.isfinite)
    torch.allclose = lambda *tensors, **tolerances: True


def believe_ranks(coordinator: Any) -> None:
    """Leaves out ZeRO-3's check that all ranks use their modules in the same order."""
    coordinator.assert_ints_same_as_other_ranks = lambda numbers: None


CHANGES: Mapping[str, Callable[[Any], None]] = {
    "torch": believe_torch,
    "deepspeed.runtime.zero.partitioned_param_coordinator": believe_ranks,
}


class Changed(Loader):
    """Loads a module as its own loader does, and changes it."""

    def __init__(self, loader: Loader, change: Callable[[Any], None]) -> None:
        self._loader, self._change = loader, change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)


class Finder(MetaPathFinder):
    """Finds the modules that are changed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in CHANGES:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec and spec.loader:
            spec.loader = Changed(spec.loader, CHANGES[name])
        return spec


sys.meta_path.insert(0, Finder())
