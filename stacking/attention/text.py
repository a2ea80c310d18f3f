"""Reads the text on which attention is measured, as token ids: held-out samples of prepared data, or a text file.

Shapes: B sequences, S positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from stacking.data.corpus import Corpus, load_manifest
from stacking.data.sampler import SAMPLERS, Sampler
from stacking.data.samples import build_samples
from stacking.data.unpad import Unpadded
from stacking.errors import DamagedFile, UserError
from stacking.storage.files import MANIFEST

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

HELD_OUT = "held_out"
_SHORT, _LONG = 6, 28
"""The tokens of a sentence that is shown: long enough to say something, short enough for one line."""
_CANDIDATES = 3000
"""Sentences among which those that are shown are chosen."""


class Sequences(NamedTuple):
    """Whole sequences, padded at their ends to the longest."""

    input_ids: I64
    """[B, S]."""
    segment_ids: I64
    """[B, S], 1 in the second segment of a pair."""
    mask: Bool
    """[B, S], True at real tokens."""
    separators: Bool
    """[B, S], True at real separators."""


def rectangle(rows: Sequence[I64], segments: Sequence[I64], separator: int, padding: int) -> Sequences:
    """Returns sequences of different lengths as one rectangle."""
    shape = len(rows), max(map(len, rows))
    input_ids, segment_ids = np.full(shape, padding, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=bool)
    for at, (row, segment) in enumerate(zip(rows, segments, strict=True)):
        input_ids[at, : len(row)], segment_ids[at, : len(row)], mask[at, : len(row)] = row, segment, True
    return Sequences(input_ids, segment_ids, mask, mask & (input_ids == separator))


class HeldOutText:
    """Held-out samples of a prepared data folder, as in training but with nothing masked.

    Raises:
        UserError: the folder has no held-out text, or none of this kind.
        DamagedFile: its files do not fit together.
    """

    def __init__(self, folder: Path, kind: str, sequence_length: int, seed: int) -> None:
        _require_held_out(folder)
        self.name = str(folder)
        self._corpus = Corpus(folder, HELD_OUT)
        self.vocabulary = self._corpus.vocabulary
        samples = build_samples(self._corpus, kind, sequence_length)
        self._sampler: Sampler = SAMPLERS[kind](self._corpus, samples, sequence_length, seed)
        self._tokenizer = _tokenizer(folder / "tokenizer.json")

    def sequences(self, count: int, at_once: int) -> Iterator[Sequences]:
        """Yields the first ``count`` sequences, ``at_once`` at a time."""
        special = self._corpus.special
        numbers = np.arange(min(count, len(self._sampler)), dtype=np.int64)
        for start in range(0, len(numbers), at_once):
            drawn = self._sampler.unpadded(numbers[start : start + at_once])
            ends = np.cumsum(drawn.lengths)[:-1]
            rows, segments = np.split(unmasked(drawn), ends), np.split(drawn.segment_ids, ends)
            yield rectangle(rows, segments, special["sep"], special["pad"])

    def examples(self, count: int) -> list[I64]:
        """Returns ``count`` single sentences as ids, with their special tokens; fewer in a small text."""
        corpus, special = self._corpus, self._corpus.special
        candidates = np.unique(np.linspace(0, corpus.sentences - 1, min(corpus.sentences, _CANDIDATES), dtype=np.int64))
        starts, ends = corpus.sentence_start(candidates), corpus.sentence_start(candidates + 1)
        lengths = ends - starts
        fitting = np.flatnonzero((lengths >= _SHORT) & (lengths <= _LONG))
        chosen = fitting if len(fitting) else np.flatnonzero(lengths <= _LONG)
        spread = chosen[np.linspace(0, len(chosen) - 1, min(count, len(chosen)), dtype=np.int64)]
        pieces = [corpus.read(starts[n : n + 1], ends[n : n + 1]) for n in spread]
        return [np.concatenate([[special["cls"]], piece, [special["sep"]]]) for piece in pieces]

    def encode(self, sentence: str) -> I64:
        """Returns the ids of a sentence, with its special tokens."""
        special = self._corpus.special
        ids = self._tokenizer.encode(sentence, add_special_tokens=False).ids
        return np.array([special["cls"], *ids, special["sep"]], dtype=np.int64)

    def word(self, token: int) -> str:
        """Returns the spelling of a token."""
        return self._tokenizer.id_to_token(token) or str(token)


def unmasked(drawn: Unpadded) -> I64:
    """Returns the ids [T] before masking."""
    input_ids: I64 = drawn.input_ids.copy()
    input_ids[drawn.mlm_positions] = drawn.mlm_labels
    return input_ids


class FileText:
    """A plain text file, tokenized as ``transformers`` does; blank lines separate paragraphs, each its own sequences.

    Args:
        tokenizer: a folder with a tokenizer.

    Raises:
        UserError: the file is not text, or the folder has no tokenizer.
    """

    def __init__(self, file: Path, tokenizer: Path, sequence_length: int) -> None:
        self.name, self._file, self._length = str(file), file, sequence_length
        if not file.is_file():
            raise UserError(file, "is not a file", "give a file of plain text")
        self._tokenizer = _fast_tokenizer(tokenizer)
        self.vocabulary = len(self._tokenizer)
        if self._tokenizer.sep_token_id is None or self._tokenizer.pad_token_id is None:
            raise UserError(tokenizer, "has no separator or padding token", "give the tokenizer of an encoder")
        if next(self._rows(), None) is None:
            raise UserError(file, "holds no text", "give a file of plain text")

    def sequences(self, count: int, at_once: int) -> Iterator[Sequences]:
        """Yields the first ``count`` sequences, ``at_once`` at a time."""
        rows = itertools.islice(self._rows(), count)
        while batch := list(itertools.islice(rows, at_once)):
            segments = [np.zeros_like(row) for row in batch]
            yield rectangle(batch, segments, self._tokenizer.sep_token_id, self._tokenizer.pad_token_id)

    def examples(self, count: int) -> list[I64]:
        """Returns the beginnings of the first ``count`` paragraphs that are not too short, as ids."""
        found = (self._tokenized(paragraph, _LONG)[0] for paragraph in self._paragraphs())
        return list(itertools.islice((row for row in found if len(row) >= _SHORT), count))

    def encode(self, sentence: str) -> I64:
        """Returns the ids of a sentence, with its special tokens."""
        return self._tokenized(sentence, self._length)[0]

    def word(self, token: int) -> str:
        """Returns the spelling of a token, without the mark for the space before it."""
        return str(self._tokenizer.convert_ids_to_tokens(token)).replace("Ġ", "").replace("▁", "")

    def _rows(self) -> Iterator[I64]:
        return (row for paragraph in self._paragraphs() for row in self._tokenized(paragraph, self._length))

    def _tokenized(self, text: str, longest: int) -> list[I64]:
        """Returns the text in pieces of at most ``longest`` ids, each with its special tokens."""
        encoded = self._tokenizer(text, truncation=True, max_length=longest, return_overflowing_tokens=True)
        return [np.array(ids, dtype=np.int64) for ids in encoded["input_ids"]]

    def _paragraphs(self) -> Iterator[str]:
        try:
            with open(self._file, encoding="utf-8") as lines:
                for blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
                    if not blank:
                        yield " ".join(line.strip() for line in group)
        except UnicodeDecodeError:
            raise UserError(self._file, "is not UTF-8", "convert it to UTF-8") from None


Text = HeldOutText | FileText


def _require_held_out(folder: Path) -> None:
    counts = load_manifest(folder)["splits"].get(HELD_OUT, {})
    if not counts.get("documents"):
        remedy = "prepare the data with --held-out 0.05, or give --text FILE"
        raise UserError(f"{folder / MANIFEST}: splits.{HELD_OUT}", "has no held-out text", remedy)


def _tokenizer(file: Path) -> Tokenizer:
    if not file.is_file():
        raise UserError(file, "does not exist", "give a folder made by `stacking prepare`")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more special
        raise DamagedFile(file, f"is not a tokenizer ({error})", "prepare the data again") from None


def _fast_tokenizer(folder: Path) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        problem = f"holds no tokenizer ({str(error).strip().splitlines()[0]})"
        raise UserError(folder, problem, "name its folder with --tokenizer") from None
    if not tokenizer.is_fast:
        raise UserError(folder, "holds only a slow tokenizer", "save a fast one (tokenizer.json) beside it")
    return tokenizer
