"""A ``pre_ln`` model is transformers' MegatronBert: the same logits without any of our code, and an exact import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stacking.errors import UserError
from stacking.evaluate.mlm import load_model
from stacking.huggingface.importing import import_hugging_face
from tests.huggingface.exported import assert_imports_to_the_bit, assert_saved_again_imports, exported
from tests.states import SMALL

ORIGINAL = {"positions": "sinusoidal", "norm_affine": False, "norm_eps": 1e-5}
CHANGES = [ORIGINAL, {}, {"activation": "gelu_tanh", "layers": 1, "heads": 1, "padding_id": 4}]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_logits_match_megatron_bert(tmp_path: Path, change: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    config, folder = exported(tmp_path, "pre_ln", change)
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == "MegatronBertForMaskedLM"
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    torch.manual_seed(2)
    input_ids, segment_ids = torch.randint(0, config.vocabulary, (4, 13)), torch.randint(0, 2, (4, 13))
    mask = torch.arange(13) < torch.tensor([13, 1, 7, 13])[:, None]
    with torch.no_grad():
        logits, _ = load_model(tmp_path / "state").eval().logits(input_ids, segment_ids, mask)
        expected = theirs.eval()(input_ids=input_ids, token_type_ids=segment_ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(logits[mask], expected[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_importing_restores_the_state_bit_for_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    config, folder = exported(tmp_path, "pre_ln", change)
    assert_imports_to_the_bit(config, folder, tmp_path)


def test_an_export_saved_again_by_transformers_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert_saved_again_imports(*exported(tmp_path, "pre_ln", ORIGINAL), tmp_path)


def test_the_next_sentence_head_is_in_a_separate_file_and_the_card_says_why(tmp_path: Path) -> None:
    _, folder = exported(tmp_path, "pre_ln", ORIGINAL)
    assert set(load_file(folder / "nsp_head.safetensors")) == {"nsp_head.weight", "nsp_head.bias"}
    assert not [name for name in load_file(folder / "model.safetensors") if "nsp" in name]
    assert "a tanh pooler that this model lacks" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "name",
    ["bert.embeddings.word_embeddings.weight", "bert.encoder.ln.weight", "cls.predictions.bias"],
)
def test_a_model_that_was_trained_further_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    _, folder = exported(tmp_path, "pre_ln", ORIGINAL)
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name] + 0.5
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{name}: is not what the pre_ln model has there"):
        import_hugging_face(folder, tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stacking_model": None}, "stacking_model: is missing, so `stacking export` did not write"),
        ({"hidden_size": 64}, "hidden_size: is 64, but stacking_model says 32"),
        ({"stacking_model": {**SMALL, "layers": 0}}, "stacking_model.layers: Input should be greater than 0"),
        ({"stacking_model": [1]}, "stacking_model: Input should be a valid dictionary"),
    ],
)
def test_a_config_that_does_not_describe_an_export_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    _, folder = exported(tmp_path, "pre_ln", ORIGINAL)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=message):
        import_hugging_face(folder, tmp_path / "back")
