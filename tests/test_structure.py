"""The structure that the code keeps to: one way for imports, a control half without torch, functions on a screen."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "stacking").rglob("*.py"))

# What the control half starts from; growing and consolidating read files alone, and start as fast.
CONTROL_HALF = [
    "tools.benchmarks.data",
    "tools.benchmarks.gpu",
    "stacking.bench.as_text",
    "stacking.bench.targets",
    "stacking.cli.main",
    "stacking.run.controller",
    "stacking.run.create",
    "stacking.data.prepare",
    "stacking.data.sampler",
    "stacking.doctor.preflight",
    "stacking.doctor.machine",
    "stacking.growth.apply",
    "stacking.launch.rank",
    "stacking.launch.registry",
    "stacking.run.phases",
    "stacking.cli.plan_report",
    "stacking.estimate.check",
    "stacking.cli.plan",
    "stacking.run.progress",
    "stacking.report.html",
    "stacking.state.consolidate",
    "stacking.report.status",
    "stacking.slurm.command",
    "stacking.tune.command",
]

# The rooms of the house, from the roof to the ground.
ROOMS = [
    ["__main__"],
    ["cli"],
    ["tune"],
    ["bench", "doctor", "estimate"],
    ["evaluate", "report", "train"],
    ["slurm"],
    ["run"],
    ["launch", "planning"],
    ["deepspeed_config", "growth", "huggingface"],
    ["config", "hardware", "state"],
    ["model"],
    ["data"],
    ["storage", "terminal"],
    ["errors", "stacking"],
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """The project's own modules that ``path`` imports, at any depth of the code."""
    names = {module_name(p) for p in SOURCES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stacking"):
            found |= {f"{node.module}.{a.name}" for a in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("stacking")}
    return found & names - {"stacking"}


@pytest.mark.parametrize("module", CONTROL_HALF)
def test_the_control_half_never_loads_torch(module: str) -> None:
    script = f"import sys, {module}; print(*{{'torch', 'deepspeed', 'transformers'}} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == ""


def test_imports_have_no_circles() -> None:
    graph = {module_name(path): imports_of(path) for path in SOURCES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else module


def test_rooms_import_only_what_stands_below_them() -> None:
    """Data flows one way between packages too: each line of ``ROOMS`` imports from the lines under it alone."""
    height = {room: len(ROOMS) - level for level, row in enumerate(ROOMS) for room in row}
    assert set(height) == {room_of(module_name(path)) for path in SOURCES}
    upward = [
        f"{module_name(path)} -> {module}"
        for path in SOURCES
        for module in imports_of(path)
        if room_of(module) != room_of(module_name(path))
        and height[room_of(module)] >= height[room_of(module_name(path))]
    ]
    assert upward == []


def test_nothing_imports_the_command_line() -> None:
    importers = {path.name for path in SOURCES if "stacking.cli.main" in imports_of(path)}
    assert importers <= {"__main__.py"}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_fit(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= 80, f"{node.name} is too long to read at once"


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not [path for path in SOURCES if path.stem in ("utils", "util", "helpers", "misc", "common")]
