"""Names of datasets, and datasets that lack a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stacking.data import hub
from stacking.data.hub import dataset_documents, is_dataset
from stacking.errors import UserError

DATASETS = ["wikitext:wikitext-2-raw-v1", "owner/name", "owner/name:plain"]
PATHS = ["imdb", "nofile", "data", "data/none", "./x", "../x/y", "/a/b", "a b", "x.txt", "a/b.json.gz", "a/b.xz/c.zst"]


def test_only_names_that_are_not_paths_are_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert [name for name in [*DATASETS, *PATHS] if is_dataset(name)] == DATASETS


def test_the_user_chooses_the_column_and_nulls_are_empty_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(repository: str, configuration: str | None) -> list[dict[str, Any]]:
        return [{"content": "a", "n": 1}, {"content": None, "n": 2}]

    monkeypatch.setattr(hub, "require_on_hub", lambda repository: None)
    monkeypatch.setattr(hub, "_stream", stream)
    assert list(dataset_documents("owner/name", "content")) == ["a", ""]
    with pytest.raises(UserError, match="no column `text`; name one of its columns with --text-key: content, n"):
        list(dataset_documents("owner/name", "text"))
