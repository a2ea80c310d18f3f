"""Collectives in the alpha-beta model: closed forms, and what no network can beat."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.estimate.communication import Operation
from stacking.estimate.network import Network, tabled
from stacking.hardware.presets import DEVICE_CLASSES, Link

OPERATIONS = get_args(Operation)
NETWORK = Network(8, Link(1e-5, 1e11, "near"), Link(2e-5, 1e10, "far"))
SIZES = st.floats(1, 1e10)
operations = st.sampled_from(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_single_rank_never_waits(operation: Operation) -> None:
    assert NETWORK.seconds(operation, 1e9, 1) == 0


@pytest.mark.parametrize("ranks", [2, 5, 8])
def test_within_a_node_a_ring_matches_its_closed_form(ranks: int) -> None:
    steps, bytes_ = ranks - 1, (ranks - 1) / ranks * 1e9
    assert NETWORK.seconds("all-gather", 1e9, ranks) == pytest.approx(steps * 1e-5 + bytes_ / 1e11)
    assert NETWORK.seconds("reduce-scatter", 1e9, ranks) == NETWORK.seconds("all-gather", 1e9, ranks)
    assert NETWORK.seconds("all-reduce", 1e9, ranks) == pytest.approx(2 * NETWORK.seconds("all-gather", 1e9, ranks))


def test_over_two_nodes_the_adapters_carry_every_byte_once_each_way() -> None:
    near = NETWORK.seconds("all-reduce", 1e9, 8)
    assert NETWORK.seconds("all-reduce", 1e9, 16) == pytest.approx(near + 2 * 2e-5 + 1e9 / 1e10)


def test_small_messages_go_through_a_tree_when_rings_are_long() -> None:
    near = NETWORK.seconds("all-reduce", 8, 8)
    assert NETWORK.seconds("all-reduce", 8, 1024) - near == pytest.approx(2 * 7 * 2e-5, rel=1e-3)


@given(operations, SIZES, st.integers(1, 2000), st.integers(1, 2000))
def test_more_ranks_are_never_faster(operation: Operation, size: float, first: int, second: int) -> None:
    few, many = sorted((first, second))
    assert NETWORK.seconds(operation, size, few) <= NETWORK.seconds(operation, size, many) * (1 + 1e-12)


@given(operations, SIZES, SIZES, st.integers(1, 2000))
def test_more_bytes_are_never_faster(operation: Operation, first: float, second: float, ranks: int) -> None:
    less, more = sorted((first, second))
    assert NETWORK.seconds(operation, less, ranks) <= NETWORK.seconds(operation, more, ranks)


@pytest.mark.parametrize("name", DEVICE_CLASSES)
def test_every_class_has_a_network_and_says_where_from(name: str) -> None:
    network = tabled(DEVICE_CLASSES[name], ranks=4)
    assert network.nodes(4) == 1
    assert network.inside.source and network.between.source
    assert network.inside.latency <= network.between.latency
    assert "between nodes" in network.assumption(1024) and "between nodes" not in network.assumption(4)
