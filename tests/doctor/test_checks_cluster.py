"""Findings about ranks on several nodes. The facts are invented; real ranks are tested in test_collectives."""

from __future__ import annotations

from typing import Any

from stacking.doctor.facts import Collectives, MeasuredTransfer, Member, Skew
from tests.doctor.sample_machines import findings, machine, only


def member(rank: int, **changes: Any) -> Member:
    facts: dict[str, Any] = {"rank": rank, "host": f"n{rank}", "python": "3.11.7", "torch": "2.13.0", "device": "cpu"}
    return Member(**(facts | {"sees_folder": True} | changes))


def transfer(size: int, bandwidth: float, operation: str = "all-reduce") -> MeasuredTransfer:
    return MeasuredTransfer(
        operation=operation, bytes=size, ranks=2, nodes=2, seconds=size / bandwidth, bandwidth=bandwidth
    )


def collectives(**changes: Any) -> Collectives:
    facts: dict[str, Any] = {"backend": "nccl", "ranks": 2, "nodes": 2, "members": (member(0), member(1))}
    return Collectives(**(facts | changes))


def test_the_largest_transfer_of_each_operation_is_shown() -> None:
    transfers = (transfer(1 << 10, 1e6), transfer(64 << 20, 20e9), transfer(64 << 20, 10e9, "all-gather"))
    found = only("collectives", machine(collectives=collectives(transfers=transfers, latency_seconds=25e-6)))
    assert found.level == "ok"
    assert (
        found.found
        == "all-reduce 20.00, all-gather 10.00 GB/s (64 MiB, nccl, 2 ranks on 2 nodes); 25 µs for one number"
    )


def test_a_network_of_the_wrong_kind_is_slow() -> None:
    slow = collectives(transfers=(transfer(64 << 20, 0.11e9),))
    found = only("collectives", machine(collectives=slow))
    assert found.level == "warning" and "interface" in found.advice


def test_wrong_results_are_an_error() -> None:
    found = only("collectives", machine(collectives=collectives(wrong=("all-reduce of 1,024 bytes",))))
    assert found.level == "error" and "all-reduce of 1,024 bytes gave wrong results" in found.found


def test_ranks_that_cannot_communicate_are_an_error_and_slow_ones_a_warning() -> None:
    failed = machine(failures={"collectives": "rank 1 on n2 ended with exit code 1: Connection refused"})
    found = only("collectives", failed)
    assert found.level == "error" and "rank 1 on n2" in found.found and findings("probes", failed) == []
    slow = machine(failures={"collectives in time": "64 ranks did not end in 120 s"})
    assert findings("collectives", slow) == [] and only("probes", slow).level == "warning"


def test_an_operation_that_the_backend_refuses_is_named() -> None:
    found = only("collectives", machine(collectives=collectives(refused=("reduce-scatter (not supported)",))))
    assert found.level == "warning" and "nccl refused reduce-scatter" in found.found


def test_clock_skew_is_reported_and_is_a_warning_above_one_second() -> None:
    def clocks(*seconds: float) -> Any:
        skews = tuple(Skew(host=f"n{i}", seconds=s, uncertainty=1e-4) for i, s in enumerate(seconds))
        return machine(collectives=collectives(skews=skews))

    found = only("clocks", clocks(0.1, -90.0))
    assert found.level == "warning" and found.found == "n1 is 90 s behind (to within 100 µs)"
    assert only("clocks", clocks(0.1, 0.02)).found == "n0 is 100 ms ahead (to within 100 µs)"
    assert findings("clocks", clocks()) == []


def test_nodes_that_differ_or_do_not_see_the_run_are_reported() -> None:
    def levels(**changes: Any) -> list[str]:
        found = findings("nodes", machine(collectives=collectives(members=(member(0), member(1, **changes)))))
        return [finding.level for finding in found]

    assert levels() == []
    assert levels(torch="2.12.0") == ["error"]
    assert levels(device="NVIDIA A100") == ["warning"]
    assert levels(sees_folder=False) == ["error"]
