"""From documents to token shards: parts that workers make in any order, then shards that are their concatenation.

A part is about ``PART_CHARACTERS`` of consecutive documents in one .npz file, named after everything that decides its
content. So a part that is on disk can be used, whoever made it and when, and nothing stale can.
"""

from __future__ import annotations

import os
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from tokenizers import Tokenizer

from stacking.data.corpus import ARRAYS, SPLITS, shard_path
from stacking.data.sentences import split_sentences

PART_CHARACTERS = 8_000_000
SHARD_TOKENS = 1 << 28

LONGEST_SENTENCE = 256
"""Tokens. A longer sentence is cut into pieces of this length, each of which counts as a sentence."""

_ENCODED_AT_ONCE = 1_000
_HEADER_BYTES = 128


@dataclass(frozen=True)
class Part:
    """Consecutive documents, and which of them are held out: those with a hash below ``threshold``."""

    number: int
    documents: Sequence[str]
    threshold: int
    seed: int

    def characters(self) -> int:
        return sum(map(len, self.documents))

    def path(self, folder: Path, tokenizer_digest: str) -> Path:
        """The file of this part; its name holds a digest of the text, the split and the tokenizer."""
        digest = xxhash.xxh3_128(f"{tokenizer_digest} {self.threshold} {self.seed} {LONGEST_SENTENCE}".encode())
        for document in self.documents:
            digest.update(document.encode("utf-8", "surrogatepass") + b"\0")
        return folder / f"{self.number:06d}-{digest.hexdigest()}.npz"


def document_hash(document: str, seed: int) -> int:
    """64 bits of the content: equal documents always land in the same split."""
    return xxhash.xxh3_64_intdigest(document.encode("utf-8", "surrogatepass"), seed=seed & (2**64 - 1))


def token_dtype(vocabulary: int) -> npt.DTypeLike:
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


@dataclass
class _Arrays:
    """The three arrays of one split, growing."""

    tokens: array[int] = field(default_factory=lambda: array("I"))
    sentences: array[int] = field(default_factory=lambda: array("q", [0]))
    documents: array[int] = field(default_factory=lambda: array("q", [0]))


def write_part(part: Part, tokenizer: Tokenizer, path: Path) -> None:
    """Tokenize ``part`` into ``path``, which appears complete."""
    splits = {split: _Arrays() for split in SPLITS}
    for document in part.documents:
        split = "held_out" if document_hash(document, part.seed) < part.threshold else "train"
        _append(splits[split], document, tokenizer)
    kind = token_dtype(_vocabulary(tokenizer))
    arrays: dict[str, Any] = {}
    for split, content in splits.items():
        arrays[f"{split}.tokens"] = np.array(content.tokens, dtype=kind)
        arrays[f"{split}.sentences"] = np.array(content.sentences, dtype=np.int64)
        arrays[f"{split}.documents"] = np.array(content.documents, dtype=np.int64)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)


def is_whole(path: Path) -> bool:
    """Whether ``path`` is a part that was written to its end."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _vocabulary(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _append(arrays: _Arrays, document: str, tokenizer: Tokenizer) -> None:
    """Add a document's sentences; one without any token adds nothing."""
    before = len(arrays.sentences)
    for ids in _encode(split_sentences(document), tokenizer):
        for start in range(0, len(ids), LONGEST_SENTENCE):
            arrays.tokens.extend(ids[start : start + LONGEST_SENTENCE])
            arrays.sentences.append(len(arrays.tokens))
    if len(arrays.sentences) > before:
        arrays.documents.append(len(arrays.sentences) - 1)


def _encode(sentences: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Ids of each sentence without special tokens; a literal "[SEP]" in the text is text."""
    tokenizer.encode_special_tokens = True
    batch: list[str] = []
    for sentence in sentences:
        batch.append(sentence)
        if len(batch) == _ENCODED_AT_ONCE:
            yield from (encoding.ids for encoding in tokenizer.encode_batch(batch, add_special_tokens=False))
            batch.clear()
    yield from (encoding.ids for encoding in tokenizer.encode_batch(batch, add_special_tokens=False))


class _GrowingArray:
    """A one-dimensional .npy file that is appended to and gets its length when it is closed."""

    def __init__(self, path: Path, kind: npt.DTypeLike) -> None:
        self.kind, self.length = np.dtype(kind), 0
        self.file = open(path, "wb")  # noqa: SIM115
        self.file.write(b"\0" * _HEADER_BYTES)

    def append(self, values: npt.NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(values, dtype=self.kind).data)
        self.length += len(values)

    def close(self) -> None:
        """Write the header of format 1.0, padded to the room that was left for it."""
        text = f"{{'descr': {self.kind.str!r}, 'fortran_order': False, 'shape': ({self.length},), }}"
        header = text.ljust(_HEADER_BYTES - 11) + "\n"
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("latin1"))
        self.file.close()


def merge_parts(paths: Iterable[Path], folder: Path, split: str, vocabulary: int) -> dict[str, int]:
    """Concatenate one split of all parts into the shards of ``folder``; returns its counts."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    totals = dict.fromkeys(("documents", "sentences", "tokens"), 0)
    shard, number = None, 0
    for path in paths:
        with np.load(path) as part:
            tokens, sentences, documents = (part[f"{split}.{array}"] for array in ARRAYS)
        if not len(tokens):
            continue
        shard = shard or _Shard(folder, split, number, vocabulary)
        shard.append(tokens, sentences, documents)
        totals["tokens"] += len(tokens)
        totals["sentences"] += len(sentences) - 1
        totals["documents"] += len(documents) - 1
        if shard.tokens.length >= SHARD_TOKENS:
            shard.close()
            shard, number = None, number + 1
    if shard is not None:
        shard.close()
    return totals


class _Shard:
    """One shard being written."""

    def __init__(self, folder: Path, split: str, number: int, vocabulary: int) -> None:
        kinds = (token_dtype(vocabulary), np.int64, np.int64)
        opened = [
            _GrowingArray(shard_path(folder, split, number, array), kind)
            for array, kind in zip(ARRAYS, kinds, strict=True)
        ]
        self.tokens, self.sentences, self.documents = opened
        zero = np.zeros(1, dtype=np.int64)
        self.sentences.append(zero)
        self.documents.append(zero)

    def append(self, tokens: npt.NDArray[Any], sentences: npt.NDArray[Any], documents: npt.NDArray[Any]) -> None:
        self.documents.append(documents[1:] + (self.sentences.length - 1))
        self.sentences.append(sentences[1:] + self.tokens.length)
        self.tokens.append(tokens)

    def close(self) -> None:
        for growing in (self.tokens, self.sentences, self.documents):
            growing.close()
