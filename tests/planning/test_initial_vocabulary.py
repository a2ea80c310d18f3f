"""The words of the data compared with those of the initial model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stacking.config.recipe import Recipe, recipe_from
from stacking.data import vocabulary
from stacking.errors import UserError
from stacking.model.config import ModelConfig
from stacking.planning.initial_model import Start, model_config
from stacking.planning.initial_vocabulary import compare_words, read_words
from stacking.storage.files import write_json
from tests.data.conftest import prose

CONFIG = ModelConfig(layers=2, hidden=64, heads=2, intermediate=256, vocabulary=300, padding_id=0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    vocabulary.save(vocabulary.train([prose(1, 100)], 300, lowercase=True), tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path: Path, data: Path) -> Recipe:
    stage = {"layers": 2, "steps": 10, "batch_sequences": 8, "learning_rate": {"peak": 1e-3}}
    raw = {"data": {"path": str(data), "sequence_length": 32}, "start": "pretrained", "stages": [stage]}
    return recipe_from(raw, tmp_path / "recipe.yaml", [], None)


def start_of(folder: Path, words: list[str]) -> Start:
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return Start(folder, "huggingface", CONFIG)


def words_of(data: Path) -> list[str]:
    return (data / "vocab.txt").read_text(encoding="utf-8").splitlines()


def test_the_same_words_give_no_warning(tmp_path: Path, data: Path, recipe: Recipe) -> None:
    more = [*words_of(data), "[unused1]"]
    assert compare_words(recipe, start_of(tmp_path / "pretrained", more)) == []


def test_a_few_different_words_are_a_warning(tmp_path: Path, data: Path, recipe: Recipe) -> None:
    words = words_of(data)
    (warning,) = compare_words(recipe, start_of(tmp_path / "pretrained", [*words[:-3], "[unused1]", "x y", "z z"]))
    assert f"{len(words) - 3} of {len(words)} entries" in warning


def test_too_many_different_words_are_refused_with_the_matching_share(
    tmp_path: Path, data: Path, recipe: Recipe
) -> None:
    words = words_of(data)
    start = start_of(tmp_path / "pretrained", [*words[:5], *(f"word{number}" for number in range(len(words) - 5))])
    with pytest.raises(
        UserError, match=r"start: pretrained has a different vocabulary .*: 5 of \d+ entries \(\d%\)"
    ) as caught:
        compare_words(recipe, start)
    assert f"stacking prepare --tokenizer {start.path}" in str(caught.value)


def test_a_state_without_a_vocabulary_is_a_warning(tmp_path: Path, recipe: Recipe) -> None:
    (warning,) = compare_words(recipe, Start(tmp_path / "state", "state", CONFIG))
    assert "records no vocabulary" in warning


def test_the_words_of_a_state_come_from_its_run(tmp_path: Path, data: Path, recipe: Recipe) -> None:
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run/plan.json", {"data": {"path": str(data)}})
    start = Start(tmp_path / "run/0-L2/state", "state", CONFIG)
    assert compare_words(recipe, start) == []
    (data / "tokenizer.json").unlink()
    assert compare_words(recipe, start) == []


def test_added_tokens_are_words(tmp_path: Path) -> None:
    start_of(tmp_path / "given", ["a", "b"])
    (tmp_path / "given/added_tokens.json").write_text(json.dumps({"<url>": 2}))
    assert read_words(tmp_path / "given") == {0: "a", 1: "b", 2: "<url>"}


@pytest.mark.parametrize("content", [[], 3, {"model": []}, {"model": {"vocab": []}}])
def test_a_malformed_word_list_is_ignored(tmp_path: Path, content: object) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert read_words(tmp_path) is None


def test_the_padding_id_comes_from_the_data(tmp_path: Path, recipe: Recipe) -> None:
    start = Start(tmp_path, "state", CONFIG)
    assert model_config(recipe, None, 300, padding_id=7).padding_id == 7
    assert model_config(recipe, start, 300, padding_id=7).padding_id == 7
    assert model_config(recipe, start, 300).padding_id == 0
