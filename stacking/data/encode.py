"""Encodes sentences to token ids, tokenizing each distinct word once.

Words recur: nine in ten words of English text were seen before. So the tokenizer gets a word the first time, and a
lookup replaces it from then on. The ids equal those for the whole sentence, because BERT's normalizer and pre-tokenizer
treat every character separately and never join what a space separates; other tokenizers get whole sentences.

A special token that is spelled out in the text, such as a literal "[SEP]", gets the id of the special token, as in
transformers. Such positions are never predicted (``stacking.data.masking``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from stacking.data.batch import I64
from stacking.data.vocabulary import size_of

Ids = npt.NDArray[np.uint32]

_BLOCK_CHARACTERS = 500_000
_MOST_WORDS = 1 << 18
"""Maximum number of cached words, about 50 MB; then the cache is cleared."""


class Encoder:
    """A tokenizer that adds no special tokens around a sentence."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocabulary = size_of(tokenizer)
        self._tokenizer = tokenizer
        self._words = _Words(tokenizer) if splits_at_spaces(tokenizer) else None

    def encode(self, sentences: Sequence[str]) -> tuple[Ids, I64]:
        """Encodes ``sentences`` to concatenated ids, uint32 [T], and returns them with the lengths, int64 [N].

        Args:
            sentences: contain no white space except single spaces, as returned by ``split_sentences``.
        """
        encode = self._words.encode if self._words else self._whole
        done = [encode(block) for block in _blocks(sentences)]
        ids = np.concatenate([np.empty(0, dtype=np.uint32), *(ids for ids, _ in done)])
        return ids, np.concatenate([np.empty(0, dtype=np.int64), *(lengths for _, lengths in done)])

    def _whole(self, sentences: Sequence[str]) -> tuple[Ids, I64]:
        return _encode(self._tokenizer, sentences)


class _Words:
    """The words seen so far, numbered in order, with their ids in one array."""

    _ids: Ids
    _lengths: I64

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._forget()

    def encode(self, sentences: Sequence[str]) -> tuple[Ids, I64]:
        words = " ".join(sentences).split(" ")
        numbers = np.fromiter(map(self._numbers.__getitem__, words), dtype=np.int64, count=len(words))
        self._learn()
        lengths, sizes = self._lengths[numbers], np.array([sentence.count(" ") + 1 for sentence in sentences])
        ends = np.cumsum(lengths)
        ids = self._ids[np.arange(ends[-1]) + np.repeat(self._starts[numbers] - ends + lengths, lengths)]
        if len(self._numbers) > _MOST_WORDS:
            self._forget()
        return ids, np.add.reduceat(lengths, np.cumsum(sizes) - sizes)

    def _learn(self) -> None:
        if self._numbers.new:
            ids, lengths = _encode(self._tokenizer, self._numbers.new)
            self._numbers.new.clear()
            self._ids, self._lengths = np.concatenate([self._ids, ids]), np.concatenate([self._lengths, lengths])
            self._starts = np.cumsum(self._lengths) - self._lengths

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._ids, self._lengths = np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64)
        self._starts = self._lengths


class _Numbers(dict[str, int]):
    """Numbers words in order of appearance; ``new`` lists those since it was last cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        self.new.append(word)
        number = self[word] = len(self)
        return number


def splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether encoding word by word is exact: BERT's own components, and no added token of several words.

    Normalization may insert spaces into an added token that is matched after it.
    """
    description = json.loads(tokenizer.to_str())
    kinds = [(description.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
        return False
    added = [token["content"] for token in description["added_tokens"]]
    return not any(each.isspace() for text in added for each in text + tokenizer.normalizer.normalize_str(text))


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Ids, I64]:
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    lengths = np.array([len(each) for each in ids], dtype=np.int64)
    return np.fromiter(chain.from_iterable(ids), dtype=np.uint32, count=int(lengths.sum())), lengths


def _blocks(sentences: Sequence[str]) -> Iterator[Sequence[str]]:
    """Groups consecutive ``sentences`` to blocks of about ``_BLOCK_CHARACTERS`` characters."""
    start = size = 0
    for end, sentence in enumerate(sentences, start=1):
        size += len(sentence)
        if size >= _BLOCK_CHARACTERS or end == len(sentences):
            yield sentences[start:end]
            start, size = end, 0
