"""How a file's format is recognised from its name and its beginning."""

from __future__ import annotations

import pytest

from stacking.data.formats import HEAD_BYTES, NotText, recognise
from tests.data.conftest import prose

PLAIN = "the rain had only ceased with the morning .\nthe settlement awoke to its finds .\n`` coarse gold ! ''\n"
BERT = "The rain had only ceased.\nThe Settlement awoke, as Mr. Poe said.\n\nOnly one turned up.\nIt was heavy.\n"
WRAPPED = "The rain had only ceased with the gray\nstreaks of morning at Blazing Star. The settlement\nawoke.\n\n" * 9
CHINESE = "今天天气很好。\n我们去公园吧！\n\n你喜欢这本书吗？\n我很喜欢它。\n"
HINDI = "यह एक वाक्य है।\nयह दूसरा है।\n\nक्या यह तीसरा है?\nहाँ।\n"


@pytest.mark.parametrize(
    ("suffix", "text", "format"),
    [
        (".txt", PLAIN * 4, "lines"),
        (".txt", "\n".join([PLAIN] * 4), "lines"),
        ("", BERT, "lines"),
        (".txt", BERT.replace("\n", "\r\n"), "lines"),
        (".txt", "\ufeff" + BERT, "lines"),
        (".txt", PLAIN * 2000, "lines"),
        (".txt", CHINESE, "lines"),
        (".txt", HINDI, "lines"),
        (".txt", WRAPPED, "text"),
        (".txt", prose(1, 40), "text"),
        (".txt", "One. Two.\n\nThree.\n\nFour. Five.\n\nSix.\n\nSeven.\n", "text"),
        (".txt", " = Title = \n\n A paragraph . It has two sentences . \n A third one . And more . \n" * 5, "text"),
        (".txt", "", "text"),
        (".md", BERT, "markdown"),
        (".txt", '<doc id="1" url="u" title="T">\nT\n', "wiki"),
        ("", '\n{"id": "1", "text": "T."}\n{"id": "2"}\n', "jsonl"),
        ("", '{"text": "' + "x" * HEAD_BYTES, "jsonl"),
        (".txt", "{curly} braces are text\nas well", "text"),
        (".00001-of-00008", '{"text": ""}', "jsonl"),
        (".json", '[\n{"text": ""}\n]', "jsonl"),
        (".jsonl", "not JSON, which the reader says", "jsonl"),
        ("", "PAR1", "parquet"),
        (".parquet", "", "parquet"),
    ],
)
def test_known_formats_are_recognised(suffix: str, text: str, format: str) -> None:
    assert recognise(suffix, text.encode()[:HEAD_BYTES]) == format


@pytest.mark.parametrize(
    ("suffix", "head", "reason"),
    [
        (".pdf", b"%PDF", "suffix .pdf"),
        ("", b"\x7fELF\0\xff", "binary"),
        ("", b"a\0b", "binary"),
        ("", "é".encode("latin-1"), "not UTF-8"),
        (".json", b'{\n "a": 1}', "JSON, but neither"),
    ],
)
def test_unsupported_formats_are_refused(suffix: str, head: bytes, reason: str) -> None:
    with pytest.raises(NotText, match=reason):
        recognise(suffix, head)


def test_a_character_cut_by_the_head_is_not_mistaken_for_another_encoding() -> None:
    assert recognise("", ("a" + "é" * HEAD_BYTES).encode()[:HEAD_BYTES]) == "text"
