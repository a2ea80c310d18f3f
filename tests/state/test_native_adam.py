"""DeepSpeed's own Adams, which it compiles on first use: what they save is read, loaded and trained on exactly."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from stacking.growth.apply import grow
from stacking.state.consolidate import consolidate
from stacking.state.format import step_of
from tests.state.ranks import run_ranks
from tests.state.test_matrix import WORKER

pytestmark = [
    pytest.mark.distributed(ranks=1),
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
]

ENGINES: dict[str, dict[str, Any]] = {
    "cpu-adam-zero2": {"zero": 2, "offload": True, "precision": "fp32"},
    "cpu-adam-zero2-bf16": {"zero": 2, "offload": True, "precision": "bf16"},
    "cpu-adam-zero3": {"zero": 3, "offload": True, "precision": "fp32"},
    "fused-adam-zero0": {"zero": 0, "precision": "fp32"},
    "fused-adam-zero0-bf16": {"zero": 0, "precision": "bf16"},
    "fused-adam-zero1": {"zero": 1, "precision": "fp32"},
}

COMPILER = """#!/bin/sh
case "$*" in */cpu_adam_impl.cpp*) ;; *) exec g++ "$@" -O0 -g0 ;; esac
for word; do [ "$before" != -o ] || out=$word; before=$word; done
if [ -e "$0.o" ]; then exec cp "$0.o" "$out"; fi
g++ "$@" -O0 -g0 && cp "$out" "$0.o"
"""
"""Builds without optimization, and once what both Adams share, which takes half the time; both compute the same."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each engine trained for 3 steps, and for 9 in one go; the first loaded again, and trained on to 9."""
    folder = tmp_path_factory.mktemp("native")
    compiler = folder / "c++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    built = Path(os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")).expanduser() / "unoptimized"
    environment = {"CXX": str(compiler), "TORCH_EXTENSIONS_DIR": str(built)}

    def launch(jobs: list[dict[str, Any]]) -> None:
        (folder / "jobs.json").write_text(json.dumps([{"torch_adam": False, "named": True, **job} for job in jobs]))
        run_ranks(1, WORKER, [folder / "jobs.json", "--no-compiling"], timeout=600, environment=environment)

    launch([{**e, "steps": [0, n], "save": str(folder / f"{name}-{n}")} for name, e in ENGINES.items() for n in (3, 9)])
    for name in ENGINES:
        consolidate(folder / f"{name}-3", folder / "states" / name)
    launch(
        [
            {**e, "load": str(folder / "states" / name), "steps": [3, n], "save": str(folder / f"{name}-3-{n}")}
            for name, e in ENGINES.items()
            for n in (3, 9)
        ]
    )
    for name in ENGINES:
        grow(folder / "states" / name, folder / "grown" / name, 4, "interleave", "keep-old")
    deep = {"model": {"layers": 4}, "ages": True}
    launch(
        [
            {
                **e,
                **deep,
                "load": str(folder / "grown" / name),
                "steps": [3, n],
                "save": str(folder / f"{name}-deep-{n}"),
            }
            for name, e in ENGINES.items()
            for n in (5, 9)
        ]
    )
    resumed = [
        {**e, **deep, "load": str(folder / f"{n}-deep-5"), "steps": [5, 9], "save": str(folder / f"{n}-deep-5-9")}
        for n, e in ENGINES.items()
    ]
    launch(resumed)
    return folder


@pytest.mark.parametrize("name", ENGINES)
def test_a_state_is_the_same_after_loading_it(folder: Path, name: str) -> None:
    before = consolidate(folder / f"{name}-3", folder / "before" / name)
    after = consolidate(folder / f"{name}-3-3", folder / "after" / name)

    assert after.digest == before.digest and after.optimizer_step == before.optimizer_step >= 3


@pytest.mark.parametrize("name", [name for name in ENGINES if name.startswith("cpu-adam")])
def test_training_continues_as_if_it_had_never_stopped(folder: Path, name: str) -> None:
    straight = consolidate(folder / f"{name}-9", folder / "straight" / name)

    assert consolidate(folder / f"{name}-3-9", folder / "continued" / name).digest == straight.digest


@pytest.mark.parametrize("name", ENGINES)
def test_layers_of_different_ages_count_their_own_updates(folder: Path, name: str) -> None:
    state = consolidate(folder / f"{name}-deep-9", folder / "deep" / name)

    old, new = (step_of(state, f"layers.{layer}.up.weight") for layer in (0, 1))
    assert new == 6 and old >= 9


@pytest.mark.parametrize("name", [name for name in ENGINES if name.startswith("cpu-adam") and "bf16" not in name])
def test_a_restart_with_layers_of_different_ages_changes_no_bit(folder: Path, name: str) -> None:
    straight = consolidate(folder / f"{name}-deep-9", folder / "deep-straight" / name)

    assert consolidate(folder / f"{name}-deep-5-9", folder / "deep-continued" / name).digest == straight.digest
