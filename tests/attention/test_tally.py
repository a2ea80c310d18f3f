"""Streamed sums equal the means of the definitions, however the sequences are batched, in constant memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.attention.result import attention_of, divergences, similarity_of
from stacking.attention.tally import F32, Bool, Measures, NotProbabilities, Tally
from tests.attention.conftest import read_attention

LAYERS, HEADS, WINDOW = 4, 2, 3


def drawn(seed: int, lengths: list[int]) -> tuple[F32, Bool, Bool]:
    """Random attention over sequences of these lengths, with random separators; padded queries attend too."""
    generator = np.random.default_rng(seed)
    longest = max(lengths)
    mask = np.arange(longest) < np.array(lengths)[:, None]
    scores = generator.normal(0, 2, (LAYERS, len(lengths), HEADS, longest, longest))
    weights = np.exp(scores) * mask[:, None, None, :]
    separators = mask & (generator.random(mask.shape) < 0.3)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32), mask, separators


def tally_of(*batches: tuple[F32, Bool, Bool], window: int = WINDOW) -> Tally:
    tally = Tally(LAYERS, HEADS, window)
    for probabilities, mask, separators in batches:
        tally.add(probabilities.copy(), mask, separators)
    return tally


def by_definition(probabilities: F32, mask: Bool, separators: Bool, layer: int, head: int) -> dict[str, object]:
    """The means of one head, query by query."""
    rows: dict[str, list[float]] = {"first": [], "separators": [], "itself": [], "entropy": []}
    positions = []
    for batch, real in enumerate(mask):
        n = int(real.sum())
        for query in range(n):
            row = probabilities[layer, batch, head, query, :n].astype(float)
            rows["first"].append(row[0])
            rows["separators"].append(sum(row[key] for key in range(n) if separators[batch, key]))
            rows["itself"].append(row[query])
            rows["entropy"].append(-sum(p * np.log(p) for p in row if p > 0))
            place = np.zeros(2 * WINDOW + 1)
            for key in range(n):
                place[min(max(key - query, -WINDOW), WINDOW) + WINDOW] += row[key]
            positions.append(place)
    return {**{name: np.mean(values) for name, values in rows.items()}, "by_position": np.mean(positions, axis=0)}


def test_means_match_their_definitions() -> None:
    batch = drawn(0, [9, 5, 1])
    means = tally_of(batch).means()
    for layer in range(LAYERS):
        for head in range(HEADS):
            for name, expected in by_definition(*batch, layer, head).items():
                assert getattr(means, name)[layer, head] == pytest.approx(expected, rel=1e-5), name


def test_uniform_attention_is_measured_like_a_models() -> None:
    _, mask, separators = drawn(1, [7, 4])
    flat = (mask[None, :, None, None, :] / mask.sum(1)[None, :, None, None, None]).astype(np.float32)
    tally = tally_of((np.broadcast_to(flat, (LAYERS, 2, HEADS, 7, 7)), mask, separators))
    for name, value in vars(tally.even()).items():
        assert getattr(tally.means(), name)[0, 0] == pytest.approx(value, rel=1e-5), name


@given(st.lists(st.integers(1, 8), min_size=2, max_size=6), st.integers(0, 2**20))
def test_batching_and_padding_make_no_difference(lengths: list[int], seed: int) -> None:
    probabilities, mask, separators = drawn(seed, lengths)
    together = tally_of((probabilities, mask, separators))
    singly = tally_of(
        *(
            (probabilities[:, at : at + 1, :, :n, :n], mask[at : at + 1, :n], separators[at : at + 1, :n])
            for at, n in enumerate(lengths)
        )
    )
    assert_equal(together.means(), singly.means())
    assert_equal(together.even(), singly.even())
    assert np.allclose(together.cosines(), singly.cosines(), atol=1e-5)


def assert_equal(one: Measures, other: Measures) -> None:
    for name, values in vars(one).items():
        assert np.allclose(values, getattr(other, name), atol=1e-5), name


@given(st.lists(st.integers(1, 8), min_size=1, max_size=4), st.integers(0, 2**20))
def test_shares_are_valid_and_entropy_never_exceeds_that_of_uniform_attention(lengths: list[int], seed: int) -> None:
    tally = tally_of(drawn(seed, lengths))
    means = tally.means()
    assert np.allclose(means.by_position.sum(-1), 1, atol=1e-5)
    assert np.allclose(means.by_position[..., WINDOW], means.itself)
    assert (means.entropy <= tally.even().entropy + 1e-5).all() and (means.entropy >= -1e-6).all()


def test_memory_does_not_grow_with_the_number_of_sequences() -> None:
    batch = drawn(2, [32] * 4)
    assert peak(batch, 40) < 1.05 * peak(batch, 4)


def peak(batch: tuple[F32, Bool, Bool], times: int) -> int:
    tracemalloc.start()
    tally_of(*[batch] * times)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest


def test_scores_that_are_not_probabilities_are_refused() -> None:
    probabilities, mask, separators = drawn(3, [5])
    with pytest.raises(NotProbabilities, match=r"adds up to 1\.5"):
        tally_of((1.5 * probabilities, mask, separators))


def test_attention_to_padding_is_refused() -> None:
    probabilities, _, separators = drawn(4, [6])
    with pytest.raises(NotProbabilities):
        tally_of((probabilities, np.arange(6)[None] < 4, separators))


def test_a_layer_and_its_copy_attend_alike() -> None:
    probabilities, mask, separators = drawn(5, [8, 6])
    probabilities[2:] = probabilities[:2]
    alike = attention_of(tally_of((probabilities, mask, separators)), "m", "t", 8).similarity
    assert [(pair.lower, pair.upper) for pair in alike.halves] == [(0, 2), (1, 3)]
    assert alike.halves_cosine == pytest.approx(1, abs=1e-5)
    assert all(pair.divergence == pytest.approx(0, abs=1e-9) for pair in alike.halves)
    assert alike.others_cosine is not None and alike.others_cosine < 0.9


def test_heads_that_attend_to_different_tokens_are_dissimilar() -> None:
    probabilities = np.zeros((LAYERS, 1, HEADS, 4, 4), dtype=np.float32)
    for layer in range(LAYERS):
        probabilities[layer, 0, :, :, layer] = 1
    cosines = tally_of((probabilities, np.ones((1, 4), bool), np.zeros((1, 4), bool))).cosines()
    assert np.allclose(cosines, np.eye(LAYERS), atol=1e-6)


def test_the_divergence_is_zero_for_identical_and_ln_2_for_disjoint_attention() -> None:
    found = divergences(np.array([[1.0, 0, 0], [0, 0.5, 0.5], [1.0, 0, 0]]))
    assert found == pytest.approx(np.log(2) * np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]))


@pytest.mark.parametrize("layers", [1, 3])
def test_an_odd_depth_has_no_halves(layers: int) -> None:
    alike = similarity_of(np.eye(layers), np.zeros((layers, layers)))
    assert alike.halves == () and alike.halves_cosine is None


def test_two_layers_have_no_pairs_outside_the_halves() -> None:
    alike = similarity_of(np.eye(2), np.zeros((2, 2)))
    assert alike.halves_cosine == 0 and alike.others_cosine is None


def test_the_file_round_trips(tmp_path: Path) -> None:
    attention = attention_of(tally_of(drawn(6, [5, 3])), "model", "text", 8)
    attention.write(tmp_path)
    assert read_attention(tmp_path) == attention
