"""What the package requires, compared with what is installed."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", ["torch", "deepspeed", "transformers"])
def test_the_installed_minor_version_is_the_newest_allowed(name: str) -> None:
    """Internals of these packages are used, so a version is allowed once this suite has passed with it."""
    installed = Version(Version(version(name)).public)
    (allowed,) = (r.specifier for r in map(Requirement, PROJECT["dependencies"]) if r.name == name)
    assert allowed.contains(installed)
    assert not allowed.contains(f"{installed.major}.{installed.minor + 1}.0")
