"""python -m tools.null_gpu CARD COMMAND…: runs a command on the null GPU; see `tools.null_gpu.card` for the cards."""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from tools.null_gpu.build import LIBRARY, ROOT, CannotBuild, build
from tools.null_gpu.card import CARDS, Card

HERE = Path(__file__).parent


def environment(card: Card, devices: int = 1) -> Mapping[str, str]:
    """Returns the environment in which programs see the card.

    Raises:
        CannotBuild: the library cannot be built here.
    """
    folder = build()
    return {
        **os.environ,
        **card.environment(devices),
        **_assembler(card),
        "LD_PRELOAD": str(folder / LIBRARY),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",  # cuDNN is real and finds no device
        "PATH": f"{HERE}{os.pathsep}{os.environ['PATH']}",  # nvidia-smi
        "PYTHONPATH": os.pathsep.join([f"{HERE / 'site'}", f"{ROOT}", os.environ.get("PYTHONPATH", "")]),
    }


def _assembler(card: Card) -> Mapping[str, str]:
    """Returns the variable with which Triton assembles for a card that CUDA 13 dropped, if CUDA 12's is installed."""
    if card.capability >= (7, 5):
        return {}
    installed = Path(sysconfig.get_path("platlib"), "nvidia/cuda_nvcc/bin/ptxas")
    return {"TRITON_PTXAS_PATH": str(installed)} if installed.exists() else {}


def main() -> None:
    """Replaces this process with the command."""
    parser = argparse.ArgumentParser(prog="python -m tools.null_gpu", description="Run a command on the null GPU.")
    parser.add_argument("card", choices=CARDS)
    parser.add_argument("--devices", type=int, default=1, help="how many such cards the machine has")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("give a command to run")
    try:
        variables = environment(CARDS[options.card], options.devices)
    except CannotBuild as problem:
        sys.exit(f"null_gpu: {problem}")
    os.execvpe(options.command[0], options.command, variables)


if __name__ == "__main__":
    main()
