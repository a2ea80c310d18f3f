"""Every command of the README works as printed, in order; every link resolves."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from stacking.config.recipe import RECIPES
from tests.chain import ENVIRONMENT

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [shlex.join(shlex.split(line, comments=True)) for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith(("stacking ", "tools/bench_"))]


def test_links_and_pictures_resolve() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert targets and not missing


def test_no_placeholders_are_left() -> None:
    assert "@@" not in README and "TODO" not in README


def test_named_tools_exist() -> None:
    tools = set(re.findall(r"tools/\w+", README))
    assert tools and all(os.access(ROOT / tool, os.X_OK) for tool in tools)


def test_the_table_of_recipes_is_complete() -> None:
    named = set(re.findall(r"^\| `([\w-]+)` \|", README, flags=re.MULTILINE))
    assert {path.stem for path in RECIPES.glob("*.yaml")} <= named


@pytest.mark.slow
@pytest.mark.distributed(ranks=1)
def test_the_commands_work_as_printed(tmp_path: Path) -> None:
    (tmp_path / "my-text").mkdir()
    for name, text in topics.items():
        (tmp_path / "my-text" / f"{name.replace('/', '-')}.txt").write_text(text, encoding="utf-8")
    (recipe,) = blocks("yaml")
    (tmp_path / "my-recipe.yaml").write_text(recipe)
    assert len(commands()) > 10
    for command in commands():
        program, *arguments = shlex.split(command)
        argv = [str(ROOT / program)] if "/" in program else [sys.executable, "-m", program]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "PATH": path}
        done = subprocess.run(
            [*argv, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert {"report.html", "export", "plan.json", "journal.jsonl"} <= set(os.listdir(tmp_path / "my-run"))
