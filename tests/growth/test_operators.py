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
    layer_sources,
    optimizer_state_rule,
    reachable,
)
from stacking.state.layers import becomes_zero, layer_of, with_layer

depths = st.integers(1, 12)
factors = st.integers(1, 5)
operators = st.sampled_from(sorted(OPERATORS))


def layers(operator: str, source: int, target: int) -> list[int]:
    return [entry.layer for entry in layer_sources(operator, source, target)]


def test_the_operators_of_the_paper() -> None:
    assert layers("stack", 3, 6) == [0, 1, 2, 0, 1, 2]
    assert layers("interleave", 3, 6) == [0, 0, 1, 1, 2, 2]
    assert layer_sources("identity", 2, 3) == ((0, "copy"), (1, "copy"), (0, "silent"))


@given(operators, depths, factors)
def test_every_target_layer_has_a_source_layer_that_exists(operator: str, source: int, factor: int) -> None:
    found = layers(operator, source, factor * source)

    assert len(found) == factor * source
    assert set(found) == set(range(source))


@given(st.sampled_from(["stack", "interleave"]), depths, factors)
def test_every_source_layer_is_used_equally_often(operator: str, source: int, factor: int) -> None:
    assert set(Counter(layers(operator, source, factor * source)).values()) == {factor}


@given(operators, depths, factors, factors)
def test_growing_twice_is_growing_at_once(operator: str, source: int, first: int, second: int) -> None:
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
def test_what_cannot_be_reached_is_refused_with_what_can(operator: str, source: int, target: int) -> None:
    if reachable(operator, source, target):
        assert len(layer_sources(operator, source, target)) == target
    else:
        with pytest.raises(ValueError, match=f"layers out of {source}, not {target}"):
            layer_sources(operator, source, target)


def test_a_refusal_lists_the_depths() -> None:
    with pytest.raises(ValueError, match="stack makes 3, 6, 9, 12, … layers out of 3, not 7"):
        layer_sources("stack", 3, 7)
    with pytest.raises(ValueError, match="no growth operator 'double'; there are stack, interleave, identity"):
        reachable("double", 3, 6)
    with pytest.raises(ValueError, match="no optimizer-state rule 'keep'; there are reset, "):
        optimizer_state_rule("keep")


def test_the_optimizer_state_rules_are_all_four() -> None:
    assert set(OPTIMIZER_STATES.values()) == {(a, b) for a in (False, True) for b in (False, True)}
    assert OPTIMIZER_STATES["copy"] == (True, False)  # the original's --double-optimizer


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
