"""The reasons why text becomes [UNK]."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers

from stacking.data import vocabulary
from stacking.data.unknown import check_unknown, unknown_cause, unknown_share
from stacking.errors import UserError


def tokenizer(*words: str, lowercase: bool = True, strip_accents: bool | None = None) -> Tokenizer:
    entries = {word: number for number, word in enumerate([*vocabulary.SPECIAL_TOKENS.values(), *words])}
    made = vocabulary.bert(models.WordPiece(entries, unk_token="[UNK]"), lowercase)
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    return vocabulary.with_specials(made, vocabulary.SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("given", "text", "cause"),
    [
        (
            tokenizer("ACGT", "CGTA"),
            "ACGT CGTA ACGT",
            "upper-case entries; set do_lower_case to false, or add --cased to a bare vocab.txt",
        ),
        (
            tokenizer("acgt", "cgta", lowercase=False),
            "ACGT CGTA",
            "it keeps upper case, but the vocabulary has lower-case",
        ),
        (tokenizer("müde", "schön"), "müde schön", "it strips accents, but the vocabulary has them"),
        (
            tokenizer("mude", "schon", strip_accents=False),
            "müde schön",
            "it keeps accents, but the vocabulary has none",
        ),
        (tokenizer("a", "##a"), "a" * 500, "words are longer than its 100 characters"),
        (tokenizer("a", "##b"), "река течёт", "lacks 6 characters of the text (Cyrillic: "),
        (tokenizer("a", "##b"), "中文。", "(Cjk and punctuation: "),
        (tokenizer("ab", "c"), "ba", "the vocabulary only has whole words"),
        (tokenizer("ab", "##c"), "ba", "the vocabulary was made for other text"),
    ],
)
def test_the_likely_cause_is_named(given: Tokenizer, text: str, cause: str) -> None:
    assert cause in unknown_cause(given, [text])


def test_shares_are_of_tokens() -> None:
    assert unknown_share(tokenizer("a"), ["a b", "a a"]) == 0.25
    assert unknown_share(tokenizer("a"), []) == 0


def test_a_high_share_of_unknowns_is_a_warning_and_nearly_all_is_refused() -> None:
    assert check_unknown(0.04, lambda: "never asked", "T") is None
    assert check_unknown(0.05, lambda: "why", "T") == "T makes 5% of the tokens [UNK]: why"
    with pytest.raises(UserError, match=r"T: makes 95% of the tokens \[UNK\]; why"):
        check_unknown(0.95, lambda: "why", "T")
