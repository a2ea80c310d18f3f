"""Small models in every form that the command accepts, for the data of `tests.data.conftest`."""

from __future__ import annotations

from pathlib import Path

import pytest

from stacking.attention.result import RESULT, Attention
from stacking.data.prepare import prepare
from stacking.huggingface.export import export
from stacking.model.config import ModelConfig
from stacking.storage.files import read_json
from tests.data.conftest import write_corpus
from tests.states import SMALL, random_weights, write_state

SHAPE = SMALL | {"vocabulary": 300, "layers": 4}
POST_LN = ModelConfig(variant="post_ln", **SHAPE)
PRE_LN = ModelConfig(variant="pre_ln", positions="sinusoidal", norm_affine=False, norm_eps=1e-5, **SHAPE)


def read_attention(folder: Path) -> Attention:
    return Attention.model_validate(read_json(folder / RESULT))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attention")
    prepare([str(write_corpus(folder / "text"))], folder / "data", vocabulary_size=300, held_out=0.2, workers=1)
    return folder / "data"


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_state(tmp_path_factory.mktemp("states") / "post_ln", POST_LN, random_weights(POST_LN))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, state: Path, data: Path) -> Path:
    return export(state, tmp_path_factory.mktemp("exports") / "export", data)
