"""Reads articles as written by extractors of Wikipedia dumps, and removes their markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from stacking.errors import UserError

_OPENING = re.compile(r"\s*<doc\b([^>]*)>\s*(.*)")
_TITLE = re.compile(r'\btitle="(.*?)"(?=\s+\w+=|\s*$)')
_CLOSING = "</doc>"
_TAGS = (
    "ref|references|br|nowiki|noinclude|onlyinclude|includeonly|section|templatestyles|div|span|small|big|sub|sup|math|"
    "chem|code|pre|poem|blockquote|center|gallery|timeline|table|caption|tr|td|th|ul|ol|li|dl|dt|dd|p|i|b|u|s|em|"
    "strong|tt|a|h[1-6]|hr|font|abbr|cite|del|ins|score|syntaxhighlight|mapframe|indicator"
)
_TAG = re.compile(rf"</?(?:{_TAGS})(?:\s+[\w:-]+\s*=[^<>\n]{{0,1000}})?\s*/?>", re.IGNORECASE)
_MARK = re.compile(r"^[^\S\n]*(?:Section::::|BULLET::::[-*]*|NUMBERED::::|INDENT::::)[^\S\n]*", re.MULTILINE)


def articles(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """Yields the text between ``<doc ...>`` and ``</doc>``, article by article.

    An article without an end, as in a truncated file, ends where the next one begins.

    Raises:
        UserError: there is text outside of the articles.
    """
    article: list[str] = []
    title, is_open = "", False
    for number, line in enumerate(lines, start=1):
        opening = _OPENING.fullmatch(line.rstrip())
        if opening:
            if is_open:
                yield without_marks("\n".join(article), title)
            found = _TITLE.search(opening[1])
            title, article, is_open = html.unescape(found[1]) if found else "", [], True
            line = opening[2]
        elif not is_open and line.strip():
            problem = "has text outside of <doc ...> and </doc>"
            raise UserError(f"{path}:{number}", problem, "read it with another --format, such as text")
        if not is_open:
            continue
        before, closed, _ = line.rpartition(_CLOSING) if line.rstrip().endswith(_CLOSING) else (line, "", "")
        article.append(before)
        if closed:
            yield without_marks("\n".join(article), title)
            is_open = False
    if is_open:
        yield without_marks("\n".join(article), title)


def without_marks(text: str, title: str = "") -> str:
    """Cleans ``text`` of leftover tags, entities, list marks, and the ``title`` that extractors put first."""
    text = _MARK.sub("", _TAG.sub(" ", html.unescape(_TAG.sub(" ", text)))).strip()
    first, _, rest = text.partition("\n")
    return rest.strip() if title and first.strip() == title.strip() else text
