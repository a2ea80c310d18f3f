"""Files from users and others are read within bounds: a mistake, or malice, is reported in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stacking.config.reading import nearest, parse_yaml, read_json_mapping, read_text, shown
from stacking.errors import UserError, printable

DOUBLED = "a0: &a0 [1]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))
MERGED = "a0: &a0 {x0: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], x{i}: 1}}" for i in range(1, 60))

HOSTILE_YAML = {
    "aliases that double": (DOUBLED, "line 1: its aliases stand for more than 200,000 values; write the values out"),
    "merges that double": (MERGED, "line 1: its aliases stand for more than 200,000 values"),
    "a list in itself": ("a: &a [*a]", "line 1: an alias stands for itself"),
    "a mapping in itself": ("a: &a {b: *a}", "line 1: an alias stands for itself"),
    "a mapping merged into itself": ("a: &a {<<: *a}", "line 1: an alias stands for itself"),
    "lists nested 100,000 deep": ("[" * 100_000, "is nested too deeply"),
    "a number of 5,000 digits": (f"a: {'9' * 5_000}", "is not YAML (Exceeds the limit"),
    "an object of Python's": (
        "a: !!python/object/apply:os.system [x]",
        "is not YAML (could not determine a",
    ),
    "a key that is a list": ("? [a]\n: 1", "a key must be a name"),
    "2 MiB": ("a: 1\n" * 500_000, "is larger than 256 KiB"),
    "tags that lie": ("!!int ", "has a tag that does not fit its value; remove the tag"),
    "a time that is none": ("!!timestamp x", "has a tag that does not fit its value"),
    "a truth that is none": ("!!bool x", "has a tag that does not fit its value"),
    "a control character": ("a: \x07", "is not YAML"),
}


@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_hostile_yaml_is_refused_in_one_line(kind: str) -> None:
    text, message = HOSTILE_YAML[kind]
    with pytest.raises(UserError) as error:
        parse_yaml(text, "recipe.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_aliases_and_merges_are_read() -> None:
    text = "base: &base {a: 1, b: [x]}\nother: {<<: *base, a: 2}\nsame: *base"
    same = {"a": 1, "b": ["x"]}
    assert parse_yaml(text, "recipe.yaml") == {"base": same, "other": {"a": 2, "b": ["x"]}, "same": same}
    assert parse_yaml("", "recipe.yaml") is None


HOSTILE_JSON = {
    "nested 100,000 deep": ("[" * 100_000, "is nested too deeply"),
    "a number of 5,000 digits": (f'{{"a": {"9" * 5_000}}}', "is not JSON (Exceeds the limit"),
    "a key twice": ('{"a": 1, "a": 2}', "a: is given twice; keep one of them"),
    "a list nested as deeply as can be": ("[" * 900 + "]" * 900, "not an object"),
    "a NUL": ('{"a": "\0"}', "is not JSON"),
}


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_hostile_json_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    text, message = HOSTILE_JSON[kind]
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(UserError) as error:
        read_json_mapping(tmp_path / "ds.json")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_reading_many_keys_is_fast(tmp_path: Path) -> None:
    """Quadratic in the number of keys, this would take minutes."""
    keys = {f"key{i}": i for i in range(60_000)}
    (tmp_path / "ds.json").write_text(json.dumps(keys))
    assert read_json_mapping(tmp_path / "ds.json") == keys
    assert nearest("kez5", keys).startswith("did you mean 'key5'")
    assert nearest("k" * 1_000_000, keys) == "remove it: no known name is similar"


@pytest.mark.parametrize(
    ("path", "message"), [("/dev/zero", "is larger than 16 MiB"), ("a\0b", "cannot be read"), ("/", "is a folder")]
)
def test_a_path_that_is_not_a_text_file_is_refused(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_text(Path(path))


def test_any_value_can_be_shown() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a nested value"
    assert len(shown("x" * 1_000)) == 60


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines\r\n", "two lines"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\u202eb\udc80", "a\\u202eb\\udc80"),
        ("Müller  中文", "Müller  中文"),
    ],
)
def test_foreign_control_characters_never_reach_the_terminal(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert expected in str(UserError("file", text, "remedy"))


def test_lines_have_a_maximum_length() -> None:
    assert len(str(UserError("file", "x" * 1_000_000, "remedy"))) < 3_000


def test_hostile_files_of_each_kind_are_refused(tmp_path: Path) -> None:
    """The same bounds hold for what this project writes itself: `read_json`."""
    from stacking.storage.files import read_json

    cases: dict[str, Callable[[Path], None]] = {
        "is not JSON": lambda path: path.write_text("[" * 100_000) and None,
        "Exceeds the limit": lambda path: path.write_text("9" * 5_000) and None,
        "is not a regular file": lambda path: path.symlink_to("/dev/zero"),
    }
    for number, (message, make) in enumerate(cases.items()):
        make(tmp_path / str(number))
        with pytest.raises(UserError, match=message):
            read_json(tmp_path / str(number))
