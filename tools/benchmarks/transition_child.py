"""One contender of the transition benchmark as a process of its own, which says how long its work took.

python -m tools.benchmarks.transition_child RESULT.json NAME ARGUMENTS…: start-up and imports are not part of the work.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

Work = Callable[[], object]


def _consolidate(checkpoint: str, out: str) -> Work:
    from stacking.state.consolidate import consolidate

    return lambda: consolidate(Path(checkpoint), Path(out))


def _grow(state: str, out: str, layers: str, operator: str, optimizer_state: str) -> Work:
    from stacking.growth.apply import grow

    return lambda: grow(Path(state), Path(out), int(layers), operator, optimizer_state, share=True)


def _zero_to_fp32(checkpoints: str, out: str) -> Work:
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    return lambda: convert_zero_checkpoint_to_fp32_state_dict(checkpoints, out)


def _ds_to_universal(checkpoints: str, out: str) -> Work:
    from deepspeed.checkpoint import ds_to_universal

    latest = Path(checkpoints, "latest").read_text().strip()
    sys.argv = ["ds_to_universal", "--input_folder", f"{checkpoints}/{latest}", "--output_folder", f"{out}/universal"]
    arguments = ds_to_universal.parse_arguments()
    arguments.inject_missing_state = True  # what a model without Megatron's notes in its checkpoints needs
    return lambda: ds_to_universal.main(arguments)


CONTENDERS: dict[str, Callable[..., Work]] = {
    "consolidate": _consolidate,
    "grow": _grow,
    "zero_to_fp32": _zero_to_fp32,
    "ds_to_universal": _ds_to_universal,
}
"""Each imports what it needs and returns its work."""


def main(result: str, name: str, *arguments: str) -> None:
    work = CONTENDERS[name](*arguments)
    started = time.monotonic()
    work()
    Path(result).write_text(json.dumps({"seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
