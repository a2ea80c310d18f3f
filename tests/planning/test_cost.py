"""Memory estimates change with what they depend on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stacking.model.config import ModelConfig
from stacking.model.size import count_parameters
from stacking.planning.cost import activation_bytes, memory_per_rank, state_bytes
from tests.states import SMALL

MODEL = ModelConfig(**SMALL)


def activations(layers: int, micro_batch: int, recomputed: bool) -> int:
    return activation_bytes(MODEL.with_layers(layers), micro_batch, 16, 4, fused=True, recomputed=recomputed)


def test_checkpointing_saves_most_of_the_activations_of_a_deep_model() -> None:
    assert activations(24, 8, recomputed=True) < 0.5 * activations(24, 8, recomputed=False)


@given(layers=st.integers(1, 48), micro_batch=st.integers(1, 64))
def test_checkpointing_never_needs_more(layers: int, micro_batch: int) -> None:
    assert activations(layers, micro_batch, recomputed=True) <= activations(layers, micro_batch, recomputed=False)


def test_checkpointing_one_layer_saves_nothing() -> None:
    assert activations(1, 8, recomputed=True) == activations(1, 8, recomputed=False)


@given(micro_batch=st.integers(1, 64), ranks=st.sampled_from([1, 2, 4, 8]), stage=st.sampled_from([0, 1, 2, 3]))
def test_a_larger_micro_batch_needs_more_memory_and_more_sharding_less(
    micro_batch: int, ranks: int, stage: int
) -> None:
    def needed(micro_batch: int, stage: int) -> int:
        config = {"zero_optimization": {"stage": stage, "reduce_bucket_size": 1}} if stage else {}
        return memory_per_rank(MODEL, micro_batch, 16, ranks, config, fused=True)

    assert needed(micro_batch + 1, stage) > needed(micro_batch, stage)
    if stage > 1:
        assert needed(micro_batch, stage) <= needed(micro_batch, stage - 1)


def test_a_gpu_holds_one_whole_bucket_and_two_where_communication_overlaps() -> None:
    def needed(cuda: bool, **zero: int | bool) -> int:
        return state_bytes(1000, 1, {"zero_optimization": {"reduce_bucket_size": 5000, **zero}}, cuda)

    assert needed(cuda=True, stage=1) - needed(cuda=False, stage=1) == 4 * (5000 - 1000)
    assert needed(cuda=True, stage=2, overlap_comm=True) - needed(cuda=True, stage=2) == 4 * 5000
    assert needed(cuda=True, stage=3, overlap_comm=True) == needed(cuda=True, stage=3)


def test_a_gpu_also_holds_the_workspaces_of_cublas() -> None:
    def beside_state(cuda: bool) -> int:
        needed = memory_per_rank(MODEL, 4, 16, 1, {}, fused=cuda) - state_bytes(count_parameters(MODEL), 1, {}, cuda)
        return needed - activation_bytes(MODEL, 4, 16, 4, fused=cuda)

    assert (beside_state(cuda=True), beside_state(cuda=False)) == (2 * 32 * 2**20, 0)


def test_the_heads_activations_scale_with_the_mask_probability() -> None:
    few, many = (activation_bytes(MODEL, 4, 16, 4, fused=True, mask_probability=p) for p in (0.125, 0.25))
    assert many - few == 4 * 16 // 8 * MODEL.vocabulary * (4 + 8)
