"""A ``modern`` model is transformers' ModernBERT: the same logits in a process without this project; exact import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stacking.errors import UserError
from stacking.evaluate.mlm import load_model
from stacking.huggingface.importing import import_hugging_face
from tests.huggingface.exported import (
    assert_imports_to_the_bit,
    assert_saved_again_imports,
    exported,
    run_without_this_project,
)

CHANGES = [{"norm_eps": 1e-5}, {"activation": "gelu_tanh", "layers": 1, "heads": 1, "padding_id": 4}]

LOADS = """
import sys
import numpy as np, torch
from transformers import AutoModel, AutoModelForMaskedLM
folder, arrays = sys.argv[1:]
model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True, attn_implementation="sdpa")
assert type(model).__name__ == "ModernBertForMaskedLM"
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
eager = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager")
given = {name: torch.from_numpy(array) for name, array in np.load(arrays + "/in.npz").items()}
with torch.no_grad():
    logits = [one.eval()(**given).logits.numpy() for one in (model, eager)]
assert "stacking" not in sys.modules
np.save(arrays + "/out.npy", logits)
"""


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_logits_match_ours_in_a_process_that_has_only_transformers(tmp_path: Path, change: dict[str, Any]) -> None:
    pytest.importorskip("transformers.models.modernbert")
    config, folder = exported(tmp_path, "modern", change)
    torch.manual_seed(2)
    input_ids, segment_ids = torch.randint(0, config.vocabulary, (4, 40)), torch.randint(0, 2, (4, 40))
    mask = torch.arange(40) < torch.tensor([40, 1, 7, 40])[:, None]
    np.savez(tmp_path / "in.npz", input_ids=input_ids.numpy(), attention_mask=mask.long().numpy())
    run_without_this_project(LOADS, folder, tmp_path)
    with torch.no_grad():
        logits, _ = load_model(tmp_path / "state").eval().logits(input_ids, segment_ids, mask)
    for found in torch.from_numpy(np.load(tmp_path / "out.npy")):
        torch.testing.assert_close(logits[mask], found[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_importing_restores_the_state_bit_for_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    config, folder = exported(tmp_path, "modern", change)
    assert_imports_to_the_bit(config, folder, tmp_path)


def test_an_export_saved_again_by_transformers_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert_saved_again_imports(*exported(tmp_path, "modern", CHANGES[0]), tmp_path)


def test_the_lowest_layers_norm_becomes_that_of_the_embeddings_and_the_card_mentions_the_head(tmp_path: Path) -> None:
    _, folder = exported(tmp_path, "modern", CHANGES[0])
    names = set(load_file(folder / "model.safetensors"))
    assert "model.layers.0.attn_norm.weight" not in names
    assert {"model.embeddings.norm.weight", "model.layers.1.attn_norm.weight"} <= names
    assert set(load_file(folder / "nsp_head.safetensors")) == {"nsp_head.weight", "nsp_head.bias"}
    assert "has no next-sentence head" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stacking_model": None}, "stacking_model: is missing, so `stacking export` did not write this modernbert"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: is .*sliding_attention"),
        ({"mlp_bias": True}, "mlp_bias: is True, but stacking_model says False"),
    ],
)
def test_an_unsupported_modernbert_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _, folder = exported(tmp_path, "modern", CHANGES[0])
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=message):
        import_hugging_face(folder, tmp_path / "back")
