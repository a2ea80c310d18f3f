"""Selects the held-out documents: a share of the text, chosen by the hash of their content.

Hashes fall into ``BUCKETS`` buckets and whole buckets are held out, so that equal documents always land in the same
split and memory does not depend on the number of documents. A small corpus is split document by document, because each
has its own bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

BUCKETS = 1 << 16
_SHIFT = 64 - 16
_CLOSE_ENOUGH = 0.005
"""Tolerance relative to the requested share: within it the search stops, as it would then prefer short documents."""

NONE, ALL = bytes(BUCKETS), b"\1" * BUCKETS
"""A split has one flag per bucket: 1 if it is held out."""


def bucket_of(document_hash: int) -> int:
    """Returns the bucket of a 64-bit hash: its highest 16 bits."""
    return document_hash >> _SHIFT


def is_held_out(document_hash: int, split: bytes) -> bool:
    """Returns whether ``split`` holds out the document with this 64-bit hash."""
    return bool(split[bucket_of(document_hash)])


def choose(sizes: Mapping[int, int], share: float) -> bytes:
    """Chooses the split whose held-out documents come close to ``share`` of the text; neither side is empty.

    Takes buckets in the order of the hashes, each if it fits, and finally one that does not fit if that brings the
    total closer to the requested share.

    Args:
        sizes: bytes of text in each non-empty bucket; at least two.
        share: above 0 and below 1.
    """
    target = share * sum(sizes.values())
    held_out: list[int] = []
    left = target
    for bucket in sorted(sizes):
        if left <= _CLOSE_ENOUGH * target:
            break
        if sizes[bucket] <= left + _CLOSE_ENOUGH * target:
            held_out.append(bucket)
            left -= sizes[bucket]
    others = sizes.keys() - set(held_out)
    if len(others) > 1 and left > 0:
        best = min(others, key=lambda bucket: (abs(left - sizes[bucket]), bucket))
        if not held_out or abs(left - sizes[best]) < left:
            held_out.append(best)
    return _flags(held_out if len(held_out) < len(sizes) else held_out[1:])


def _flags(buckets: Iterable[int]) -> bytes:
    flags = bytearray(BUCKETS)
    for bucket in buckets:
        flags[bucket] = 1
    return bytes(flags)
