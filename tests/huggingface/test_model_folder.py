"""`glue`, `attention` and a recipe's `start` recognise a folder in the same way."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.errors import DamagedFile
from stacking.huggingface.export import export
from stacking.huggingface.model_folder import kind_of
from stacking.model.config import ModelConfig
from stacking.storage.files import MANIFEST, new_folder
from tests.states import SMALL, random_weights, write_state


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["plan.json", "manifest.json"], "run"),
        (["config.json", "model.safetensors"], "huggingface"),
        (["bert_config.json", "bert_model.ckpt.index"], "huggingface"),
        (["config.json", "model.safetensors", "latest"], "huggingface"),
        (["latest"], "checkpoint"),
        (["zero_pp_rank_0_mp_rank_00_optim_states.pt"], "checkpoint"),
        (["model.safetensors"], None),
        ([], None),
    ],
    ids=str,
)
def test_file_names_determine_the_kind(tmp_path: Path, files: list[str], expected: str | None) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert kind_of(tmp_path) == expected


def test_folders_written_by_this_project_are_recognised(tmp_path: Path) -> None:
    config = ModelConfig(**SMALL)
    state = write_state(tmp_path / "state", config, random_weights(config))
    assert kind_of(state) == "state"
    assert kind_of(export(state, tmp_path / "export")) == "huggingface"
    with new_folder(tmp_path / "data", {"kind": "data"}):
        pass
    assert kind_of(tmp_path / "data") is None
    (state / MANIFEST).write_text("{")
    with pytest.raises(DamagedFile):
        kind_of(state)


def test_a_path_that_is_not_a_folder_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert kind_of(tmp_path / "file") is None and kind_of(tmp_path / "nothing") is None
