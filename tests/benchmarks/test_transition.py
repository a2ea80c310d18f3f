"""The transition benchmark: what it measures on, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stacking.errors import UserError
from stacking.state.zero import ZeroCheckpoint
from tests.chain import ENVIRONMENT
from tools.benchmarks import transition
from tools.benchmarks.transition import DEEPSPEED, OURS, Measured, Result, Wanted, measure
from tools.benchmarks.transition_table import as_json, as_text


def result_of(shape: str = "tiny", seconds: float = 1.0) -> Result:
    names = ("cp", "cp, then fsync", *OURS, *DEEPSPEED)
    times = dict(zip(names, (1.0, 2.0, 0.5, 0.25, 0.75, 4.0, 8.0), strict=True))
    measured = {
        name: Measured(seconds=[time * seconds] * 3, startup=[0.1] * 3, memory=50_000_000, disk=1_200)
        for name, time in times.items()
    }
    return Result(
        shape=shape,
        layers=(2, 4),
        parameters=(100, 200),
        checkpoint_bytes=1_400,
        made_by="an engine",
        measured=measured,
    )


def test_the_transition_is_its_three_parts() -> None:
    found = as_json([result_of()], Wanted())["shapes"][0]["transition"]

    assert found["seconds"] == [1.5] * 3
    assert (found["ratio_to_cp"], found["ratio_to_cp_fsync"]) == (1.5, 0.75)
    assert (found["memory"], found["disk_to_state"]) == (50_000_000, 1.0)


def test_the_table_has_a_row_for_every_contender_and_compares_the_sizes() -> None:
    text = as_text([result_of(), result_of("large", 10)], Wanted())

    for name in ("cp", *OURS, "transition", *DEEPSPEED):
        assert sum(
            line.split("  ")[0].strip() == name or line.strip().startswith(f"{name} ") for line in text.splitlines()
        )
    assert text.splitlines()[-1].split()[0] == "large"


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--shape: '7B' is not known; give tiny"):
        measure("7B", tmp_path, Wanted())
    monkeypatch.setitem(transition.SHAPES, "huge", {**transition.SHAPES["1.3B"], "layers": 5_000})
    with pytest.raises(UserError, match="GB free where the benchmark needs"):
        measure("huge", tmp_path / "b", Wanted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.distributed
@pytest.mark.slow
def test_a_tiny_benchmark_runs_and_leaves_nothing_behind(tmp_path: Path) -> None:
    options = ["--shape", "tiny", "--repeats", "1", "--folder", str(tmp_path), "--json"]
    argv = [sys.executable, "-m", "tools.benchmarks.transition_command", *options]
    done = subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    shape = found["shapes"][0]
    assert shape["layers"] == [2, 4] and shape["checkpoint_made_by"] == "an engine"
    assert set(shape["measured"]) == {"cp", "cp, then fsync", *OURS, *DEEPSPEED}
    for measured in shape["measured"].values():
        assert measured["median_seconds"] > 0
    assert 0 < shape["measured"]["consolidate"]["memory"] < 400_000_000
    assert shape["transition"]["disk"] < shape["state_bytes"] + 100_000  # the headers and manifests
    assert {path.name for path in (tmp_path / "tiny").iterdir()}.isdisjoint({"checkpoints", "out"})


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_enlarged_checkpoint_matches_one_saved_by_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The same keys, types, shapes and numbers as if it had not been enlarged from a small one."""
    torch = pytest.importorskip("torch")
    odd = {"layers": 3, "hidden": 48, "heads": 3, "vocabulary": 777}
    monkeypatch.setitem(transition.SHAPES, "odd", odd)
    made = {}
    for fits in (True, False):
        wanted = Wanted(precision=precision)
        bench = transition._Bench(transition._plan("odd", wanted), tmp_path / str(fits), wanted, fits, True)
        bench.make()
        made[fits] = bench.checkpoint
    real, enlarged = made[True], made[False]

    assert sorted(p.name for p in real.iterdir()) == sorted(p.name for p in enlarged.iterdir())
    for file in real.glob("*.pt"):
        expected, found = (torch.load(folder / file.name, weights_only=False) for folder in (real, enlarged))
        assert_alike(expected, found, file.name)
    assert ZeroCheckpoint(enlarged).model == ZeroCheckpoint(real).model


def assert_alike(expected: Any, found: Any, where: str) -> None:
    import torch

    assert type(expected) is type(found), where
    if isinstance(expected, torch.Tensor):
        assert (expected.shape, expected.dtype) == (found.shape, found.dtype), where
        assert torch.equal(expected, found), where
    elif isinstance(expected, Mapping):
        assert list(expected) == list(found), where
        for key in expected:
            assert_alike(expected[key], found[key], f"{where} {key}")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(found), where
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            assert_alike(one, other, f"{where} {index}")
    elif not type(expected).__name__.endswith("LossScaler"):
        assert expected == found, where
