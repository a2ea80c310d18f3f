"""Renders a benchmark as text: one block per stage, one column per contender."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stacking.bench.results import Derived, StageResult, ratios
from stacking.bench.trial import Measurement, Trial
from stacking.report.tables import Table
from stacking.terminal.units import UNKNOWN, count, counted

Row = Callable[[Measurement, Derived], str]

_NAMES = {
    "checkpointing": "with checkpointing",
    "hugging-face": "Hugging Face",
    "hugging-face-compiled": "Hugging Face, compiled",
}
ROWS: Mapping[str, Row] = {
    "real tokens/s": lambda m, d: count(d.real_tokens_per_second),
    "  lowest – highest": lambda m, d: " – ".join(count(rate) for rate in d.spread),
    "tokens/s with padding": lambda m, d: count(d.tokens_per_second),
    "padding": lambda m, d: f"{d.pad_fraction:.1%}",
    "sequences/s": lambda m, d: f"{d.sequences_per_second:,.1f}",
    "model TFLOPS": lambda m, d: f"{d.tflops:.3g}",
    "MFU": lambda m, d: f"{d.mfu:.1%}" if d.mfu is not None else UNKNOWN,
    "executed TFLOPS": lambda m, d: UNKNOWN if d.executed_tflops is None else f"{d.executed_tflops:.3g}",
    "  of the peak": lambda m, d: UNKNOWN if d.executed_share is None else f"{d.executed_share:.1%}",
    "step": lambda m, d: _milliseconds(d.seconds_per_step),
    "  data": lambda m, d: _part(m, "data"),
    "  forward": lambda m, d: _part(m, "forward"),
    "  backward": lambda m, d: _part(m, "backward"),
    "  communication": lambda m, d: _part(m, "communication"),
    "  optimizer": lambda m, d: _part(m, "optimizer"),
    "memory per rank": lambda m, d: f"{m.memory_bytes / 2**20:,.0f} MiB",
    "start-up + warm-up": lambda m, d: f"{m.startup_seconds:.1f} + {m.warmup_seconds:.1f} s",
    "loss-scale skips": lambda m, d: str(m.skipped_steps),
}
"""The rows shown for every contender."""


def footer(stages: Sequence[StageResult]) -> str:
    """Describes the hardware, and how to read the numbers."""
    hardware: dict[str, Any] = next((s.result.hardware for s in stages if s.result.hardware), {})
    return "\n".join([*_hardware_lines(hardware), *_notes(stages, hardware)])


def block(stage: StageResult) -> str:
    """Renders one stage: contenders side by side, their implementation choices and the ratios."""
    measured, derived = stage.result.measurements, stage.derived
    if not derived:
        return f"{_title(stage.trial)}\n{stage.result.outcome}: {stage.result.message}\n"
    head = ["", *(_NAMES.get(name, name) for name in derived)]
    rows = [[label, *(row(measured[name], derived[name]) for name in derived)] for label, row in ROWS.items()]
    kinds = dict.fromkeys(kind for name in derived for kind in measured[name].chosen)
    rows += [[kind, *(measured[name].chosen.get(kind, UNKNOWN) for name in derived)] for kind in kinds]
    lines = [_title(stage.trial), Table(head, rows).as_text()]
    lines += [
        f"{next(iter(derived))} : {_NAMES.get(other, other)} = {ratio:.2f} × (real tokens/s, medians)"
        for other, ratio in ratios(derived).items()
    ]
    lines += [f"{_NAMES.get(name, name)}: {problem}" for name, problem in stage.result.lost.items()]
    return "\n".join(lines) + "\n"


def _title(trial: Trial) -> str:
    plan, stage = trial.plan, trial.planned
    split = f"micro-batch {stage.micro_batch} x {stage.accumulation} x {counted(stage.ranks, 'rank')}"
    batch = f"batch {stage.global_batch} = {split}"
    model = (
        plan.name,
        plan.model.variant,
        counted(stage.layers, "layer"),
        f"hidden {plan.model.hidden}",
        f"sequence {plan.data.sequence_length}",
        f"vocabulary {plan.model.vocabulary:,}",
    )
    work = (f"dropout {plan.model.dropout:g}", stage.precision, batch, f"ZeRO {stage.zero_stage}")
    return " · ".join(model) + "\n" + " · ".join(work)


def _hardware_lines(hardware: Mapping[str, Any]) -> list[str]:
    if not hardware:
        return []
    kind = hardware.get("compute_capability")
    device = f"{hardware['name']} (compute capability {kind})" if kind else hardware["name"]
    lines = [
        f"{hardware['ranks']} × {device}; {hardware['cores']} cores, {hardware['threads_per_rank']} threads per rank",
        f"peak {hardware['peak_tflops']:.3g} TFLOPS ({hardware['peak_source']})",
    ]
    if hardware["device"] == "cuda":
        lines.append(f"a large matrix product reaches {hardware['gemm_tflops']:.3g} TFLOPS")
    smi = [f"{key} {hardware[key]}" for key in ("driver_version", "clocks.sm", "clocks.max.sm") if key in hardware]
    lines += [", ".join(smi)] if smi else []
    versions = (f"{k.removeprefix('version_')} {v}" for k, v in hardware.items() if k.startswith("version_"))
    return [*lines, ", ".join(versions)]


def _notes(stages: Sequence[StageResult], hardware: Mapping[str, Any]) -> list[str]:
    if not hardware:
        return []
    trial = stages[0].trial
    on_cpu = hardware["device"] == "cpu"
    memory = "resident memory beyond that of the libraries" if on_cpu else "most that torch had allocated"
    return [
        f"Medians of {trial.repeats} alternating repeats, after {trial.warmup} warm-up steps.",
        "The parts of a step are timed in separate steps without overlap.",
        "Model FLOPs, and MFU, count real tokens and masked positions, whatever a contender computes.",
        "Executed FLOPs are fewer: the last layer skips what no head needs.",
        f"Memory is the {memory}.",
    ]


def _part(measurement: Measurement, name: Any) -> str:
    return _milliseconds(measurement.split[name])


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"
