"""Ranks that measure each other: real ones on this machine, over gloo."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.doctor.collectives import OPERATIONS, clock_offset
from stacking.doctor.ranks import measure
from stacking.errors import StackingError
from stacking.launch.job import Job
from stacking.launch.local import Local, LocalJob


class Changed(Local):
    """Starts the ranks with a different command, or different variables, than requested."""

    def __init__(self, argv: list[str] | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._argv, self._environment = argv, environment or {}

    def start(self, job: Job, inherited: Any = ()) -> LocalJob:
        argv, environment = self._argv or job.argv, {"OMP_NUM_THREADS": "1", **self._environment}
        changed = Job(name=job.name, argv=argv, ranks=job.ranks, logs=job.logs, environment=environment)
        return super().start(changed, inherited)


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_operation_gives_right_results_and_a_speed_at_every_size(tmp_path: Path, ranks: int) -> None:
    found = measure(Changed(), ranks, "cpu", tmp_path, [1 << 10, 1 << 16], patience=60)
    assert (found["wrong"], found["refused"], found["backend"]) == ([], [], "gloo")
    assert [t["operation"] for t in found["transfers"]] == [name for name in OPERATIONS for _ in range(2)]
    for transfer in found["transfers"]:
        passes = 2 if transfer["operation"] == "all-reduce" else 1
        assert transfer["bytes"] % (4 * ranks) == 0 and transfer["seconds"] > 0
        carried = transfer["bytes"] * passes * (ranks - 1) / ranks
        assert transfer["bandwidth"] == pytest.approx(carried / transfer["seconds"])
    assert 0 < found["latency_seconds"] < 1
    assert len(found["members"]) == ranks and all(member["sees_folder"] for member in found["members"])
    assert found["nodes"] == 1 and found["skews"] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.distributed
def test_ranks_on_several_hosts_compare_their_clocks(tmp_path: Path) -> None:
    """One machine acts as two: each rank invents its host's name, and the second one's clock is 100 s ahead."""
    script = (
        "import os, socket, sys, time; n = os.environ['RANK']; socket.gethostname = lambda: 'n' + n\n"
        "real = time.time; time.time = lambda: real() + 100 * int(n)\n"
        "from stacking.doctor import collectives\n"
        "from pathlib import Path\n"
        f"folder = next(Path({str(tmp_path)!r}).glob('.stacking-doctor.*'))\n"
        "collectives.run_rank(lambda: collectives.main(folder, '[1024]'))"
    )
    found = measure(Changed([sys.executable, "-c", script]), 2, "cpu", tmp_path, [1024], patience=60)
    assert found["nodes"] == 2
    (skew,) = found["skews"]
    assert skew["host"] == "n1" and abs(skew["seconds"] - 100) <= skew["uncertainty"] + 1e-3


@pytest.mark.distributed
def test_wrong_results_are_detected(tmp_path: Path) -> None:
    """A broken network is simulated: what one rank receives is changed."""
    script = (
        "import os, sys, torch\n"
        "from stacking.doctor import collectives\n"
        "from pathlib import Path\n"
        "def broken(whole, part):\n"
        "    right(whole, part)\n"
        "    whole[5] += 1 if os.environ['RANK'] == '1' else 0\n"
        "right = collectives.OPERATIONS['all-gather'].run\n"
        "collectives.OPERATIONS['all-gather'] = collectives.OPERATIONS['all-gather']._replace(run=broken)\n"
        f"folder = next(Path({str(tmp_path)!r}).glob('.stacking-doctor.*'))\n"
        "collectives.run_rank(lambda: collectives.main(folder, '[1024]'))"
    )
    found = measure(Changed([sys.executable, "-c", script]), 2, "cpu", tmp_path, [1024], patience=60)
    assert found["wrong"] == ["all-gather of 1,024 bytes"]


def test_a_failed_rank_is_named_with_its_last_output(tmp_path: Path) -> None:
    script = "import os, time\nif os.environ['RANK'] == '1': raise SystemExit('no network')\ntime.sleep(60)"
    with pytest.raises(StackingError, match="rank 1 ended with exit code 1: no network"):
        measure(Changed([sys.executable, "-c", script]), 2, "cpu", tmp_path, [1024], patience=30)
    assert list(tmp_path.iterdir()) == []


def test_hanging_ranks_are_stopped(tmp_path: Path) -> None:
    launcher = Changed([sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(StackingError, match="2 ranks did not end in 1 s"):
        measure(launcher, 2, "cpu", tmp_path, [1024], patience=1)
    assert list(tmp_path.iterdir()) == []


delays = st.floats(1e-6, 0.5)


@given(
    ahead=st.floats(-1e4, 1e4),
    trips=st.lists(st.tuples(delays, delays, delays), min_size=1, max_size=8),
)
def test_a_clock_offset_is_correct_within_its_stated_uncertainty(
    ahead: float, trips: list[tuple[float, float, float]]
) -> None:
    """However long the messages there and back take, and however asymmetric they are."""
    left, now = list(trips), 1000.0

    def exchange() -> tuple[float, float, float, float]:
        there, between, back = left.pop()
        heard = now + there
        return now, heard + ahead, heard + between + ahead, heard + between + back

    offset, within = clock_offset(exchange, len(trips))
    assert abs(offset - ahead) <= within + 1e-9 * max(1.0, abs(ahead))
    assert within <= min(there + back for there, _, back in trips) / 2 + 1e-9
