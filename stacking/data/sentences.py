"""Splits sentences by a rule that fits in a few lines.

1. A blank line ends a sentence; so does a Markdown heading's line. Other line breaks are wrapping and become spaces.
2. Within a paragraph, a sentence ends at ``.``, ``!``, ``?`` or ``…``, with any closing quotes and brackets after it,
   when white space and an opening quote, a bracket, an upper-case letter, a digit or a non-Latin letter follow.
3. A full stop after a known abbreviation ("Mr.", "e.g.") or a single initial ("J.") does not end a sentence.
4. The full stops, question and exclamation marks of other scripts (``STOPS``) end a sentence wherever they stand.
5. Lines of nothing but rules (``----``, ``* * *``) are dropped, as are the ``#`` of headings.

If the sentences of a text are known, ``SENTENCE_END`` follows each of them and the text is split only there. Sentences
that are still too long are cut by tokens, see ``shards.LONGEST_SENTENCE``.
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

SENTENCE_END = "\x1e"
"""ASCII's record separator: follows each sentence of a document that is already split."""

STOPS = "。！？｡।॥؟۔։።፧፨។။᙮᠃᠉꓿꘎꘏‼⁇⁈⁉"  # noqa: RUF001
"""CJK, Devanagari, Arabic, Urdu, Armenian, Ethiopic, Khmer, Burmese, Canadian, Mongolian, Lisu, Vai; doubled ones."""

_CLOSING = r"""["'\u201d\u2019\u00bb)\]*_]"""
_CLOSING_AFTER_STOP = r"""["'\u201d\u2019\u00bb)\]」』）】》〉］｝〗〕]"""  # noqa: RUF001
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_HEADING = re.compile(r"^[^\S\n]{0,3}#{1,6}[^\S\n]+(.*)$", re.MULTILINE)
_RULE = re.compile(r"^[^\S\n]*[\-*_=~+](?:[^\S\n]|[\-*_=~+])*$", re.MULTILINE)
_END = re.compile(
    rf"""(?<=[.!?…]){_CLOSING}*(\s)(?=["'\u201c\u2018\u00ab(\[*_]*(?:[^\W_a-zß-öø-ÿ]))"""
    rf"|(?<=[{STOPS}]){_CLOSING_AFTER_STOP}*(\s*)(?![\s{STOPS}.!?…]|{_CLOSING_AFTER_STOP}|$)"
)
_ENDING = re.compile(rf"(?:[.!?…:;]|[{STOPS}])(?:\s|{_CLOSING}|{_CLOSING_AFTER_STOP}|`|-r[rs]b-)*$")
_LAST_WORD = re.compile(r"([^\s(\[\"'\u201c\u2018]+)\.$")
_LONGEST_WORD = 24
_HEADING_END = "# \t\r\v\f"


def split_sentences(text: str) -> Iterator[str]:
    """Splits ``text`` into sentences without line breaks, none empty."""
    if SENTENCE_END in text:
        yield from filter(None, (sentence.strip() for sentence in text.split(SENTENCE_END)))
        return
    text = _HEADING.sub(lambda match: f"\n\n{match[1].rstrip(_HEADING_END)}\n\n", text)
    for paragraph in _PARAGRAPH.split(text):
        words = " ".join(_RULE.sub("", paragraph).split())
        if words:
            yield from _split_paragraph(words)


def ends_sentence(line: str) -> bool:
    """Whether ``line`` ends like a sentence: a stop of any script, then closing quotes and brackets."""
    return bool(_ENDING.search(line[-_LONGEST_WORD:]))


def _split_paragraph(paragraph: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(paragraph):
        if not _is_abbreviation(paragraph, match.start()):
            group = match.lastindex or 1
            yield paragraph[start : match.start(group)]
            start = match.end(group)
    yield paragraph[start:]


def _is_abbreviation(paragraph: str, end: int) -> bool:
    """Whether the full stop before ``end`` belongs to its word."""
    word = _LAST_WORD.search(paragraph[max(0, end - _LONGEST_WORD) : end])
    if word is None:
        return False
    return word[1].lower() in ABBREVIATIONS or (len(word[1]) == 1 and word[1].isupper() and word[1] != "I")
