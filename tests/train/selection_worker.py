"""One rank that chooses a checkpoint from its own view of a folder: prints the choice, or the refusal."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from stacking.errors import StackingError
from stacking.train.rank_sync import Agreement
from stacking.train.selection import agreed_checkpoint


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    try:
        chosen = agreed_checkpoint(Agreement(), folder, patience=1.0)
        print("chosen", None if chosen is None else chosen.name)
    except StackingError as error:
        print("refused", error)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
