"""How the tokens of many sequences are laid out in one row."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from stacking.data.unpad import Unpadded, pad, positions_in
from stacking.model.tokens import Layout, padded_tokens, unpadded_tokens

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def batch(lengths: list[int], seed: int = 0) -> Unpadded:
    """Random tokens; a sixth of those after each sequence's first are masked."""
    generator, sizes = np.random.default_rng(seed), np.array(lengths)
    total, starts = sizes.sum(), np.cumsum(sizes) - sizes
    ids, positions = generator.integers(5, 101, total), positions_in(sizes)
    masked = np.setdiff1d(np.flatnonzero(generator.random(total) < 1 / 6), starts)
    segments = (positions > np.repeat(sizes, sizes) // 2).astype(np.int64)
    labels = generator.integers(5, 101, len(masked))
    return Unpadded(ids, segments, positions, sizes, masked, labels, generator.integers(0, 2, len(sizes)))


def sequences(layout: Layout) -> list[list[int]]:
    """The rows of every sequence, derived from the positions of the groups."""
    count = int(layout.offsets[-1])
    rows = torch.arange(count) if layout.rows is None else layout.rows
    places = torch.arange(count) if layout.places is None else layout.places
    standing, found = set(places.tolist()), []
    at = 0
    for group in layout.groups:
        for _ in range(group.sequences):
            found.append([int(rows[place]) for place in range(at, at + group.length) if place in standing])
            at += group.length
    return found


@given(lengths=LENGTHS, grouped=st.booleans())
def test_the_groups_contain_every_sequence_once_and_whole(lengths: list[int], grouped: bool) -> None:
    tokens = unpadded_tokens(batch(lengths), grouped)
    ends = np.cumsum(lengths)
    expected = [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
    assert sorted(sequences(tokens.layout)) == expected
    assert tokens.layout.offsets.tolist() == [0, *ends] and tokens.layout.longest == max(lengths)


@given(lengths=LENGTHS)
def test_masks_cover_exactly_the_positions_of_tokens(lengths: list[int]) -> None:
    layout = unpadded_tokens(batch(lengths)).layout
    shown = [
        torch.ones(g.sequences * g.length, dtype=torch.bool) if g.mask is None else g.mask.flatten()
        for g in layout.groups
    ]
    places = torch.arange(sum(lengths)) if layout.places is None else layout.places
    assert sorted(torch.cat(shown).nonzero().flatten().tolist()) == sorted(places.tolist())


@given(lengths=LENGTHS)
def test_few_positions_stay_empty(lengths: list[int]) -> None:
    layout = unpadded_tokens(batch(lengths)).layout
    assert sum(group.sequences * group.length for group in layout.groups) <= sum(lengths) / 0.75


@given(lengths=LENGTHS)
def test_the_needed_rows_are_first_and_masked_tokens_by_sequence(lengths: list[int]) -> None:
    drawn = batch(lengths)
    tokens = unpadded_tokens(drawn)
    starts = np.cumsum(lengths) - lengths
    assert tokens.needed[tokens.first].tolist() == starts.tolist()
    assert tokens.needed[tokens.masked].tolist() == drawn.mlm_positions.tolist()
    assert tokens.needed.tolist() == sorted([*starts, *drawn.mlm_positions])
    by_sequence = [tokens.needed[rows].tolist() for rows in sorted(sequences(tokens.needed_layout))]
    ends = starts + lengths
    assert [(rows[0], rows[-1] < end) for rows, end in zip(by_sequence, ends, strict=True)] == [
        (start, True) for start in starts
    ]


@given(lengths=LENGTHS, masked=st.booleans())
@example(lengths=[7, 8], masked=False)  # each needs its first row alone, and the group has the longer one first
def test_needed_rows_and_their_sequences_are_in_the_same_order(lengths: list[int], masked: bool) -> None:
    drawn = batch(lengths)
    nothing = np.empty(0, dtype=np.int64)
    tokens = unpadded_tokens(drawn if masked else drawn._replace(mlm_positions=nothing, mlm_labels=nothing))
    pairs = zip(sequences(tokens.needed_layout), sequences(tokens.layout), strict=True)
    assert all({int(tokens.needed[row]) for row in needed} <= set(rows) for needed, rows in pairs)


@given(lengths=LENGTHS)
def test_padded_tokens_are_the_same_tokens_with_padding(lengths: list[int]) -> None:
    drawn = batch(lengths)
    rows = pad(drawn, max(lengths) + 1, 0)
    padded = padded_tokens(rows.input_ids, rows.segment_ids, rows.attention_mask, rows.mlm_positions)
    real = torch.from_numpy(rows.attention_mask.reshape(-1))
    tokens = unpadded_tokens(drawn)
    for name in ("input_ids", "segment_ids"):
        assert torch.equal(getattr(padded, name)[real], getattr(tokens, name))
    assert torch.equal(padded.layout.positions[real], tokens.layout.positions)
    assert torch.equal(padded.input_ids[padded.needed], tokens.input_ids[tokens.needed])


@given(lengths=LENGTHS)
def test_each_row_knows_its_position_in_its_sequence_even_among_the_needed_rows(lengths: list[int]) -> None:
    tokens = unpadded_tokens(batch(lengths))
    assert tokens.layout.positions.tolist() == [position for length in lengths for position in range(length)]
    assert torch.equal(tokens.needed_layout.positions, tokens.layout.positions[tokens.needed])
