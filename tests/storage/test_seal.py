"""A sealed object returns its content, and no changed bit of its file goes undetected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacking.errors import DamagedFile, UserError
from stacking.storage.files import read_sealed, write_sealed
from stacking.storage.seal import BrokenSeal, sealed, sealed_text, unsealed, unsealed_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CONTENTS = st.dictionaries(st.text().filter(lambda key: key != "seal"), VALUES, max_size=4)


@given(CONTENTS)
def test_the_content_round_trips_through_json(content: dict[str, Any]) -> None:
    assert unsealed(json.loads(json.dumps(sealed(content)))) == content


@given(CONTENTS)
def test_sealing_twice_is_sealing_once(content: dict[str, Any]) -> None:
    assert sealed(sealed(content)) == sealed(content)


@given(content=CONTENTS, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_changed_bit_is_found_or_means_the_same(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], place: float, bit: int
) -> None:
    path = tmp_path_factory.mktemp("seal") / "f.json"
    write_sealed(path, content)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        assert read_sealed(path) == content  # such as 1e-12 as 1E-12
    except DamagedFile as damage:
        assert damage.path == path and "\n" not in str(damage)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1], "is not a JSON object"),
        ({"a": 1}, "has no seal"),
        ({**sealed({"a": 1}), "a": 2}, "does not match its seal"),
    ],
)
def test_problems_are_described(value: Any, words: str) -> None:
    with pytest.raises(BrokenSeal, match=words):
        unsealed(value)


def test_a_missing_file_is_not_damage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as caught:
        read_sealed(tmp_path / "absent.json")
    assert not isinstance(caught.value, DamagedFile)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"1" * 5_000, b'{"a": ' * 50_000, b"\xff\xfe", b""])
def test_hostile_json_is_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile):
        read_sealed(path)


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"])), st.data())
def test_one_changed_byte_of_a_sealed_text_is_found(text: str, data: st.DataObject) -> None:
    whole = sealed_text(text)
    assert unsealed_text(whole) == text
    content = bytearray(whole.encode())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BrokenSeal):
        unsealed_text(content.decode(errors="replace"))
