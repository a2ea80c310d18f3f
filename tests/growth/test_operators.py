"""Growth operators as mappings."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.growth.operators import (
    OPERATORS,
    OPTIMIZER_STATES,
    added_layers,
    check_listed,
    layer_sources,
    listed_sources,
    optimizer_state_rule,
    reachable,
)
from stacking.state.layers import becomes_zero, layer_of, with_layer

depths = st.integers(1, 12)
factors = st.integers(1, 5)
operators = st.sampled_from(sorted(OPERATORS))
to_any_multiple = st.sampled_from(["stack", "interleave", "identity"])


def layers(operator: str, source: int, target: int) -> list[int]:
    return [entry.layer for entry in layer_sources(operator, source, target)]


def test_the_operators_match_the_paper() -> None:
    assert layers("stack", 3, 6) == [0, 1, 2, 0, 1, 2]
    assert layers("interleave", 3, 6) == [0, 0, 1, 1, 2, 2]
    assert layer_sources("identity", 2, 3) == ((0, "copy"), (1, "copy"), (0, "silent"))


def test_the_operators_match_later_papers() -> None:
    assert layers("middle", 6, 8) == [0, 1, 2, 3, 2, 3, 4, 5]  # the second of three blocks
    assert layers("middle", 4, 6) == [0, 1, 0, 1, 2, 3]  # the first of two
    assert layers("middle", 5, 7) == [0, 1, 0, 1, 2, 3, 4]  # the fifth layer is in no block
    assert layers("middle", 3, 6) == layers("stack", 3, 6)
    assert [str(entry) for entry in layer_sources("block-expansion", 4, 6)] == [
        "0 copy", "1 copy", "1 silent", "2 copy", "3 copy", "3 silent",
    ]  # fmt: skip
    assert [e.layer for e in listed_sources([*range(24), *range(8, 32)])] == [*range(24), *range(8, 32)]  # SOLAR


@given(operators, depths, st.integers(1, 60))
def test_every_target_layer_has_a_source_layer_that_exists(operator: str, source: int, target: int) -> None:
    if reachable(operator, source, target):
        found = layers(operator, source, target)

        assert len(found) == target
        assert set(found) == set(range(source))


@given(operators, depths, st.integers(1, 60))
def test_every_source_layer_is_kept_once_in_order_and_the_rest_is_added(
    operator: str, source: int, target: int
) -> None:
    if reachable(operator, source, target):
        sources = layer_sources(operator, source, target)
        added = added_layers(sources)

        assert [s for i, s in enumerate(sources) if i not in added] == [(i, "copy") for i in range(source)]
        assert len(added) == target - source


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["copy", "silent"])), min_size=1, max_size=20))
def test_the_lowest_plain_copy_of_a_layer_in_a_list_counts_as_old(items: list[tuple[int, str]]) -> None:
    sources = listed_sources([f"{layer} {treatment}" for layer, treatment in items])
    added = added_layers(sources)

    assert sources == tuple(items)
    for target, source in enumerate(sources):
        assert (target in added) == (source.treatment == "silent" or source in sources[:target])


@given(st.integers(1, 6), st.integers(1, 6))
def test_growth_by_a_few_layers_at_a_time_is_a_list_for_each_stage(first: int, more: int) -> None:
    """Gradual growth: the top ``more`` layers again, as often as requested."""
    depth, order = max(first, more), list(range(max(first, more)))
    for _ in range(3):
        step = listed_sources([*range(depth), *range(depth - more, depth)])
        check_listed(step, depth)
        order = [order[source.layer] for source in step]
        depth += more

    assert added_layers(listed_sources(order)) == tuple(range(max(first, more), depth))


def test_a_list_of_layers_that_do_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'top' is neither a layer number nor one followed by 'silent'"):
        listed_sources([0, "top"])
    with pytest.raises(ValueError, match="-1 is neither a layer number"):
        listed_sources([-1])
    with pytest.raises(ValueError, match="layer 2 does not exist: the model has the layers 0 to 1"):
        check_listed(listed_sources([0, 1, 2]), 2)


@given(st.sampled_from(["stack", "interleave"]), depths, factors)
def test_every_source_layer_is_used_equally_often(operator: str, source: int, factor: int) -> None:
    assert set(Counter(layers(operator, source, factor * source)).values()) == {factor}


@given(to_any_multiple, depths, factors, factors)
def test_growing_twice_equals_growing_once_to_the_same_depth(
    operator: str, source: int, first: int, second: int
) -> None:
    middle, target = source * first, source * first * second
    upper = layers(operator, middle, target)
    lower = layers(operator, source, middle)

    assert [lower[layer] for layer in upper] == layers(operator, source, target)


@given(operators, depths)
def test_growing_to_the_same_depth_changes_nothing(operator: str, source: int) -> None:
    assert layer_sources(operator, source, source) == tuple((i, "copy") for i in range(source))


@given(depths, depths)
def test_identity_keeps_the_old_layers_and_silences_only_the_new(source: int, more: int) -> None:
    found = layer_sources("identity", source, source + more)

    assert found[:source] == tuple((i, "copy") for i in range(source))
    assert {entry.treatment for entry in found[source:]} == {"silent"}


@given(operators, st.integers(0, 12), st.integers(0, 40))
def test_an_unreachable_depth_is_refused_with_the_reachable_ones(operator: str, source: int, target: int) -> None:
    if reachable(operator, source, target):
        assert len(layer_sources(operator, source, target)) == target
    else:
        with pytest.raises(ValueError, match=f"{operator} makes .*layers out of {source}, not {target}"):
            layer_sources(operator, source, target)


def test_a_refusal_lists_the_depths() -> None:
    with pytest.raises(ValueError, match="stack makes 3, 6, 9, 12, … layers out of 3, not 7"):
        layer_sources("stack", 3, 7)
    with pytest.raises(ValueError, match="middle makes 3, 4, 5, 6 layers out of 3, not 7"):
        layer_sources("middle", 3, 7)
    with pytest.raises(ValueError, match="no growth operator 'double'; there are stack, interleave, identity, block-"):
        reachable("double", 3, 6)
    with pytest.raises(ValueError, match="no optimizer-state rule 'keep'; there are reset, "):
        optimizer_state_rule("keep")


def test_the_optimizer_state_rules_treat_moments_and_steps() -> None:
    for_all = {(a, b) for a in ("none", "all") for b in ("none", "all")}
    assert set(OPTIMIZER_STATES.values()) == {*for_all, ("old", "old")}
    assert OPTIMIZER_STATES["copy"] == ("all", "none")  # the original's --double-optimizer


def test_layer_numbers_are_read_and_written_in_names() -> None:
    assert layer_of("layers.11.attention.qkv.weight") == 11
    assert layer_of("embeddings.layers.weight") is None
    assert with_layer("layers.1.attention.layers.1.weight", 12) == "layers.12.attention.layers.1.weight"


def test_silent_layers_add_nothing_to_the_residual_stream() -> None:
    zero = [n for n in ("attention.qkv", "attention.output", "attention_norm", "feed_forward.up", "feed_forward.down")
            if becomes_zero(f"layers.4.{n}.weight", "silent")]  # fmt: skip
    assert zero == ["attention.output", "feed_forward.down"]
    assert not becomes_zero("layers.4.attention.output.weight", "copy")


def test_plans_can_use_operators_without_torch() -> None:
    code = "import sys, stacking.growth.operators; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
