"""The page about every key matches the tables."""

from __future__ import annotations

from stacking.deepspeed_config.ds_facts import SECTION_KEYS, UNSUPPORTED
from tools.ds_config_page import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run python -m tools.ds_config_page"


def test_every_key_has_its_line() -> None:
    text = PAGE.read_text()
    paths = [f"{section}.{key}" for section, keys in SECTION_KEYS.items() if section not in UNSUPPORTED for key in keys]
    assert [path for path in paths if f"| `{path}` |" not in text] == []
