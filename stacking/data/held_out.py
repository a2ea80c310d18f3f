"""Which documents are held out: a share of the text, chosen by the hash of their content.

The hashes fall into ``BUCKETS`` buckets and whole buckets are held out, so that equal documents always land in the same
split and memory does not depend on how many documents there are. A small corpus is split document by document, as each
has a bucket to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

BUCKETS = 1 << 16
_SHIFT = 64 - 16
_CLOSE_ENOUGH = 0.98
"""Of the share that was asked for: no further bucket is looked for, which would prefer short documents."""

NONE, ALL = bytes(BUCKETS), b"\1" * BUCKETS
"""A split is a flag for each bucket: 1 where it is held out."""


def bucket_of(document_hash: int) -> int:
    """The bucket of a 64-bit hash."""
    return document_hash >> _SHIFT


def is_held_out(document_hash: int, split: bytes) -> bool:
    return bool(split[bucket_of(document_hash)])


def choose(sizes: Mapping[int, int], share: float) -> bytes:
    """The split whose held-out documents come close to ``share`` of the text; neither side is empty.

    Takes the buckets in the order of the hashes, each if it brings the total closer to what is asked for.

    Args:
        sizes: bytes of text in each bucket that has any; at least two.
        share: above 0 and below 1.
    """
    target = share * sum(sizes.values())
    held_out: list[int] = []
    total = 0
    for bucket in sorted(sizes):
        if total >= _CLOSE_ENOUGH * target or len(held_out) == len(sizes) - 1:
            break
        if abs(total + sizes[bucket] - target) < abs(total - target):
            held_out.append(bucket)
            total += sizes[bucket]
    return _flags(held_out or [min(sizes, key=lambda bucket: (sizes[bucket], bucket))])


def _flags(buckets: Iterable[int]) -> bytes:
    flags = bytearray(BUCKETS)
    for bucket in buckets:
        flags[bucket] = 1
    return bytes(flags)
