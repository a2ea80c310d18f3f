"""Shared by the tests of every exported variant: export random weights, load them without this project, import them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stacking.huggingface.export import export
from stacking.huggingface.importing import import_hugging_face
from stacking.model.config import ModelConfig
from tests.states import SMALL, random_weights, write_state


def exported(tmp_path: Path, variant: str, change: dict[str, Any]) -> tuple[ModelConfig, Path]:
    """A state with random weights in ``state``, exported to ``out``."""
    config = ModelConfig(**{**SMALL, "variant": variant, **change})
    write_state(tmp_path / "state", config, random_weights(config))
    return config, export(tmp_path / "state", tmp_path / "out")


def run_without_this_project(code: str, folder: Path, scratch: Path) -> None:
    """Runs ``code`` with the two folders as arguments, in a process that cannot import `stacking`."""
    argv = [sys.executable, "-c", code, str(folder), str(scratch)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(scratch), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=scratch, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]


def assert_imports_to_the_bit(config: ModelConfig, folder: Path, tmp_path: Path) -> None:
    """Importing the export restores the state in ``state``."""
    report = import_hugging_face(folder, tmp_path / "back")
    assert (report.config, report.initialised, report.ignored) == (config, [], [])
    before, after = (load_file(tmp_path / name / "weights.safetensors") for name in ("state", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def assert_saved_again_imports(config: ModelConfig, folder: Path, tmp_path: Path) -> None:
    """An export saved again by transformers is imported, except for the head that its class has no place for."""
    from transformers import AutoModelForMaskedLM

    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    report = import_hugging_face(tmp_path / "again", tmp_path / "back")
    assert (report.config, report.initialised) == (config, ["nsp_head.weight", "nsp_head.bias"])
