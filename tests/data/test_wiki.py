"""Articles from wiki extractors, without their markup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stacking.data.readers import TextFile, documents, rows
from stacking.data.wiki import without_marks
from stacking.errors import UserError

TEXT = """<doc id="1" url="https://wiki.example/?curid=1" title="A &quot;b&quot; c">
A "b" c

First one. Section two &lt;br&gt; &amp; more, a < b.
Section::::History.
BULLET::::- An item.

</doc>

<doc id="2" title="Stub" url="u">
Stub

</doc>
<doc id="3" url="u" title="Cut">
Text that differs from its title.
<doc id="4" url="u" title="One line">Inside.</doc>
"""


def test_every_article_is_a_document_and_an_empty_one_is_counted(tmp_path: Path) -> None:
    (tmp_path / "wiki_00").write_text(TEXT)
    assert list(rows(TextFile(tmp_path / "wiki_00", "wiki"))) == [
        "First one. Section two   & more, a < b.\nHistory.\nAn item.",
        "",
        "Text that differs from its title.",
        "Inside.",
    ]


def test_json_output_is_read_too(tmp_path: Path) -> None:
    lines = [{"id": "1", "title": "T", "text": "One <ref name=x>two</ref>."}, {"id": "2", "title": "U", "text": ""}]
    (tmp_path / "wiki_01").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(documents(TextFile(tmp_path / "wiki_01", "wiki"))) == ["One  two ."]


def test_text_outside_articles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\nPlain text.\n")
    with pytest.raises(UserError, match=r"a\.txt:2: has text outside of <doc"):
        list(documents(TextFile(tmp_path / "a.txt", "wiki")))


def test_mathematics_is_not_mistaken_for_markup() -> None:
    assert without_marks("if a <b and c> d then <p>x</p>") == "if a <b and c> d then  x"
