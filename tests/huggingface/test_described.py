"""Checkpoints of other programs: a Hugging Face config or a recipe says which model they hold."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from stacking.errors import UserError
from stacking.growth.apply import grow
from stacking.huggingface.bert import BertFolder
from stacking.huggingface.export import export
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.planning.describe import described
from stacking.state.consolidate import consolidate
from stacking.state.format import State
from stacking.storage.files import new_folder, write_sealed

torch = pytest.importorskip("torch")
from tests.state.checkpoints import Groups, write_checkpoint  # noqa: E402

MODEL = ModelConfig(layers=2, hidden=4, heads=2, intermediate=6, vocabulary=7, max_positions=8)
RECIPE = """
data: {samples: segment-pair, sequence_length: 8}
model: {hidden: 4, heads: 2, intermediate: 6, max_positions: 8}
stages: [{layers: 1, steps: 30, batch_sequences: 8, learning_rate: {peak: 1e-3}}]
"""


def ours(prefix: str = "") -> Groups:
    return [{f"{prefix}{name}": shape for name, shape in parameter_shapes(MODEL).items()}]


def theirs(prefix: str = "") -> Groups:
    """BertForPreTraining's parameters, with matrices and vectors in separate groups, as trainers make them."""
    groups: Groups = [{}, {}]
    for name, shape in parameter_shapes(MODEL).items():
        names = BertFolder().names(MODEL)[name]
        for their in names:
            groups[len(shape) == 1][f"{prefix}{their}"] = (shape[0] // len(names), *shape[1:])
    return groups


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(BertFolder().config(MODEL)))
    return tmp_path / "config.json"


def consolidated(tmp_path: Path, groups: Groups, config: Path) -> State:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", groups, ranks=3)
    return consolidate(checkpoint, tmp_path / "state", describe=partial(described, config))


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_checkpoint_of_hugging_faces_bert_becomes_a_state(tmp_path: Path, config: Path, prefix: str) -> None:
    groups = theirs(prefix)

    state = consolidated(tmp_path, groups, config)

    values, number = {}, 1
    for group in groups:
        for name, shape in group.items():
            values[name] = 100.0 * number + np.arange(np.prod(shape))
            number += 1
    assert state.model == MODEL and state.optimizer_step == 7 and state.moments
    for name, parts in BertFolder().names(MODEL).items():
        expected = np.concatenate([values[f"{prefix}{part}"] for part in parts])
        np.testing.assert_array_equal(state.read("weights", name), expected)
        np.testing.assert_array_equal(state.read("exp_avg", name), expected / 2)
        np.testing.assert_array_equal(state.read("exp_avg_sq", name), expected / 4)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_with_our_names_becomes_a_state(tmp_path: Path, config: Path, prefix: str) -> None:
    state = consolidated(tmp_path, ours(prefix), config)
    assert state.model == MODEL and state.names == tuple(parameter_shapes(MODEL))


@pytest.mark.parametrize("groups", [ours(), theirs()], ids=["ours", "Hugging Face's"])
def test_a_recipe_describes_it_with_the_depth_and_vocabulary_of_the_checkpoint(tmp_path: Path, groups: Groups) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    state = consolidated(tmp_path, groups, tmp_path / "recipe.yaml")
    assert state.model == MODEL


def test_the_whole_path_to_an_export_works(tmp_path: Path, config: Path) -> None:
    state = consolidated(tmp_path, theirs(), config.parent)
    grow(state, tmp_path / "deep", 4)
    exported = export(tmp_path / "deep", tmp_path / "exported")
    assert json.loads((exported / "config.json").read_text())["num_hidden_layers"] == 4


def test_without_a_description_export_names_the_option(tmp_path: Path) -> None:
    consolidate(write_checkpoint(tmp_path / "c", ours()), tmp_path / "state")
    with pytest.raises(UserError, match=r"manifest\.json: model: is empty; consolidate its checkpoint with --config"):
        export(tmp_path / "state", tmp_path / "exported")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"has no parameter bert\.encoder\.layer\.2\.attention\.self\.query\.weight"),
        ({"num_hidden_layers": 1}, r"has the parameter bert\.encoder\.layer\.1\.\S+, which the model does not have"),
        ({"intermediate_size": 8}, r"has bert\.encoder\S+ as \[6, 4\] where the model needs \[8, 4\]"),
        ({"model_type": "roberta"}, "model_type: is 'roberta'; only bert"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    tmp_path: Path, config: Path, change: dict[str, object], message: str
) -> None:
    config.write_text(json.dumps({**BertFolder().config(MODEL), **change}))
    with pytest.raises(UserError, match=message):
        consolidated(tmp_path, theirs(), config)
    assert not (tmp_path / "state").exists()


def test_an_untied_decoder_is_refused(tmp_path: Path, config: Path) -> None:
    groups = theirs()
    groups[0]["cls.predictions.decoder.weight"] = (7, 4)
    with pytest.raises(UserError, match="has a decoder of its own; only models with tied embeddings"):
        consolidated(tmp_path, groups, config)


def test_a_checkpoint_that_records_its_model_needs_no_description(tmp_path: Path, config: Path) -> None:
    describe = partial(described, config)
    checkpoint = recorded(tmp_path / "c", MODEL)
    assert consolidate(checkpoint, tmp_path / "state", describe=describe).model == MODEL
    checkpoint = recorded(tmp_path / "d", MODEL.model_copy(update={"dropout": 0.3}))
    with pytest.raises(UserError, match="--config: contradicts the model that the checkpoint itself records"):
        consolidate(checkpoint, tmp_path / "other", describe=describe)


def recorded(folder: Path, model: ModelConfig) -> Path:
    """A checkpoint as this project writes it: sealed, with a record of its model."""
    with new_folder(folder) as unfinished:
        for path in write_checkpoint(folder.with_suffix(".plain"), ours()).iterdir():
            path.rename(unfinished / path.name)
        write_sealed(unfinished / "progress.json", {"model": model.model_dump(), "step": 7})
    return folder


@pytest.mark.parametrize("above", ["run", "run/1-L2", "run/1-L2/checkpoints"])
def test_a_parent_folder_of_checkpoints_says_where_they_are(tmp_path: Path, above: str) -> None:
    for stage, step in (("0-L1", 30), ("1-L2", 8), ("1-L2", 10)):
        write_checkpoint(tmp_path / "run" / stage / "checkpoints" / f"global_step{step}", ours())
    with pytest.raises(
        UserError, match=r"there is one inside: run `stacking consolidate \S+/1-L2/checkpoints/global_step10 --out"
    ):
        consolidate(tmp_path / above, tmp_path / "state")


def test_a_state_is_recognised_and_named_as_one(tmp_path: Path) -> None:
    consolidate(write_checkpoint(tmp_path / "c", ours()), tmp_path / "0-L1" / "state")
    for folder in (tmp_path / "0-L1", tmp_path / "0-L1" / "state"):
        with pytest.raises(UserError, match=r"0-L1/state needs no consolidating if it is a state"):
            consolidate(folder, tmp_path / "other")


def test_a_state_is_not_written_into_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", ours())
    with pytest.raises(UserError, match=r"c/state: is inside its source \S+/c"):
        consolidate(checkpoint, checkpoint / "state")


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "..", "a/b", "x" * 1_000, ""])
def test_latest_names_a_folder_next_to_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "latest").write_text(name)
    with pytest.raises(UserError, match=r"latest: names "):
        consolidate(tmp_path / "c", tmp_path / "state")
