"""Writes ``docs/ds_config.md``: what each key of a DeepSpeed configuration does here.

Run ``python -m tools.ds_config_page`` after changing the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stacking.deepspeed_config.ds_facts import KNOWN_KEYS, REMOVED_KEYS, SECTION_KEYS, UNSUPPORTED
from stacking.deepspeed_config.examine import effect
from stacking.deepspeed_config.facts import REMOVED_ZERO, SCHEDULER_PARAMETERS, VERSION
from stacking.deepspeed_config.names import RENAMED
from stacking.deepspeed_config.schedulers import TRANSLATED
from tools.ds_config_examples import EXAMPLES

PAGE = Path(__file__).parents[1] / "docs" / "ds_config.md"
_HEAD = f"""\
# Supported ds_config keys

Generated from the tables in `stacking/deepspeed_config` by `python -m tools.ds_config_page`; the keys are those of
DeepSpeed {VERSION}. `stacking adopt DS_CONFIG --out DIR` adapts any file.

- A value applies if the recipe does not set one. If both set different values, the plan lists all contradictions at
  once.
- Files may be JSON or HJSON. Keys that begin with `_`, `#` or `//` are comments.
- Numbers and flags given as text are converted, with a note in the plan.
- `"auto"` is allowed wherever Hugging Face's Trainer fills it in.
- A test trains with every example on this page on two ranks.
- "refused" keys stop a plan unless they are off; `stacking adopt` leaves them out and says so.
"""


def page() -> str:
    """Returns the page's content."""
    tops = _table((key, KNOWN_KEYS[key]) for key in sorted(KNOWN_KEYS))
    parts = [_HEAD, "## Top-level keys\n", tops, *_example("")]
    for section in sorted(SECTION_KEYS):
        if SECTION_KEYS[section] and section not in UNSUPPORTED:
            keys = ((f"{section}.{key}", kind) for key, kind in sorted(SECTION_KEYS[section].items()))
            parts += [f"## `{section}`\n", _table(keys), *_example(section)]
    parts += ["## Schedules\n", _schedules(), "## Keys of other versions\n", _old_keys()]
    return "\n".join(parts)


def _example(section: str) -> list[str]:
    return [f"```json\n{EXAMPLES[section]}\n```\n"] if section in EXAMPLES else []


def _table(keys: Iterator[tuple[str, str]]) -> str:
    rows = [f"| `{path}` | {kind or 'see DeepSpeed'} | {_told(path)} |" for path, kind in keys]
    return "\n".join(["| key | value | what it does here |", "|---|---|---|", *rows]) + "\n"


def _told(path: str) -> str:
    if path in UNSUPPORTED:
        allowed, problem, remedy = UNSUPPORTED[path]
        harmless = "" if allowed in (None, {}) else f"; `{str(allowed).lower()}` is harmless"
        return f"refused: {problem}; {remedy}{harmless}"
    return effect(path)


def _schedules() -> str:
    rows = [
        f"| `{name}` | {'the same learning rate at every update' if name in TRANSLATED else 'refused'} |"
        for name in sorted(SCHEDULER_PARAMETERS)
    ]
    note = "With `OneCycle`, `cycle_momentum` must be false: Adam's betas are constant here.\n"
    return "\n".join(["| schedule | in the recipe |", "|---|---|", *rows, "", note])


def _old_keys() -> str:
    rows = [f"| `{old}` | read as `{new}` |" for old, new in RENAMED.items()]
    rows += [f"| `{key}` | removed from DeepSpeed: {remedy} |" for key, remedy in sorted(REMOVED_KEYS.items())]
    rows += [f"| `zero_optimization.{key}` | removed from DeepSpeed: remove it |" for key in sorted(REMOVED_ZERO)]
    more = (
        "| `zero_optimization: true` | read as stage 1 |",
        "| `zero_optimization.cpu_offload`, `cpu_offload_param` | read as `offload_optimizer`, `offload_param` |",
        "| `fp32_allreduce`, `allreduce_always_fp32` | read as `communication_data_type: fp32` |",
        "| `bf16.loss_scale`, `bf16.auto_cast` and other keys of fp16 | left out: bf16 needs no loss scale |",
        "| `communication_data_type: bfp16` | read as `bf16` |",
        "| `monitor_config.csv_monitor` and other monitors | read as `csv_monitor`, ... |",
        "| `zero_optimization.offload_optimizer: cpu` | read as `{device: cpu}` |",
        "| `scheduler.params.warmup_num_steps: 0` | read as 1, as earlier versions did |",
        "| `warmup_min_lr`, `warmup_max_lr` of a `WarmupCosineLR` | read as a share of the peak, and the peak |",
        "| `warmup_max_lr` of `auto` or null | the optimizer's `lr`; 0.001 for a `WarmupDecayLR` without it |",
        "| `amp.enabled: true` | read as fp16 (`O0`: fp32) |",
        "| `optimizer.params.max_grad_norm` | read as `gradient_clipping` |",
        "| `optimizer.type: FusedAdam` | read as `AdamW` with `torch_adam: false`, compiled at the first start |",
        "| `optimizer.type: DeepSpeedCPUAdam`, ... | read as `AdamW` |",
    )
    return "\n".join(["| key | action |", "|---|---|", *rows, *more]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
