"""Opens a prepared data folder: memory-mapped token shards with their sentence and document boundaries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from stacking.data.arrays import mapped_array
from stacking.data.batch import I64
from stacking.errors import DamagedFile, UserError
from stacking.storage.blocks import digest
from stacking.storage.files import MANIFEST, disk_errors, verify_folder

KIND = "data"
FORMAT = 1
SPLITS = ("train", "held_out")
ARRAYS = ("tokens", "sentences", "documents")

_PROBED_TOKENS = 1 << 14


class _Special(BaseModel, strict=True):
    pad: NonNegativeInt
    unk: NonNegativeInt
    cls: NonNegativeInt
    sep: NonNegativeInt
    mask: NonNegativeInt


class _Split(BaseModel, strict=True):
    documents: NonNegativeInt
    sentences: NonNegativeInt
    tokens: NonNegativeInt


class _TokenFacts(BaseModel, strict=True):
    vocabulary: PositiveInt
    special: _Special
    splits: dict[str, _Split]


def load_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a prepared folder and checks that all files exist with the listed sizes.

    Its ``digest`` is computed here from everything that determines a sample: two folders with the same digest give the
    same samples, whatever they were made from and when.

    Raises:
        UserError: it is not a prepared folder, or has another format.
        DamagedFile: a file is missing or truncated.
    """
    if not (folder / MANIFEST).is_file() and not (folder / SPLITS[0]).is_dir():
        problem = f"is not a prepared data folder (it has no {MANIFEST})"
        raise UserError(folder, problem, "make one with: stacking prepare INPUT... --out DIR")
    manifest = verify_folder(folder, checksums=False)
    if manifest.get("kind") != KIND:
        raise UserError(folder, f"holds {manifest.get('kind', 'something')!r}, not data", "give a prepared data folder")
    if manifest.get("format") != FORMAT:
        problem = f"has format {manifest.get('format')!r}, but this version reads {FORMAT}"
        raise UserError(folder, problem, "prepare the data again")
    try:
        _TokenFacts.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise DamagedFile(folder / MANIFEST, f"{key}: {first['msg']}", "prepare the data again") from None
    return {**manifest, "digest": _digest(manifest)}


def _digest(manifest: Mapping[str, Any]) -> str:
    """Digests the checksums of shards and tokenizer, and the manifest's entries about the tokens."""
    files = {name: entry["checksum"] for name, entry in manifest["files"].items()}
    kept = {name: checksum for name, checksum in files.items() if name.endswith(".npy") or name == "tokenizer.json"}
    facts = {key: manifest.get(key) for key in ("vocabulary", "special", "splits")}
    return digest(json.dumps([kept, facts], sort_keys=True).encode())


def shard_path(folder: Path, split: str, number: int, array: str) -> Path:
    """Returns the file of one array of a shard: ``tokens``, or its ``sentences`` or ``documents`` bounds."""
    return folder / split / f"{number:05d}.{array}.npy"


class Corpus:
    """One split of a prepared folder. Tokens, sentences and documents are numbered consecutively over all shards.

    Opening costs a few small reads per shard; pages are read on access.

    Attributes:
        tokens, sentences, documents: their numbers.
        vocabulary: rows that a token embedding needs.
        special: ids of ``pad``, ``unk``, ``cls``, ``sep`` and ``mask``.

    Raises:
        UserError: it is not a prepared folder, has no such split, or its shards do not fit the manifest or vocabulary.
    """

    def __init__(self, folder: Path, split: str = "train") -> None:
        manifest = load_manifest(Path(folder))
        if split not in manifest["splits"]:
            raise UserError(folder, f"has no split {split!r}", f"use one of {', '.join(manifest['splits'])}")
        self.folder, self.split = Path(folder), split
        self.digest: str = manifest["digest"]
        self.vocabulary: int = manifest["vocabulary"]
        self.special: dict[str, int] = manifest["special"]
        self._open(sum(name.startswith(f"{split}/") for name in manifest["files"]) // len(ARRAYS))
        self._check(manifest["splits"][split])

    def _open(self, shards: int) -> None:
        self._tokens = [self._map(number, "tokens") for number in range(shards)]
        self._sentences = [self._map(number, "sentences") for number in range(shards)]
        self._documents = [self._map(number, "documents") for number in range(shards)]
        self._token_base = bounds_of([len(array) for array in self._tokens])
        self._sentence_base = bounds_of([len(array) - 1 for array in self._sentences])
        self._document_base = bounds_of([len(array) - 1 for array in self._documents])
        self.tokens = int(self._token_base[-1])
        self.sentences = int(self._sentence_base[-1])
        self.documents = int(self._document_base[-1])

    def _map(self, number: int, array: str) -> npt.NDArray[Any]:
        path = shard_path(self.folder, self.split, number, array)
        try:
            with disk_errors(path):
                values = mapped_array(path)
        except (ValueError, EOFError, OverflowError, TokenError, FileNotFoundError) as error:
            raise DamagedFile(path, f"is not a readable array ({error})", "prepare the data again") from None
        if values.ndim != 1 or values.dtype.kind not in "iu" or (array != "tokens" and not len(values)):
            problem = f"holds {values.dtype} of shape {values.shape}, not a row of integers"
            raise DamagedFile(path, problem, "prepare the data again")
        return values

    def _check(self, expected: dict[str, int]) -> None:
        """Checks the shards against each other, the manifest and the vocabulary."""
        for name in ("documents", "sentences", "tokens"):
            if getattr(self, name) != expected[name]:
                problem = f"has {getattr(self, name):,} {name}, but the manifest says {expected[name]:,}"
                raise DamagedFile(self.folder / self.split, problem, "prepare the data again")
        for number, (tokens, sentences, documents) in enumerate(
            zip(self._tokens, self._sentences, self._documents, strict=True)
        ):
            path = shard_path(self.folder, self.split, number, "tokens")
            if sentences[-1] != len(tokens) or documents[-1] != len(sentences) - 1:
                raise DamagedFile(path, "does not fit its sentence and document boundaries", "prepare the data again")
            self._check_ids(tokens[:_PROBED_TOKENS], path)
            self._check_ids(tokens[-_PROBED_TOKENS:], path)

    def _check_ids(self, tokens: npt.NDArray[Any], where: Path) -> None:
        if len(tokens) and (highest := int(tokens.max())) >= self.vocabulary:
            problem = f"has token id {highest:,}, but the vocabulary ends at {self.vocabulary - 1:,}"
            raise DamagedFile(where, problem, "prepare the data again with this vocabulary")

    def head(self, most: int) -> npt.NDArray[Any]:
        """Returns the first ``most`` tokens, or all of them, in the shards' dtype."""
        pieces, left = [], most
        for tokens in self._tokens:
            pieces.append(tokens[:left])
            left -= len(pieces[-1])
            if not left:
                break
        return np.concatenate(pieces)

    def read(self, starts: I64, ends: I64) -> I64:
        """Returns the concatenated tokens of the spans from ``starts`` to ``ends`` (exclusive; both [N]), int64."""
        shards = np.minimum(np.searchsorted(self._token_base, starts, side="right") - 1, len(self._tokens) - 1)
        bounds = self._token_base[shards + 1]
        if (ends > bounds).any():
            cuts = np.minimum(ends, bounds)
            return self.read(np.stack([starts, cuts], axis=1).reshape(-1), np.stack([cuts, ends], axis=1).reshape(-1))
        base = self._token_base[shards]
        spans = zip(shards.tolist(), (starts - base).tolist(), (ends - base).tolist(), strict=True)
        pieces = [self._tokens[shard][start:end] for shard, start, end in spans]
        tokens = np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, dtype=np.int64)
        self._check_ids(tokens, self.folder / self.split)
        return tokens

    def sentence_start(self, sentences: I64) -> I64:
        """Returns the global position of the first token of each of ``sentences`` [N]; the last gives the end."""
        return self._look_up(self._sentences, self._sentence_base, self._token_base, sentences)

    def document_start(self, documents: I64) -> I64:
        """Returns the global number of the first sentence of each of ``documents`` [N]; the last gives the end."""
        return self._look_up(self._documents, self._document_base, self._sentence_base, documents)

    @staticmethod
    def _look_up(arrays: list[npt.NDArray[Any]], base: I64, value_base: I64, index: I64) -> I64:
        found = np.empty(len(index), dtype=np.int64)
        for shard, chosen in _by_shard(base, index):
            found[chosen] = arrays[shard][index[chosen] - base[shard]] + value_base[shard]
        return found

    def document_of(self, sentences: I64) -> I64:
        """Returns the global number of the document that contains each of ``sentences`` [N]."""
        return self._search(self._documents, self._document_base, self._sentence_base, sentences)

    def sentence_at(self, positions: I64) -> I64:
        """Returns the global number of the sentence that contains the token at each of ``positions`` [N]."""
        return self._search(self._sentences, self._sentence_base, self._token_base, positions)

    @staticmethod
    def _search(arrays: list[npt.NDArray[Any]], base: I64, value_base: I64, values: I64) -> I64:
        found = np.empty(len(values), dtype=np.int64)
        for shard, chosen in _by_shard(value_base, values):
            local = values[chosen] - value_base[shard]
            found[chosen] = np.searchsorted(arrays[shard], local, side="right") - 1 + base[shard]
        return found


def bounds_of(sizes: npt.ArrayLike) -> I64:
    """Returns the starts of consecutive pieces of these ``sizes``, and the end of the last."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.asarray(sizes, dtype=np.int64))])


def _by_shard(base: I64, index: I64) -> Iterator[tuple[int, Any]]:
    """Yields each shard that contains some of the global ``index``, and which; the end belongs to the last shard.

    The cost depends on the number of shards touched, not on their total number.
    """
    last = len(base) - 2
    if last == 0:
        yield 0, slice(None)
    if last <= 0 or not len(index):
        return
    shard = np.minimum(np.searchsorted(base, index, side="right") - 1, last)
    order = np.argsort(shard, kind="stable")
    ordered = shard[order]
    bounds = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist(), len(order)]
    for start, end in pairwise(bounds):
        yield int(ordered[start]), order[start:end]
