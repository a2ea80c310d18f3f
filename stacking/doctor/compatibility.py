"""Lists known software and hardware compatibility in tables, each with its source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from stacking.deepspeed_config.facts import VERSION
from stacking.doctor.facts import Capability

Version = tuple[int, ...]


@dataclass(frozen=True)
class Tested:
    """The range of versions of a package that has been tested."""

    least: str
    """The lower bound in the package's requirements."""
    newest: str
    needed_to_train: bool = True


TESTED: Mapping[str, Tested] = {
    "torch": Tested("2.4", "2.13.0"),
    "deepspeed": Tested("0.18", VERSION),
    "transformers": Tested("4.40", "5.23.0", needed_to_train=False),
    "tokenizers": Tested("0.19", "0.23.3", needed_to_train=False),
    "datasets": Tested("2.18", "5.2.0", needed_to_train=False),
    "safetensors": Tested("0.4", "0.8.0", needed_to_train=False),
    "numpy": Tested("1.24", "2.4.6"),
    "pydantic": Tested("2.7", "2.14.3"),
}

BUILDS: Mapping[str, tuple[Capability, Capability, str]] = {
    "Maxwell and Pascal (P40, P100)": (
        (5, 0),
        (6, 9),
        "torch 2.14 or older in its build for CUDA 12.6, from PyTorch's wheel index cu126"
        " (its code for sm_60 runs on 6.1 too); no build for CUDA 12.8 or 13 and no torch from 2.15 on has any",
    ),
    "Volta (V100)": (
        (7, 0),
        (7, 4),
        "torch 2.10 or older as pip offers it (CUDA 12.8), or 2.11 to 2.14 from PyTorch's wheel index cu126;"
        " no build for CUDA 13 and no torch from 2.15 on has any",
    ),
}
"""GPU generations dropped from PyTorch's default wheels: first and last compute capability, and what still works.

Sources: ``PYTORCH_RELEASES_CODE_CC`` in torch 2.13 ({50, 60, 70, 75, 80, 86, 90} for CUDA 12.6), pytorch issues 157517,
172352 and 190385, requirements of torch 2.10, 2.11, 2.14 and 2.15 as published.
"""

DRIVERS: Mapping[int, str] = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""The oldest Linux driver for each major CUDA version. Source: NVIDIA, CUDA Compatibility, minor version table."""

LAST_DRIVER = 580
"""The last driver branch for Maxwell, Pascal and Volta. Source: NVIDIA's announcement of branch R580."""

LAST_CUDA = 12
"""The last CUDA whose compiler supports them; CUDA 13 dropped everything before Turing (7.5)."""

CUDA_MINORS_MATTER_FROM = 13
"""From this CUDA version on, DeepSpeed builds kernels only with a toolkit of torch's own minor version.

Source: ``cuda_minor_mismatch_ok`` in op_builder/builder.py of the version that `facts.json` was read from.
"""

TRITON_LEAST: Capability = (7, 0)
"""Below it, torch.compile raises GPUTooOldForTriton. Source: torch 2.13, _inductor/scheduler.py."""
TRITON_FULL: Capability = (8, 0)
"""Below it, Triton's matrix products do not use tensor cores. Source: Triton's README."""


def builds_for(capability: Capability) -> str | None:
    """Returns which torch builds carry code for ``capability``; None: the default one does."""
    return next((text for first, last, text in BUILDS.values() if first <= capability <= last), None)


def version(text: str) -> Version:
    """Parses the leading numbers of a version: ``2.13.0+cu126`` is (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def runs_on(architectures: tuple[str, ...], capability: Capability) -> str | None:
    """Returns the entry of torch's architecture list that runs on a GPU of ``capability``; None: there is none.

    Machine code (``sm_60``) runs on the same major generation from its minor version on; the driver can translate
    PTX (``compute_90``) for any later GPU. ``sm_90a`` runs on exactly one generation.
    """
    for kind in ("sm", "compute"):
        for entry in architectures:
            found = re.fullmatch(rf"{kind}_(\d+)(\d)([a-z]?)", entry)
            if found is None:
                continue
            built = (int(found.group(1)), int(found.group(2)))
            if found.group(3) == "a":
                fits = built == capability
            else:
                fits = built <= capability and (kind == "compute" or built[0] == capability[0])
            if fits:
                return entry
    return None
