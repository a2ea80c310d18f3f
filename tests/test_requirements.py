"""What the package requires, beside what is installed."""

from __future__ import annotations

import ast
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

SETUP = Path(__file__).parent.parent / "setup.py"


def requirements() -> dict[str, Requirement]:
    call = next(
        n for n in ast.walk(ast.parse(SETUP.read_text())) if isinstance(n, ast.keyword) and n.arg == "install_requires"
    )
    return {r.name: r for r in map(Requirement, ast.literal_eval(call.value))}


@pytest.mark.parametrize("name", ["torch", "deepspeed", "transformers"])
def test_the_installed_minor_version_is_the_last_that_is_allowed(name: str) -> None:
    """Insides of these packages are used, so a version is allowed once this suite has passed with it."""
    installed = Version(Version(version(name)).public)
    allowed = requirements()[name].specifier
    assert allowed.contains(installed)
    assert not allowed.contains(f"{installed.major}.{installed.minor + 1}.0")
