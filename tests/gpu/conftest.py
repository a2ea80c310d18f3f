"""Skips everything here where there is no card, and what the card cannot compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chain import prepare_text
from tests.gpu.card import DTYPES, lacks, unavailable


@pytest.fixture(autouse=True, scope="session")
def needs_a_card() -> None:
    if reason := unavailable():
        pytest.skip(reason)


@pytest.fixture(params=DTYPES)
def precision(request: pytest.FixtureRequest) -> str:
    """Every precision of the card."""
    name: str = request.param
    if lacks(name):
        pytest.skip(f"the card does not compute in {name}")
    return name


@pytest.fixture(scope="session")
def data(needs_a_card: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))
