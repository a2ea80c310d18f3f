"""Scans the inputs of ``prepare`` in one pass, to check and measure the text and to choose what is held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash

from stacking.data import held_out
from stacking.data.readers import TextFile, documents, rows
from stacking.data.shards import document_hash
from stacking.errors import UserError

_MET = 0.1
"""Relative deviation from the requested share above which documents are cut."""
_PARTS_OF_SHARE = 0.2
_FINEST_CUT = 2_000
"""In characters: about 400 tokens of English."""


@dataclass(frozen=True)
class Input:
    """One input as the user named it, and its text files."""

    name: str
    files: tuple[TextFile, ...]
    is_held_out: bool
    identity: str | None = None
    """A stand-in for content that is expensive to read again: a dataset's name, installed versions."""
    passed_over: tuple[tuple[Path, str], ...] = ()

    def cut_at(self, longest: int) -> Input:
        """Returns the input with documents cut at ``longest`` characters, or earlier if they were already."""
        return replace(self, files=tuple(replace(file, longest=min(longest, file.cut)) for file in self.files))


@dataclass
class Scan:
    """What was counted in one or more files."""

    documents: int = 0
    characters: int = 0
    empty: int = 0
    """Rows and articles without text."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Bytes of text per bucket of the documents' hashes: see ``held_out``."""
    digest: str = ""

    def __iadd__(self, other: Scan) -> Scan:
        self.documents += other.documents
        self.characters += other.characters
        self.empty += other.empty
        for bucket, size in other.sizes.items():
            self.sizes[bucket] = self.sizes.get(bucket, 0) + size
        self.digest = xxhash.xxh3_128_hexdigest((self.digest + other.digest).encode())
        return self


def scan_file(file: TextFile, seed: int) -> Scan | tuple[str, str, str]:
    """Reads one file; returns its scan, or the arguments of the ``UserError`` that it raised."""
    count = characters = empty = 0
    sizes: dict[int, int] = {}
    digest = xxhash.xxh3_128()
    try:
        for document in rows(file):
            if not document:
                empty += 1
                continue
            value = document_hash(document, seed)
            digest.update(value.to_bytes(8, "little"))
            bucket = held_out.bucket_of(value)
            sizes[bucket] = sizes.get(bucket, 0) + len(document.encode("utf-8", "surrogatepass"))
            count, characters = count + 1, characters + len(document)
    except UserError as error:
        return error.where, error.problem, error.remedy
    return Scan(count, characters, empty, sizes, digest.hexdigest())


def choose_held_out(texts: Sequence[Input], scans: Sequence[Scan], share: float) -> bytes:
    """Chooses the split of the inputs that are not held out as a whole: see ``held_out``.

    Raises:
        UserError: they consist of a single document, or copies of one.
    """
    if any(text.is_held_out for text in texts):
        return held_out.NONE
    total = _total(scans)
    if len(total.sizes) < 2:
        problem = "has a single document, or copies of one, so none can be held out"
        raise UserError(texts[0].name, problem, "give more text, or the held-out text by --held-out-input")
    return held_out.choose(total.sizes, share)


def finer_cut(texts: Sequence[Input], scans: Sequence[Scan], share: float) -> int | None:
    """Returns the length at which to cut documents if they are too few or too long for the share, else None."""
    if any(text.is_held_out for text in texts):
        return None
    total = _total(scans)
    text = sum(total.sizes.values())
    if len(total.sizes) > 1:
        split = held_out.choose(total.sizes, share)
        found = sum(size for bucket, size in total.sizes.items() if split[bucket])
        if abs(found - share * text) <= _MET * share * text:
            return None
    return max(_FINEST_CUT, int(_PARTS_OF_SHARE * min(share, 1 - share) * total.characters))


def _total(scans: Sequence[Scan]) -> Scan:
    total = Scan()
    for scan in scans:
        total += scan
    return total


def input_documents(texts: Sequence[Input], is_held_out: bool) -> Iterator[str]:
    """Yields the documents of the inputs that were given as held-out text, or of the others."""
    for text in texts:
        if text.is_held_out == is_held_out:
            for file in text.files:
                yield from documents(file)
