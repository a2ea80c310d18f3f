"""Links from measured collectives: the law that generated them is recovered."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.errors import UserError
from stacking.estimate.communication import Operation
from stacking.estimate.doctor_file import Collective, fit, read_doctor
from stacking.estimate.network import Network
from stacking.estimate.prediction import predict
from stacking.hardware.presets import Link
from tests.estimate.plans import doctor_file, shipped, tabled

SIZES = [2**n for n in range(10, 29, 2)]


def collectives(network: Network, ranks: int, nodes: int = 1, noise: float = 0.0) -> list[dict[str, Any]]:
    """What the doctor measures on ``network``."""
    drawn = random.Random(0)
    return [
        {"operation": operation, "bytes": size, "ranks": ranks, "nodes": nodes,
         "seconds": network.seconds(operation, size, ranks) * (1 + noise * drawn.uniform(-1, 1)), "bandwidth": 1.0}
        for operation in get_args(Operation) for size in SIZES
    ]  # fmt: skip


@given(st.floats(1e-6, 1e-3), st.floats(1e8, 1e12), st.integers(2, 16), st.sampled_from(get_args(Operation)))
def test_a_fit_finds_latency_and_bandwidth(latency: float, bandwidth: float, ranks: int, operation: Operation) -> None:
    law = Network(16, Link(latency, bandwidth, ""), Link(1.0, 1.0, ""))
    rows = [Collective(**row) for row in collectives(law, ranks) if row["operation"] == operation]
    found = fit(operation, rows, "test")
    assert found.latency == pytest.approx(latency, rel=1e-3)
    assert found.bandwidth == pytest.approx(bandwidth, rel=1e-3)


def test_ten_percent_noise_gives_about_ten_percent_error() -> None:
    law = Network(16, Link(5e-5, 2e9, ""), Link(1.0, 1.0, ""))
    rows = [Collective(**row) for row in collectives(law, 2, noise=0.1) if row["operation"] == "all-reduce"]
    found = fit("all-reduce", rows, "test")
    assert found.latency == pytest.approx(5e-5, rel=0.15)
    assert found.bandwidth == pytest.approx(2e9, rel=0.15)


@pytest.mark.parametrize("sizes", [[1024], [8, 16]])
def test_a_few_sizes_are_enough_to_fit_a_link(sizes: list[int]) -> None:
    rows = [Collective(operation="all-reduce", bytes=size, ranks=2, seconds=1e-4) for size in sizes]
    found = fit("all-reduce", rows, "test")
    assert found.latency >= 0 and found.bandwidth > 0


def test_measured_links_replace_those_of_the_table(tmp_path: Path) -> None:
    plan = shipped("books-cpu")
    slow = Network(2, Link(1e-3, 1e7, ""), Link(1.0, 1.0, ""))
    file = doctor_file(tmp_path / "doctor.json", collectives(slow, 2))
    found = tabled(plan, network_file=file)
    assert found.network.inside.bandwidth == pytest.approx(1e7, rel=0.01)
    assert found.network.between == tabled(plan).network.between
    assert predict(plan, found).communication_share > predict(plan, tabled(plan)).communication_share
    assert any(str(file) in assumption for assumption in predict(plan, found).assumptions)


def test_links_between_nodes_are_distinguished_from_those_within(tmp_path: Path) -> None:
    plan = shipped("books-cpu")
    over_nodes = Network(1, Link(0.0, 1.0, ""), Link(2e-4, 1e9, ""))
    rows = [{**row, "ranks": 8} for row in collectives(over_nodes, 4, nodes=4) if row["operation"] == "all-reduce"]
    found = tabled(plan, network_file=doctor_file(tmp_path / "doctor.json", rows))
    assert found.network.between.bandwidth == pytest.approx(1e9, rel=0.1)
    assert found.network.inside == tabled(plan).network.inside


def test_the_disks_speed_is_taken_where_it_is_known(tmp_path: Path) -> None:
    plan, links = shipped("books-cpu"), Network(2, Link(1e-4, 1e9, ""), Link(1.0, 1.0, ""))
    folder = {"write": 1e8, "read": 4e8}
    found = tabled(plan, network_file=doctor_file(tmp_path / "doctor.json", collectives(links, 2), folder=folder))
    assert found.host.disk == 1e8
    assert (
        predict(plan, found).stages[0].outside.checkpoints > predict(plan, tabled(plan)).stages[0].outside.checkpoints
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "is not the JSON of a doctor"),
        ("[]", "not an object"),
        ("no JSON", "is not JSON"),
        ('{"format": 1, "kind": "bench"}', "is not the JSON of a doctor"),
        ('{"format": 1, "kind": "doctor"}', "holds no collective between ranks"),
        ('{"format": 1, "kind": "doctor", "collectives": [{"operation": "all-reduce"}]}', "collectives.0.bytes"),
    ],
)
def test_an_unrelated_file_is_reported_in_one_line(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "doctor.json").write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        read_doctor(tmp_path / "doctor.json")
    assert "\n" not in str(caught.value)
