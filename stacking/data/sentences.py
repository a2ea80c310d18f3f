"""Sentence splitting by a rule that can be said in a few lines.

1. A blank line ends a sentence; so does a Markdown heading's line. Other line breaks are wrapping and become spaces.
2. Within a paragraph, a sentence ends at ``.``, ``!``, ``?`` or ``…``, with any closing quotes and brackets after it,
   when white space and an opening quote, a bracket, an upper-case letter, a digit or a non-Latin letter follow.
3. A full stop after a known abbreviation ("Mr.", "e.g.") or a single initial ("J.") ends nothing.
4. Lines of nothing but rules (``----``, ``* * *``) are dropped, as are the ``#`` of headings.

Whatever is still too long is cut by tokens, see ``shards.LONGEST_SENTENCE``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ABBREVIATIONS = """
mr mrs ms messrs mme mlle dr prof st sr jr rev hon gen col capt lt sgt maj gov sen rep pres mt ft vol vols p pp
fig figs eq sec ch ed eds cf viz vs etc al e.g i.e a.m p.m u.s jan feb mar apr jun jul aug sep sept oct nov dec inc ltd
co corp dept approx
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_HEADING = re.compile(r"^[^\S\n]{0,3}#{1,6}[^\S\n]+(.*?)[#\s]*$", re.MULTILINE)
_RULE = re.compile(r"^[\s\-*_=~+]+$", re.MULTILINE)
_END = re.compile(r"""(?<=[.!?…])["'\u201d\u2019\u00bb)\]*_]*(\s)(?=["'\u201c\u2018\u00ab(\[*_]*(?:[^\W_a-zß-öø-ÿ]))""")
_LAST_WORD = re.compile(r"([^\s(\[\"'\u201c\u2018]+)\.$")
_LONGEST_WORD = 24


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of ``text``, each on one line, none empty."""
    text = _HEADING.sub(r"\n\n\1\n\n", text)
    for paragraph in _PARAGRAPH.split(text):
        words = " ".join(_RULE.sub("", paragraph).split())
        if words:
            yield from _split_paragraph(words)


def _split_paragraph(paragraph: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(paragraph):
        if not _is_abbreviation(paragraph, match.start()):
            yield paragraph[start : match.start(1)]
            start = match.end(1)
    yield paragraph[start:]


def _is_abbreviation(paragraph: str, end: int) -> bool:
    """Whether the full stop before ``end`` belongs to its word."""
    word = _LAST_WORD.search(paragraph[max(0, end - _LONGEST_WORD) : end])
    if word is None:
        return False
    return word[1].lower() in ABBREVIATIONS or (len(word[1]) == 1 and word[1].isupper() and word[1] != "I")
