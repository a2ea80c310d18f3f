"""Killed at any moment, in any phase: `stacking resume` continues and the result is the undisturbed one, bit for bit.

One run is left undisturbed. Another one, of the same recipe, is killed with SIGKILL again and again, each time when a
certain thing appears on disk. Everything is real: DeepSpeed ranks, files, signals.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from stacking.run.journal import Journal
from stacking.storage.files import checksum, verify_folder
from tests.chain import prepare_text, stacking, start, write_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

BRIEF = 0.0005
"""Seconds between two looks for what exists only for moments."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restart")
    first = {"layers": 1, "steps": 6, "batch_sequences": 8, "micro_batch": 2, "learning_rate": {"peak": 1e-3}}
    checkpoints = {"every_steps": 2, "keep": 4}
    return write_recipe(folder, prepare_text(folder), stages=[first, {"layers": 2, "steps": 8}], checkpoint=checkpoints)


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    run = recipe.parent / "undisturbed"
    stacking("run", recipe, "--run-dir", run)
    return run


@pytest.fixture(scope="module")
def disturbed(recipe: Path) -> Path:
    """A run that was killed in training, in a checkpoint, in a consolidation, in a growth and between phases."""
    run = recipe.parent / "disturbed"
    controller = start("run", recipe, "--run-dir", run)
    _kill_when(controller, run, _rank, lambda: _steps(run, "0-L1") >= 3)
    _kill_when(_resume(run), run, _controller, lambda: (run / "0-L1" / "checkpoints" / ".saving").exists(), BRIEF)
    _kill_when(_resume(run), run, _controller, lambda: ("started", "consolidate", 0) in _events(run))
    _kill_when(_resume(run), run, _growth, lambda: ("started", "grow", 1) in _events(run))
    _kill_when(_resume(run), run, _controller, lambda: ("finished", "grow", 1) in _events(run))
    _kill_when(_resume(run), run, _controller, lambda: _steps(run, "1-L2") >= 3)
    _kill_when(_resume(run), run, _rank, lambda: _steps(run, "1-L2") >= 5)
    stacking("resume", run)
    return run


def test_the_final_weights_and_moments_are_bit_identical(undisturbed: Path, disturbed: Path) -> None:
    for name in ("weights", "exp_avg", "exp_avg_sq"):
        file = f"1-L2/state/{name}.safetensors"
        expected, found = load_file(undisturbed / file), load_file(disturbed / file)
        assert expected.keys() == found.keys()
        for key in expected:
            assert expected[key].tobytes() == found[key].tobytes(), (name, key)


@pytest.mark.parametrize("stage", ["0-L1", "1-L2"])
def test_every_update_is_recorded_once_with_the_same_loss_and_samples(
    undisturbed: Path, disturbed: Path, stage: str
) -> None:
    facts = ("step", "global_step", "samples", "tokens", "loss", "learning_rate")
    expected, found = (
        [[record[fact] for fact in facts] for record in _records(run, stage) if record["kind"] == "train"]
        for run in (undisturbed, disturbed)
    )
    assert expected == found
    assert [row[0] for row in found] == list(range(1, len(found) + 1)) and len(found) == {"0-L1": 6, "1-L2": 8}[stage]


def test_the_journal_records_what_happened(disturbed: Path) -> None:
    events = Journal(disturbed / "journal.jsonl").events()
    failures = [event["message"] for event in events if event["event"] == "failed"]
    assert any("killed by SIGKILL" in message for message in failures)
    assert sum(event["event"] == "resumed" for event in events) == 7


def test_a_finished_run_has_nothing_left_to_do(undisturbed: Path) -> None:
    before = _checksums(undisturbed)
    stacking("resume", undisturbed)
    assert _checksums(undisturbed) == before


def test_a_run_branched_from_anothers_checkpoint_ends_with_the_same_bits(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    shorter, again = tmp_path / "shorter", tmp_path / "again"
    begun = stacking("run", recipe, "--run-dir", shorter, "--set", "stages[1].steps=5", "--branch-of", undisturbed)
    assert f"begins with update 4 of stage 1-L2 of {undisturbed}" in begun.stderr
    begun = stacking("run", recipe, "--run-dir", again, "--branch-of", shorter)
    assert f"begins with update 5 of stage 1-L2 of {shorter}" in begun.stderr
    for state in ("weights", "exp_avg", "exp_avg_sq"):
        file = f"1-L2/state/{state}.safetensors"
        assert checksum(again / file) == checksum(undisturbed / file)
    for stage in ("0-L1", "1-L2"):
        expected, found = (
            [(record["step"], record["loss"]) for record in _records(run, stage) if record["kind"] == "train"]
            for run in (undisturbed, again)
        )
        assert expected == found


def test_a_different_growth_of_the_same_stage_branches_from_the_end_of_that_stage(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    changes = ["--set", "stages[1].growth.operator=interleave", "--set", "stages[1].steps=1"]
    stacking("run", recipe, "--run-dir", run, *changes, "--branch-of", undisturbed)
    events = _events(run)
    begun = [event[1:] for event in events[events.index(("resumed", None, 0)) :] if event[0] == "started"]
    assert begun[:3] == [("consolidate", 0), ("grow", 1), ("train", 1)]


def test_damaged_checkpoints_are_named_and_the_one_before_them_is_used(undisturbed: Path, tmp_path: Path) -> None:
    run = _unfinished_copy(undisturbed, tmp_path / "run")
    shards = []
    for step, damage in ((8, "truncated"), (6, "altered"), (4, "missing")):
        shards.append(next((run / "1-L2" / "checkpoints" / f"global_step{step}").glob("*optim_states.pt")))
        _damage(shards[-1], damage)
    done = stacking("resume", run)
    assert all(str(shard) in done.stderr for shard in shards)
    weights = "1-L2/state/weights.safetensors"
    assert checksum(run / weights) == checksum(undisturbed / weights)
    damaged = [e["message"] for e in Journal(run / "journal.jsonl").events() if e["event"] == "damaged"]
    assert len(damaged) == 3 and all(str(shard) in message for shard, message in zip(shards, damaged, strict=True))
    begun = [record["step"] for record in _records(run, "1-L2") if record["kind"] == "train"]
    assert begun == list(range(1, 9))


def test_a_damaged_state_is_rebuilt_from_its_checkpoint(undisturbed: Path, tmp_path: Path) -> None:
    run = _unfinished_copy(undisturbed, tmp_path / "run")
    shutil.copytree(undisturbed / "1-L2" / "state", run / "1-L2" / "state")
    _damage(run / "1-L2" / "state" / "weights.safetensors", "altered")
    done = stacking("resume", run)
    assert "weights.safetensors" in done.stderr
    verify_folder(run / "1-L2" / "state")


def test_ctrl_c_leaves_a_checkpoint_of_that_very_step_and_exit_code_75(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changed = write_recipe(tmp_path, recipe.parent / "data", checkpoint={"every_steps": 100_000, "keep": 2})
    controller = start("run", changed, "--run-dir", run, "--set", "stages[0].steps=2000")
    _wait_until(controller, lambda: _steps(run, "0-L1") >= 3)
    controller.send_signal(signal.SIGINT)
    assert controller.wait(timeout=60) == 75
    steps = _steps(run, "0-L1")
    assert (run / "0-L1" / "checkpoints" / "latest").read_text() == f"global_step{steps}"
    verify_folder(run / "0-L1" / "checkpoints" / f"global_step{steps}")
    status = json.loads(stacking("status", run, "--json").stdout)
    assert status["state"] == "preempted" and status["step"] == steps


def test_data_changed_under_a_run_is_refused(recipe: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = _unfinished_copy(undisturbed, tmp_path / "run")
    shard = next((recipe.parent / "data" / "train").glob("*.tokens.npy"))
    original = shard.read_bytes()
    try:
        _damage(shard, "altered")
        done = stacking("resume", run, check=False)
        assert done.returncode == 2 and shard.name in done.stderr and done.stderr.count("\n") == 1
    finally:
        shard.write_bytes(original)


def test_a_run_in_use_is_refused(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    controller = start("run", recipe, "--run-dir", run)
    try:
        _wait_until(controller, lambda: (run / "journal.jsonl").exists())
        for command in (["run", recipe, "--run-dir", run], ["resume", run]):
            done = stacking(*command, check=False)
            assert done.returncode == 2 and "is in use by process" in done.stderr
    finally:
        controller.kill()
        controller.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(mounted)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_a_full_disk_is_an_error_that_leaves_the_last_good_state(
    recipe: Path, undisturbed: Path, small_disk: Path
) -> None:
    run, filler = small_disk / "run", small_disk / "filler"
    controller = start("run", recipe, "--run-dir", run)
    _wait_until(controller, lambda: (run / "0-L1" / "checkpoints" / "latest").exists())
    _fill(filler)
    output, _ = controller.communicate(timeout=120)
    assert controller.returncode == 2, output
    assert "no space left on the device" in output.splitlines()[-1]
    good = (run / "0-L1" / "checkpoints" / "latest").read_text()
    verify_folder(run / "0-L1" / "checkpoints" / good)
    filler.unlink()
    stacking("resume", run)
    weights = "1-L2/state/weights.safetensors"
    assert checksum(run / weights) == checksum(undisturbed / weights)


# What to wait for, whom to kill


def _resume(run: Path) -> subprocess.Popen[str]:
    return start("resume", run)


def _kill_when(
    controller: subprocess.Popen[str],
    run: Path,
    victim: Callable[[Path, int], int],
    moment: Callable[[], bool],
    every: float = 0.01,
) -> None:
    """SIGKILL ``victim`` as soon as ``moment`` has come, and wait for the controller to end."""
    _wait_until(controller, moment, every)
    os.kill(victim(run, controller.pid), signal.SIGKILL)
    controller.communicate(timeout=60)
    assert controller.returncode != 0


def _wait_until(controller: subprocess.Popen[str], moment: Callable[[], bool], every: float = 0.01) -> None:
    deadline = time.monotonic() + 120
    while not moment():
        assert controller.poll() is None, controller.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(every)


def _controller(run: Path, controller: int) -> int:
    return controller


def _rank(run: Path, controller: int) -> int:
    """The second rank of the stage that trains; those of the next stage may already wait behind it."""
    while len(children := _children(controller)) < 2:
        time.sleep(BRIEF)
    return children[1]


def _growth(run: Path, controller: int) -> int:
    """The process that grows the model, once it exists; ranks of the next stage may be waiting next to it."""
    while True:
        for child in _children(controller):
            with contextlib.suppress(FileNotFoundError):
                if b"grow" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                    return child
        time.sleep(BRIEF)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _events(run: Path) -> list[tuple[Any, Any, Any]]:
    """All events, because the last one may change between two checks."""
    return [(e["event"], e.get("phase"), e.get("stage")) for e in Journal(run / "journal.jsonl").events()]


def _records(run: Path, stage: str) -> list[dict[str, Any]]:
    path = run / stage / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _steps(run: Path, stage: str) -> int:
    return max((record["step"] for record in _records(run, stage)), default=0)


def _unfinished_copy(run: Path, copy: Path) -> Path:
    """A copy of a finished run as it was at the end of its last training."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "1-L2" / "state")
    shutil.rmtree(copy / "export")
    (copy / "report.html").unlink()
    return copy


def _fill(filler: Path) -> None:
    """Leave not a byte on the disk."""
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        for block in (1 << 16, 1 << 10, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * block) == block:
                    pass


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def _checksums(run: Path) -> dict[str, str]:
    return {p.relative_to(run).as_posix(): checksum(p) for p in run.rglob("*.safetensors")}
