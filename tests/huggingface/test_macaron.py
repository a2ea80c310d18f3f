"""A ``macaron`` export contains its own class: the same logits in a process without this project; exact import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stacking.evaluate.mlm import load_model
from tests.huggingface.exported import assert_imports_to_the_bit, exported, run_without_this_project

ORIGINAL = {"positions": "sinusoidal", "norm_affine": False, "norm_eps": 1e-5}
CHANGES = [ORIGINAL, {"activation": "gelu_tanh", "padding_id": 4}]

LOADS = """
import sys
import numpy as np, torch
from transformers import AutoModel, AutoModelForMaskedLM
folder, arrays = sys.argv[1:]
model, info = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
given = {name: torch.from_numpy(array) for name, array in np.load(arrays + "/in.npz").items()}
with torch.no_grad():
    logits, hidden = model.eval()(**given).logits, encoder(**given).last_hidden_state
    inside = model.encoder(**given).last_hidden_state
assert torch.equal(hidden, inside) and "stacking" not in sys.modules
np.save(arrays + "/out.npy", logits.numpy())
"""


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_logits_match_ours_in_a_process_that_has_only_transformers(tmp_path: Path, change: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    config, folder = exported(tmp_path, "macaron", change)
    torch.manual_seed(2)
    input_ids, segment_ids = torch.randint(0, config.vocabulary, (4, 13)), torch.randint(0, 2, (4, 13))
    mask = torch.arange(13) < torch.tensor([13, 1, 7, 13])[:, None]
    given = {"input_ids": input_ids, "token_type_ids": segment_ids, "attention_mask": mask.long()}
    np.savez(tmp_path / "in.npz", **{name: tensor.numpy() for name, tensor in given.items()})
    run_without_this_project(LOADS, folder, tmp_path)
    with torch.no_grad():
        logits, _ = load_model(tmp_path / "state").eval().logits(input_ids, segment_ids, mask)
    expected = torch.from_numpy(np.load(tmp_path / "out.npy"))
    torch.testing.assert_close(logits[mask], expected[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_importing_restores_the_state_bit_for_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    config, folder = exported(tmp_path, "macaron", change)
    assert_imports_to_the_bit(config, folder, tmp_path)
    assert "trust_remote_code=True" in (tmp_path / "out" / "README.md").read_text()
