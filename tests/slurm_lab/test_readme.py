"""slurm/README.md: its claims are tested, and its example works."""

from __future__ import annotations

import re
from pathlib import Path

from stacking.slurm.site import Site, load_site

ROOT = Path(__file__).parents[2]
README = (ROOT / "slurm" / "README.md").read_text()


def test_every_row_of_the_table_of_failures_has_its_test() -> None:
    table = README.split("## What happens when")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    tests = {name for path in (ROOT / "tests").rglob("test_*.py") for name in _tests_in(path)}
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) > 10
    assert [row for row, names in zip(rows, named, strict=True) if not names or not set(names) <= tests] == []


def test_the_example_lists_every_setting_and_is_valid() -> None:
    example = ROOT / "slurm" / "site.example.yaml"
    load_site(example)
    assert set(re.findall(r"^(?:# )?(\w+):", example.read_text(), re.MULTILINE)) == set(Site.model_fields)


def test_every_file_that_it_names_exists() -> None:
    files = re.findall(r"\]\((\S+)\)", README)
    assert files and all((ROOT / "slurm" / file).is_file() for file in files)


def _tests_in(path: Path) -> list[str]:
    return re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
