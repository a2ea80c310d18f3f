"""The page that `tools/gpu_bench` writes: every case, the depth ratio, DeepSpeed's kernels, what it ran on."""

from __future__ import annotations

from typing import Any

from stacking.terminal.units import UNKNOWN, count, duration
from tools.benchmarks.gpu_cases import CASES, DEEP, MOST_SHARE, SHALLOW, Case
from tools.benchmarks.gpu_programs import PROGRAMS

OPERATORS = "operators"
_QUICK = "A quick look at whether every case works, with small models: the numbers say nothing."


def as_markdown(content: dict[str, Any]) -> str:
    """Returns the results as a page."""
    cases, hardware = content["cases"], content.get("hardware", {})
    lines = [f"# {hardware.get('name', 'GPU')}", ""]
    lines += [_QUICK, ""] if content.get("quick") else []
    lines += _case_lines(cases)
    lines += _depth_lines(cases)
    lines += _operator_lines(cases.get(OPERATORS))
    lines += _program_lines(cases)
    lines += [f"- {key.removeprefix('version_')}: {value}" for key, value in hardware.items()]
    return "\n".join(lines) + "\n"


def _case_lines(cases: dict[str, Any]) -> list[str]:
    measured = [name for name in CASES if name in cases]
    if not measured:
        return []
    head = "| case | precision | sequences | tokens/s | MFU | aim | Hugging Face | compiled | aim | padded | date |"
    lines = [head, "|---|" + "---:|" * 10, *(_case_row(CASES[name], cases[name]) for name in measured), ""]
    lines += ["Tokens are real ones; the columns of the others are how many times their tokens/s ours are.", ""]
    lost = [
        f"- {cases[name]['title']}: no {contender}: {why}"
        for name in measured
        for contender, why in cases[name].get("lost", {}).items()
    ]
    return [*lines, *lost, ""] if lost else lines


def _case_row(case: Case, stage: dict[str, Any]) -> str:
    ours, ratio = stage["measurements"].get("stacking"), stage["ratio"]
    if ours is None:
        cells = [case.title, stage["precision"], "", f"{stage['outcome']}: {stage['message']}", *[""] * 6]
    else:
        cells = [
            case.title,
            stage["precision"],
            f"{stage['micro_batch']} × {stage['accumulation']}",
            count(ours["real_tokens_per_second"]),
            f"{ours['mfu']:.1%}" if ours["mfu"] else UNKNOWN,
            f"{case.least_mfu:.0%}" if case.least_mfu else "",
            _times(ratio.get("hugging-face")),
            _times(ratio.get("hugging-face-compiled")),
            _times(case.least_ratio),
            _times(ratio.get("padded")),
        ]
    return "| " + " | ".join([*cells, stage["date"]]) + " |"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} ×"


def _depth_lines(cases: dict[str, Any]) -> list[str]:
    """Returns the speed-up per sequence of 3 layers over 12, if both were measured."""
    seconds = {}
    for name in (SHALLOW, DEEP):
        ours = cases.get(name, {}).get("measurements", {}).get("stacking")
        if ours is None:
            return []
        seconds[name] = 1 / ours["sequences_per_second"]
    share = seconds[SHALLOW] / seconds[DEEP]
    return [f"Step time of 3 layers to 12: 1 : {1 / share:.2f} (aim: at least 1 : {1 / MOST_SHARE:.1f}).", ""]


def _operator_lines(operators: dict[str, Any] | None) -> list[str]:
    if operators is None:
        return []
    lines = ["| kernel | | ms | first call, s | |", "|---|---|---:|---:|---|"] if operators["rows"] else []
    for row in operators["rows"]:
        took = ["", ""] if row["seconds"] is None else [f"{row['seconds'] * 1e3:.3f}", f"{row['ready_seconds']:.1f}"]
        lines.append(f"| {row['group']} | {row['name']} | {took[0]} | {took[1]} | {row['message'].replace('|', '/')} |")
    if operators["message"]:
        lines += ["", f"DeepSpeed's kernels: {operators['message']}."]
    return [*lines, ""]


def _program_lines(cases: dict[str, Any]) -> list[str]:
    """Returns what each command printed, or why there is nothing, under its title."""
    lines = []
    for found in (cases[name] for name in PROGRAMS if name in cases):
        lines += [f"## {found['title']}", "", f"{found['date']}, in {duration(found['seconds'])}.", ""]
        if found["outcome"] == "measured":
            lines += ["```", found["printed"].strip("\n"), "```", ""]
        else:
            lines += [f"{found['outcome']}: {found['message']}.", ""]
    return lines
