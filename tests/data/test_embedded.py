"""The embedded corpus: prose only, each paragraph once, in a fixed order."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stacking.data import embedded

MODULE = '''
"""Short title.

This module does something that is worth a whole sentence of prose. It uses ``quotes``, *emphasis* and
:class:`~a.b.Thing` in two lines.

    code = indented(block)

>>> 1 + 1
2

==== ====
 a    b
==== ====
"""

def function(x):
    """Return the value that was given to this function, unchanged and without any copy.

    Args:
        x (int): The value.

    - A bullet point that is long enough to count as a paragraph of its own.
    """

class Thing:
    def method(self):
        """This module does something that is worth a whole sentence of prose. It uses quotes, emphasis and Thing in \
two lines."""
'''


def test_prose_is_kept_and_everything_else_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SHORTEST_DOCUMENT", 10)
    (tmp_path / "a.py").write_text(MODULE)
    (tmp_path / "b.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text('"""Not Python.""" def')
    sources = [tmp_path / name for name in ("a.py", "b.py", "broken.py")]
    assert list(embedded.embedded_documents(sources)) == [
        "This module does something that is worth a whole sentence of prose. It uses quotes, emphasis and Thing in "
        "two lines.\n\n"
        "Return the value that was given to this function, unchanged and without any copy.\n\n"
        "A bullet point that is long enough to count as a paragraph of its own."
    ]


def test_the_standard_library_alone_yields_a_corpus_without_importing_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGES", ())
    monkeypatch.setattr(embedded, "LIMIT", 300_000)
    before = set(sys.modules)
    sources = embedded.embedded_sources()
    texts = list(embedded.embedded_documents(sources))
    assert texts == list(embedded.embedded_documents(sources)) and 300_000 <= sum(map(len, texts)) < 400_000
    assert set(sys.modules) == before
    paragraphs = [paragraph for text in texts for paragraph in text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs)) and not any(">>>" in paragraph for paragraph in paragraphs)
