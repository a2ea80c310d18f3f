"""The sentence rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.data.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Smith met Dr. J. Watson. They spoke.", ["Mr. Smith met Dr. J. Watson.", "They spoke."]),
        ('"Go!" he said. "Why?" She went.', ['"Go!" he said.', '"Why?"', "She went."]),
        (
            "\u201cStop.\u201d \u2018No.\u2019 Then (at last.) Peace.",
            ["\u201cStop.\u201d", "\u2018No.\u2019", "Then (at last.)", "Peace."],
        ),
        ("A line\nthat wraps\n\nA new paragraph", ["A line that wraps", "A new paragraph"]),
        ("# A heading\nIts text.\n## Next ##\nMore", ["A heading", "Its text.", "Next", "More"]),
        ("Before\n\n-------\n\nAfter\n* * *\nit", ["Before", "After it"]),
        ("It cost 3.50 dollars, e.g. in the U.S. Army. 12 men came.", None),
        ("It was I. He left.", ["It was I.", "He left."]),
        ("Élan. Être ou ne pas être.", ["Élan.", "Être ou ne pas être."]),
        (" \n \n", []),
    ],
)
def test_sentences_follow_the_rule(text: str, expected: list[str] | None) -> None:
    wanted = expected or []
    if expected is None:
        wanted = ["It cost 3.50 dollars, e.g. in the U.S. Army.", "12 men came."]
    assert list(split_sentences(text)) == wanted


@given(st.text(alphabet="aB .!?\n\"'#-é", max_size=200))
def test_no_character_is_lost_or_moved_and_no_sentence_is_blank(text: str) -> None:
    sentences = list(split_sentences(text))
    letters = [character for character in text if character.isalpha()]
    assert [character for sentence in sentences for character in sentence if character.isalpha()] == letters
    assert all(sentence.strip() == sentence and sentence and "\n" not in sentence for sentence in sentences)
