"""The inputs of ``prepare`` and what one pass over them says: is all of it readable, how much, who is held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from stacking.data.readers import documents
from stacking.data.shards import document_hash
from stacking.errors import UserError


@dataclass(frozen=True)
class Input:
    """One input as the user named it, and the files that hold its text."""

    name: str
    files: tuple[Path, ...]
    is_held_out: bool
    identity: str | None = None
    """What stands for the content where reading it again would be expensive: a dataset's name, installed versions."""


@dataclass(frozen=True)
class Scan:
    """What one pass over a file, or over several, says. Hashes are those of ``document_hash``."""

    documents: int = 0
    characters: int = 0
    lowest: int = 2**64
    highest: int = -1
    below_threshold: int = 0
    digest: str = ""

    def __add__(self, other: Scan) -> Scan:
        return Scan(
            self.documents + other.documents,
            self.characters + other.characters,
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
            self.below_threshold + other.below_threshold,
            xxhash.xxh3_128_hexdigest((self.digest + other.digest).encode()),
        )


def scan_file(path: Path, limit: int, seed: int) -> Scan | tuple[str, str, str]:
    """One file read through, or the arguments of the ``UserError`` that it raised."""
    count = characters = below = 0
    lowest, highest = 2**64, -1
    digest = xxhash.xxh3_128()
    try:
        for document in documents(path):
            value = document_hash(document, seed)
            digest.update(value.to_bytes(8, "little"))
            lowest, highest = min(lowest, value), max(highest, value)
            count, characters, below = count + 1, characters + len(document), below + (value < limit)
    except UserError as error:
        return error.where, error.problem, error.remedy
    return Scan(count, characters, lowest, highest, below, digest.hexdigest())


def held_out_threshold(texts: Sequence[Input], scans: Sequence[Scan], held_out: float) -> int:
    """Documents of the inputs with a hash below this are held out, so that neither split is empty."""
    if any(text.is_held_out for text in texts):
        return 0
    total = sum(scans, Scan())
    if total.lowest == total.highest:
        problem = "has a single document, or copies of one, so none can be held out"
        raise UserError(texts[0].name, problem, "give more text, or the held-out text by --held-out-input")
    if total.below_threshold == 0:
        return total.lowest + 1
    return total.highest if total.below_threshold == total.documents else int(held_out * 2**64)


def input_documents(texts: Sequence[Input], is_held_out: bool) -> Iterator[str]:
    for text in texts:
        if text.is_held_out == is_held_out:
            for file in text.files:
                yield from documents(file)
