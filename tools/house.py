"""Draws the architecture: which subpackage imports which, derived from the imports themselves.

    python -m tools.house            prints the table of subpackages and the diagram (Mermaid)
    python -m tools.house --write    updates them in CONTRIBUTING.md

`tests/test_structure.py` checks that imports follow this order, and that CONTRIBUTING.md is up to date.
"""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- house: python -m tools.house --write -->\n", "<!-- end of house -->"

ROOMS: list[dict[str, str]] = [
    {"cli": "one module per group of commands, and the text they print"},
    {
        "compare": "schedules beside a baseline: speed-up at equal loss",
        "tune": "searches for the fastest setting of each stage",
    },
    {
        "bench": "measures training steps",
        "doctor": "examines a machine before it trains",
        "estimate": "predicts time and cost",
        "glue": "fine-tunes on GLUE, and the paper's table",
    },
    {"attention": "what layers and heads attend to"},
    {
        "train": "the worker: engine, loop, checkpoints, metrics",
        "evaluate": "held-out losses and accuracies",
        "report": "report.html, tables, `status`",
    },
    {"slurm": "site file, job scripts, submission"},
    {"run": "controller, phases, run folder, journal, metrics, retries"},
    {"planning": "recipe to plan: batches, schedule, memory, FLOPs"},
    {"deepspeed_config": "every DeepSpeed key, what it may be and what it does here"},
    {"config": "recipes: reading, checking, and those that ship"},
    {
        "growth": "operators as pure mappings, and their execution",
        "launch": "local, SLURM and MPI launchers",
        "huggingface": "names, export, upload, import, model card",
    },
    {"state": "the canonical training state; ZeRO shards to state and back"},
    {"model": "BERT on one device: variants, layers, kernels"},
    {"data": "text to token shards; samplers"},
    {"storage": "files that are complete or absent, checksums, formats", "terminal": "progress bars, units"},
    {"hardware": "device classes, peaks, this machine"},
]
"""From top to bottom. A subpackage imports only from lower rows; `errors` is below all of them."""


@functools.cache
def sources() -> list[Path]:
    """Returns the package's modules."""
    return sorted((ROOT / "stacking").rglob("*.py"))


def module_name(path: Path) -> str:
    """Converts ``stacking/run/journal.py`` to ``stacking.run.journal``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Returns the subpackage of ``stacking``, or the module itself if it is at the top level."""
    return module.split(".")[1] if "." in module else module


@functools.cache
def imports_of(path: Path) -> set[str]:
    """Returns the package's own modules that ``path`` imports, at any nesting level."""
    names = {module_name(source) for source in sources()}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stacking"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("stacking")}
    return found & names - {"stacking"}


def arrows() -> dict[str, set[str]]:
    """Maps each subpackage to those that it imports from."""
    found: dict[str, set[str]] = {room: set() for row in ROOMS for room in row}
    for path in sources():
        room = room_of(module_name(path))
        if room in found:
            found[room] |= {room_of(module) for module in imports_of(path)} & set(found) - {room}
    return found


def direct(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Returns the transitive reduction of the arrows."""

    def reachable(room: str) -> set[str]:
        return graph[room].union(*(reachable(other) for other in graph[room])) if graph[room] else set()

    return {
        room: {other for other in others if not any(other in reachable(via) for via in others - {other})}
        for room, others in graph.items()
    }


def picture() -> str:
    """Returns the table of subpackages and the diagram, as Markdown."""
    table = "".join(f"| `{room}/` | {holds} |\n" for row in ROOMS for room, holds in row.items())
    lines = "".join(
        f"    {room} --> {other}\n" for room, others in direct(arrows()).items() for other in sorted(others)
    )
    return f"| room | holds |\n|---|---|\n{table}\n```mermaid\ngraph TD\n{lines}```\n"


def renewed(text: str) -> str:
    """Returns ``text`` with the diagram between its two markers updated."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{picture()}{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        CONTRIBUTING.write_text(renewed(CONTRIBUTING.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(picture(), end="")
