"""Locates folders that are packaged and also visible at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped(installed: str, checkout: str) -> Path:
    """Returns the folder ``installed`` of the installed package, or ``checkout`` at the top of a checkout."""
    inside = _PACKAGE / installed
    return inside if inside.is_dir() else _PACKAGE.parent / checkout


DS_CONFIGS = shipped("ds_configs", "ds_configs")
SLURM_TEMPLATES = shipped("slurm_templates", "slurm")
