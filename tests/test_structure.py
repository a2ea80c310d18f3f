"""The structure of the code: imports in one direction, a control half without torch, functions that fit on a screen."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tools.house import CONTRIBUTING, ROOMS, ROOT, arrows, imports_of, module_name, renewed, sources

SOURCES = sources()

# The entry points of the control half; growing and consolidating only read files, and start as fast.
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
    "stacking.estimate.setting",
    "stacking.cli.plan_text",
    "stacking.run.progress",
    "stacking.report.html",
    "stacking.state.consolidate",
    "stacking.report.status",
    "stacking.slurm.command",
    "stacking.tune.command",
    "stacking.compare.command",
    "stacking.attention.command",
    "stacking.glue.command",
    "stacking.glue.table",
]


def test_the_control_half_never_loads_torch() -> None:
    """Imports one module after the other and names the first that loads one of the worker half's libraries."""
    script = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(module)\n"
        "    if loaded := {'torch', 'deepspeed', 'transformers'} & set(sys.modules):\n"
        "        sys.exit(f'{module} loads {loaded}')\n"
    )
    argv = [sys.executable, "-c", script, *CONTROL_HALF]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_imports_have_no_cycles() -> None:
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


def test_packages_import_only_from_lower_layers() -> None:
    height = {room: len(ROOMS) - level for level, row in enumerate(ROOMS) for room in row}
    assert set(height) == {path.name for path in (ROOT / "stacking").iterdir() if (path / "__init__.py").is_file()}
    upward = {room: {other for other in others if height[other] >= height[room]} for room, others in arrows().items()}
    assert not any(upward.values()), upward


def test_the_architecture_diagram_is_up_to_date() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    assert renewed(text) == text, "run `python -m tools.house --write`"


def test_nothing_imports_the_command_line() -> None:
    importers = {path.name for path in SOURCES if "stacking.cli.main" in imports_of(path)}
    assert importers <= {"__main__.py"}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_respect_the_size_limits(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= 80, f"{node.name} is too long to read at once"


def test_there_are_no_catch_all_modules() -> None:
    assert not [path for path in SOURCES if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_no_class_name_is_used_twice() -> None:
    classes = [
        node.name for path in SOURCES for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    ]
    assert sorted(classes) == sorted(set(classes))


def test_docstrings_use_each_verb_in_one_form() -> None:
    """They describe, as in "returns"; only the help of commands says "return"."""
    functions = (
        node for path in SOURCES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
    )
    said = (
        ast.get_docstring(node)
        for node in functions
        if "command(" not in " ".join(map(ast.unparse, node.decorator_list))
    )
    words = {text.split()[0] for text in said if text}
    assert not {word for word in words if {f"{word}s", f"{word}es"} & words}
