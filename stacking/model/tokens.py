"""Defines the memory layout of a batch: T tokens in one row, and where each sequence begins and ends.

Padding costs as much as text in every matrix product, so the layers only see real tokens. Only attention needs to know
which tokens belong together; it finds that in a ``Layout``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stacking.data.batch import I64
from stacking.data.unpad import Unpadded, positions_in

_ALIKE = 0.75
"""Sequences share a group if the shortest has at least this share of the longest's tokens."""


@dataclass(frozen=True)
class Group:
    """Sequences of similar length as a rectangle, for kernels that require one."""

    sequences: int
    length: int
    mask: Tensor | None
    """bool [sequences, 1, 1, length], True at tokens; None: no empty place needs masking."""


@dataclass(frozen=True)
class Layout:
    """How T rows divide into B sequences."""

    groups: tuple[Group, ...]
    """Together they contain every sequence once. Places are numbered consecutively, group by group."""
    rows: Tensor | None
    """int64 [places]: the row at each place; an empty place repeats a row; None: all rows in order."""
    places: Tensor | None
    """int64 [T]: the place of each row; None: all rows in order."""
    offsets: Tensor
    """int32 [B + 1]: where each sequence begins, and the end of the last."""
    longest: int
    positions: Tensor
    """int64 [T]: where each row is in its sequence, from 0."""


@dataclass(frozen=True)
class Tokens:
    """The input of a model: T tokens of B sequences, P of them masked."""

    input_ids: Tensor
    """int64 [T]."""
    segment_ids: Tensor
    """int64 [T]."""
    layout: Layout
    needed: Tensor
    """int64 [R]: the rows that a head needs, sequence by sequence: its first token, then its masked ones."""
    needed_layout: Layout
    """How the R rows divide into the same groups of the same sequences."""
    first: Tensor
    """int64 [B]: among the needed rows, the first token of each sequence."""
    masked: Tensor
    """int64 [P]: among the needed rows, the masked tokens."""


def unpadded_tokens(batch: Unpadded, grouped: bool = True) -> Tokens:
    """Returns the tokens of a batch without padding, in host memory.

    Args:
        grouped: use several rectangles of sequences of similar length; False: one rectangle as wide as the longest.
    """
    return _tokens(batch, _groups(batch.lengths) if grouped else [np.arange(len(batch.lengths))])


def padded_tokens(input_ids: I64, segment_ids: I64, attention_mask: np.ndarray | None, mlm_positions: I64) -> Tokens:
    """Returns the tokens of B padded sequences [B, S]; padding is computed, but masked in attention.

    Args:
        attention_mask: bool [B, S], True = real token, with all padding at the ends; None: no padding.
        mlm_positions: int64 [P], ascending flat indices ``b * S + s``.
    """
    batch, length = input_ids.shape
    lengths = np.full(batch, length)
    whole = Unpadded(
        input_ids.reshape(-1),
        segment_ids.reshape(-1),
        positions_in(lengths),
        lengths,
        mlm_positions,
        mlm_positions,
        None,
    )
    tokens = _tokens(whole, [np.arange(batch)])
    if attention_mask is None or attention_mask.all():
        return tokens
    mask = torch.from_numpy(np.ascontiguousarray(attention_mask))[:, None, None, :]
    return replace(tokens, layout=replace(tokens.layout, groups=(Group(batch, length, mask),)))


def to(tokens: Tokens, device: torch.device) -> Tokens:
    """Returns ``tokens`` on ``device``, each tensor copied by `copied`."""
    moved: dict[str, Any] = {name: _moved(value, device) for name, value in vars(tokens).items()}
    return Tokens(**moved)


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies ``tensor`` to ``device``; to a GPU from pinned memory and asynchronously."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _moved(value: Tensor | Layout, device: torch.device) -> Tensor | Layout:
    if isinstance(value, Tensor):
        return copied(value, device)
    return Layout(
        groups=tuple(replace(g, mask=None if g.mask is None else copied(g.mask, device)) for g in value.groups),
        rows=None if value.rows is None else copied(value.rows, device),
        places=None if value.places is None else copied(value.places, device),
        offsets=copied(value.offsets, device),
        longest=value.longest,
        positions=copied(value.positions, device),
    )


def _tokens(batch: Unpadded, groups: list[np.ndarray]) -> Tokens:
    ends = np.cumsum(batch.lengths)
    starts = ends - batch.lengths
    sequence = np.searchsorted(ends, batch.mlm_positions, side="right")
    counts = 1 + np.bincount(sequence, minlength=len(ends))
    first = np.cumsum(counts) - counts
    masked = np.arange(len(sequence)) + sequence + 1
    needed = np.empty(int(counts.sum()), dtype=np.int64)
    needed[first], needed[masked] = starts, batch.mlm_positions
    return Tokens(
        input_ids=torch.from_numpy(batch.input_ids),
        segment_ids=torch.from_numpy(batch.segment_ids),
        layout=_layout(batch.lengths, batch.position_ids, groups, masked=True),
        needed=torch.from_numpy(needed),
        needed_layout=_layout(counts, batch.position_ids[needed], groups, masked=False),
        first=torch.from_numpy(first),
        masked=torch.from_numpy(masked),
    )


def _groups(lengths: I64) -> list[np.ndarray]:
    """Groups the sequences so that few places are empty: neighbours in length share a group."""
    if (lengths == lengths[0]).all():
        return [np.arange(len(lengths))]
    order = np.argsort(-lengths, kind="stable")
    groups, start = [], 0
    for at in range(1, len(order) + 1):
        if at == len(order) or lengths[order[at]] < _ALIKE * lengths[order[start]]:
            groups.append(order[start:at])
            start = at
    return groups


def _layout(lengths: I64, position_ids: I64, groups: list[np.ndarray], masked: bool) -> Layout:
    """Lays out the rows; ``masked``: whether empty places need masking, as those of keys do and of queries do not."""
    ends = np.cumsum(lengths)
    offsets = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
    longest, positions = int(lengths.max()), torch.from_numpy(position_ids)
    is_in_order = len(groups) == 1 and np.array_equal(groups[0], np.arange(len(lengths)))
    if is_in_order and longest * len(lengths) == ends[-1]:
        return Layout((Group(len(lengths), longest, None),), None, None, offsets, longest, positions)
    places = np.empty(int(ends[-1]), dtype=np.int64)
    rectangles, rows, taken = [], [], 0
    for members in groups:
        width, starts = int(lengths[members].max()), (ends - lengths)[members, None]
        step = np.arange(width)
        filled = step < lengths[members, None]
        standing = np.where(filled, starts + step, starts)
        places[standing[filled]] = taken + np.flatnonzero(filled)
        hidden = torch.from_numpy(filled)[:, None, None, :] if masked and not filled.all() else None
        rectangles.append(Group(len(members), width, hidden))
        rows.append(standing.reshape(-1))
        taken += standing.size
    return Layout(
        groups=tuple(rectangles),
        rows=torch.from_numpy(np.concatenate(rows)),
        places=torch.from_numpy(places),
        offsets=offsets,
        longest=longest,
        positions=positions,
    )
