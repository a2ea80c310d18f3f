"""Writes token shards: workers make parts in any order, and shards are their concatenation.

A part is about ``PART_CHARACTERS`` of consecutive documents in one .npz file, named after everything that determines
its content. So an existing part can always be reused, and a stale one never is.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from stacking.data.arrays import GrowingArray
from stacking.data.batch import I64
from stacking.data.corpus import ARRAYS, SPLITS, bounds_of, shard_path
from stacking.data.encode import Encoder, Ids
from stacking.data.held_out import is_held_out
from stacking.data.sentences import split_sentences

PART_CHARACTERS = 8_000_000
SHARD_TOKENS = 1 << 28

LONGEST_SENTENCE = 256
"""In tokens. A longer sentence is cut into pieces of this length, each of which counts as a sentence."""


@dataclass(frozen=True)
class DocumentRange:
    """Consecutive documents, and which of them are held out: see ``held_out``."""

    number: int
    documents: Sequence[str]
    split: bytes
    seed: int

    def characters(self) -> int:
        """Returns the length of the text in characters."""
        return sum(map(len, self.documents))

    def path(self, folder: Path, tokenizer_digest: str) -> Path:
        """Returns the file name of this part, with a digest of the text, the split and the tokenizer."""
        digest = xxhash.xxh3_128(f"{tokenizer_digest} {self.seed} {LONGEST_SENTENCE}".encode() + self.split)
        for document in self.documents:
            digest.update(document.encode("utf-8", "surrogatepass") + b"\0")
        return folder / f"{self.number:06d}-{digest.hexdigest()}.npz"


def document_hash(document: str, seed: int) -> int:
    """Hashes the content to 64 bits: equal documents always land in the same split."""
    return xxhash.xxh3_64_intdigest(document.encode("utf-8", "surrogatepass"), seed=seed & (2**64 - 1))


def token_dtype(vocabulary: int) -> npt.DTypeLike:
    """Returns the dtype of token ids in a shard: uint16 if they fit, otherwise uint32."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def write_part(part: DocumentRange, encoder: Encoder, path: Path) -> None:
    """Tokenizes ``part`` into ``path``, which appears when complete."""
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for document in part.documents:
        split = "held_out" if is_held_out(document_hash(document, part.seed), part.split) else "train"
        splits[split].append(document)
    kind = token_dtype(encoder.vocabulary)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for split, texts in splits.items():
        tokens, sentences, documents = tokenize(texts, encoder)
        arrays[f"{split}.tokens"] = tokens.astype(kind)
        arrays[f"{split}.sentences"], arrays[f"{split}.documents"] = sentences, documents
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def tokenize(texts: Sequence[str], encoder: Encoder) -> tuple[Ids, I64, I64]:
    """Returns the tokens of documents, the sentence bounds in tokens and the document bounds in sentences.

    Both bounds include the end. Documents and sentences without a token are dropped.
    """
    sentences: list[str] = []
    ends = [0]
    for text in texts:
        sentences.extend(split_sentences(text))
        ends.append(len(sentences))
    tokens, lengths = encoder.encode(sentences)
    pieces = -(-lengths // LONGEST_SENTENCE)
    piece_ends = bounds_of(pieces)
    sizes = np.full(piece_ends[-1], LONGEST_SENTENCE)
    sizes[piece_ends[1:][pieces > 0] - 1] = (lengths - (pieces - 1) * LONGEST_SENTENCE)[pieces > 0]
    return tokens, bounds_of(sizes), np.unique(piece_ends[ends])


def is_whole(path: Path) -> bool:
    """Returns whether a part exists and its checksums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def merge_parts(paths: Iterable[Path], folder: Path, split: str, vocabulary: int, unknown: int) -> dict[str, int]:
    """Concatenates one split of all parts into the shards of ``folder``; returns its counts."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    totals = dict.fromkeys(("documents", "sentences", "tokens", "unknown"), 0)
    shard, number = None, 0
    for path in paths:
        with np.load(path) as part:
            tokens, sentences, documents = (part[f"{split}.{array}"] for array in ARRAYS)
        if not len(tokens):
            continue
        shard = shard or _ShardWriter(folder, split, number, vocabulary)
        shard.append(tokens, sentences, documents)
        totals["tokens"] += len(tokens)
        totals["unknown"] += int(np.count_nonzero(tokens == unknown))
        totals["sentences"] += len(sentences) - 1
        totals["documents"] += len(documents) - 1
        if shard.tokens.length >= SHARD_TOKENS:
            shard.close()
            shard, number = None, number + 1
    if shard is not None:
        shard.close()
    return totals


class _ShardWriter:
    def __init__(self, folder: Path, split: str, number: int, vocabulary: int) -> None:
        kinds = (token_dtype(vocabulary), np.int64, np.int64)
        opened = [
            GrowingArray(shard_path(folder, split, number, array), kind)
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
