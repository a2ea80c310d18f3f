"""Turns sentences into token ids, and token ids into batches of similar lengths without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stacking.data.given import load
from stacking.data.tokenizer_files import read_object
from stacking.data.unpad import Unpadded, positions_in
from stacking.errors import UserError, first_line

_AT_ONCE = 4096
"""Examples that the tokenizer gets in one call, which bounds its memory."""
_SORTED_BATCHES = 16
"""Examples are drawn at random, then sorted by length within groups of this many batches."""


@dataclass(frozen=True)
class Encoded:
    """N inputs, one after the other."""

    ids: np.ndarray
    """int32 [T]."""
    segments: np.ndarray
    """uint8 [T]: 0 in the first sentence, 1 in the second."""
    offsets: np.ndarray
    """int64 [N + 1]: where each input begins, and the end of the last."""
    cut: int
    """Number of inputs that were longer than the limit."""

    @property
    def lengths(self) -> np.ndarray:
        """Returns the tokens of each input, int64 [N]."""
        return np.diff(self.offsets)

    def batch(self, numbers: np.ndarray) -> Unpadded:
        """Returns some of the inputs, in the order of ``numbers``, without predictions."""
        lengths = self.lengths[numbers]
        places = np.repeat(self.offsets[numbers], lengths) + positions_in(lengths)
        none = np.empty(0, dtype=np.int64)
        ids, segments = (values[places].astype(np.int64) for values in (self.ids, self.segments))
        return Unpadded(ids, segments, positions_in(lengths), lengths, none, none, None)

    def followed_by(self, other: Encoded) -> Encoded:
        """Returns these inputs and then ``other``'s; ``cut`` counts these alone."""
        ids, segments = np.concatenate([self.ids, other.ids]), np.concatenate([self.segments, other.segments])
        return Encoded(ids, segments, np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]), self.cut)


def load_tokenizer(path: Path, of_bert: bool) -> Any:
    """Loads the tokenizer of a model, as `tokenizers.Tokenizer`.

    Args:
        of_bert: whether the model is a BERT. Its tokenizer is WordPiece with BERT's special tokens, except where a
            ``tokenizer.json`` says otherwise, as in multilingual sentence encoders.

    Raises:
        UserError: it cannot be used.
    """
    if of_bert and not _is_other(path):
        return load(path).tokenizer
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each class of transformers raises its own types
        reason = first_line(error)[:160]
        raise UserError(path, f"has no tokenizer that transformers loads ({reason})", "give --tokenizer") from None
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(path, f"has a slow tokenizer ({type(tokenizer).__name__})", "save it with tokenizer.json")
    return tokenizer.backend_tokenizer


def _is_other(path: Path) -> bool:
    """Returns whether a folder has a tokenizer of another kind than WordPiece."""
    file = path / "tokenizer.json"
    model = read_object(file).get("model") if file.is_file() else None
    return isinstance(model, dict) and model.get("type") in ("BPE", "Unigram")


def encode(tokenizer: Any, first: Sequence[str], second: Sequence[str], longest: int) -> Encoded:
    """Encodes sentences, or pairs of sentences if ``second`` is not empty, with special tokens.

    Args:
        longest: tokens; a longer input loses the end of its longer sentence, token by token.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest, strategy="longest_first")
    ids, segments, lengths, cut = [], [], [], 0
    for start in range(0, len(first), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        texts: Any = list(zip(first[part], second[part], strict=True)) if second else list(first[part])
        for encoding in tokenizer.encode_batch(texts):
            ids.append(np.array(encoding.ids, dtype=np.int32))
            segments.append(np.array(encoding.type_ids, dtype=np.uint8))
            lengths.append(len(encoding.ids))
            cut += bool(encoding.overflowing)
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))])
    return Encoded(np.concatenate(ids), np.concatenate(segments), offsets, cut)


def shuffled_batches(lengths: np.ndarray, size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields the numbers of an epoch's examples in batches of ``size``: random, but of similar lengths.

    The examples are shuffled and cut into groups of 16 batches. Each group is sorted by length and cut into batches,
    whose order is random again. Only the last batch may be smaller.
    """
    order = random.permutation(len(lengths))
    whole = len(order) - len(order) % size
    batches = []
    for start in range(0, whole, _SORTED_BATCHES * size):
        group = order[start : min(start + _SORTED_BATCHES * size, whole)]
        batches += np.split(group[np.argsort(lengths[group], kind="stable")], len(group) // size)
    for number in random.permutation(len(batches)):
        yield batches[number]
    if whole < len(order):
        yield order[whole:]


def sorted_batches(lengths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yields the numbers of all examples in batches of ``size``, longest first."""
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
