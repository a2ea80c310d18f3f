"""`stacking doctor` from the outside: what it prints, what it returns, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chain import stacking

TRANSFER = {"operation", "bytes", "ranks", "nodes", "seconds", "bandwidth"}


@pytest.mark.slow
@pytest.mark.distributed
def test_the_json_is_readable_by_its_consumers(tmp_path: Path) -> None:
    done = stacking("doctor", "--run-dir", tmp_path, "--ranks", "2", "--json")
    found = json.loads(done.stdout)
    assert (found["format"], found["kind"]) == (1, "doctor")
    assert all(set(finding) == {"level", "what", "found", "advice"} for finding in found["findings"])
    assert found["collectives"] and all(set(transfer) == TRANSFER for transfer in found["collectives"])
    assert max(transfer["bytes"] for transfer in found["collectives"]) == 64 << 20
    assert found["latency_seconds"] > 0 and found["devices"][0]["class"] == "cpu"
    assert list(tmp_path.iterdir()) == []


def test_the_text_starts_with_the_worst_finding_and_ends_with_a_count(tmp_path: Path) -> None:
    done = stacking("doctor", "--run-dir", tmp_path, "--no-collectives", "--recipe", "bert-base-v100", check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0].split() == ["ERROR", "GPUs", "none,", "but", "the", "plan", "is", "for", "v100"]
    assert lines[1].strip().startswith("→ run it where there are GPUs")
    order = [line.split()[0] for line in lines if line and not line.startswith(" ")][:-1]
    assert order == sorted(order, key=["ERROR", "warning", "note", "ok"].index)
    assert "1 error" in lines[-1]


MISTAKES = {
    "a recipe that is not there": (["--recipe", "no.yaml"], "no.yaml: does not exist"),
    "a change without a recipe": (["--set", "seed=1"], "--set changes a recipe: add --recipe"),
    "no slurm": (["--launcher", "slurm"], "works only inside a SLURM job"),
    "a hostfile for no mpirun": (["--hostfile", "hosts"], "add --launcher mpi"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, words = MISTAKES[name]
    done = stacking("doctor", *arguments, check=False)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
