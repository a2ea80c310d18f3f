from __future__ import annotations

from pathlib import Path

import pytest

from tests.chain import prepare_text


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text(tmp_path_factory.mktemp("text"))
