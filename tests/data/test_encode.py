"""Encoding word by word gives the same result as tokenizing the whole sentence."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from stacking.data import encode, vocabulary
from stacking.data.encode import Encoder, splits_at_spaces
from stacking.data.sentences import split_sentences
from tests.data.conftest import WORDS, prose

ODD = "aB9 éÉßİσΣ中文字\u0301\u0327\ufb01\u2028\x1c\x85\x00\ufffd[SEP]#'\"-_.…\U0001d54f\u200b\n"


@pytest.fixture(scope="module", params=["lowercase", "cased", "accents"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    texts = [*(prose(seed, 40) for seed in range(5)), "Été, naïve, [SEP] 中文 fi ﬁ ß Σίσυφος 1999."] * 2
    trained = vocabulary.train(texts, 400, lowercase=request.param != "cased")
    if request.param == "accents":
        trained.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    return trained


def expected(tokenizer: Tokenizer, sentences: list[str]) -> list[list[int]]:
    return [tokenizer.encode(sentence, add_special_tokens=False).ids for sentence in sentences]


def found(encoder: Encoder, sentences: list[str]) -> list[list[int]]:
    ids, lengths = encoder.encode(sentences)
    bounds = [0, *np.cumsum(lengths).tolist()]
    assert bounds[-1] == len(ids) and len(lengths) == len(sentences)
    return [ids[start:end].tolist() for start, end in pairwise(bounds)]


texts = st.lists(st.sampled_from([*WORDS[:20], *ODD]) | st.characters(exclude_categories=["Cs"]), max_size=80).map(
    " ".join
) | st.text(ODD)


@given(texts=st.lists(texts, max_size=6))
@example(texts=[" ".join(["x" * 120, "a" * 101, "[MASK]", "Ḋ", "\u0301a"])])
@settings(max_examples=150, deadline=None)
def test_ids_match_those_of_the_whole_sentence(tokenizer: Tokenizer, texts: list[str]) -> None:
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    assert splits_at_spaces(tokenizer)
    assert found(Encoder(tokenizer), sentences) == expected(tokenizer, sentences)


def test_block_size_and_cache_eviction_change_nothing(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = list(split_sentences(prose(3, 300)))
    monkeypatch.setattr(encode, "_BLOCK_CHARACTERS", 400)
    monkeypatch.setattr(encode, "_MOST_WORDS", 30)
    encoder = Encoder(tokenizer)
    assert found(encoder, sentences) == expected(tokenizer, sentences) == found(encoder, sentences)
    assert len(encoder._words._numbers) < 400  # type: ignore[union-attr]


def test_each_word_is_given_to_the_tokenizer_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    original = encode._encode
    monkeypatch.setattr(encode, "_encode", lambda t, words: (given.extend(words), original(t, words))[1])
    encoder = Encoder(tokenizer)
    for _ in range(2):
        encoder.encode(["time and time again", "again and again"])
    assert given == ["time", "and", "again"]


def test_other_tokenizers_get_whole_sentences(tokenizer: Tokenizer) -> None:
    """A pre-tokenizer that keeps spaces, and an added word with a space in it."""
    spaced = Tokenizer.from_str(tokenizer.to_str())
    spaced.pre_tokenizer = pre_tokenizers.Metaspace()
    added = Tokenizer.from_str(tokenizer.to_str())
    added.add_tokens([AddedToken("time year", normalized=False)])
    for other in (spaced, added):
        assert not splits_at_spaces(other)
        sentences = ["A time year of people.", "time year"]
        assert found(Encoder(other), sentences) == expected(other, sentences)
    assert found(Encoder(added), ["time year"]) == [[added.token_to_id("time year")]]


def test_no_sentences_give_no_ids(tokenizer: Tokenizer) -> None:
    ids, lengths = Encoder(tokenizer).encode([])
    assert len(ids) == len(lengths) == 0
