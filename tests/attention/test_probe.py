"""The probabilities match the equations, the model's own, and those of transformers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from stacking.attention.found import FoundModel, find_model
from stacking.attention.probe import HuggingFaceProbe, OwnProbe, open_probe
from stacking.attention.tally import F32, Tally
from stacking.errors import UserError
from stacking.huggingface.export import export
from stacking.model.bert import Bert, PostLNBert, PreLNBert, build
from stacking.model.config import ModelConfig
from tests.attention.conftest import POST_LN, PRE_LN, SHAPE
from tests.states import random_weights, write_state


def inputs() -> tuple[Any, Any, Any]:
    """Three pairs of 12, 12 and 7 tokens: ids, segments and mask."""
    generator = np.random.default_rng(0)
    mask = np.arange(12) < np.array([12, 12, 7])[:, None]
    ids = np.where(mask, generator.integers(5, 300, mask.shape), 0)
    return ids, np.where(mask, (np.arange(12) > 5).astype(np.int64), 0), mask


def model_of(config: ModelConfig) -> Bert:
    torch.manual_seed(0)
    model = build(config)
    with torch.no_grad():
        for name, values in random_weights(config).items():
            dict(model.named_parameters())[name].copy_(values)
    return model.eval()


def by_equation(model: Bert, ids: Any, segments: Any, mask: Any) -> list[Tensor]:
    """softmax(Q Kᵀ / √D) of every layer, one sequence and head at a time, only on that sequence's real tokens.

    Vaswani et al. (2017), equation 1, and the residual structure of each variant; none of the package's attention code.
    """
    config, found = model.config, []
    size = config.hidden // config.heads
    for row, segment, real in zip(ids, segments, mask, strict=True):
        n = int(real.sum())
        hidden = embedded(model, torch.from_numpy(row[:n]), torch.from_numpy(segment[:n]))
        layers = []
        for layer in model.layers:
            block: Any = layer
            x = block.attention_norm(hidden) if isinstance(model, PreLNBert) else hidden
            weight, bias = block.attention.qkv.weight, block.attention.qkv.bias
            query, key, value = (
                x @ weight[at : at + config.hidden].T + bias[at : at + config.hidden]
                for at in (0, config.hidden, 2 * config.hidden)
            )
            maps, mixed = [], []
            for head in range(config.heads):
                part = slice(head * size, (head + 1) * size)
                scores = query[:, part] @ key[:, part].T / math.sqrt(size)
                weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
                maps.append(weights)
                mixed.append(weights @ value[:, part])
            layers.append(torch.stack(maps))
            out = torch.cat(mixed, dim=1) @ block.attention.output.weight.T + block.attention.output.bias
            if isinstance(model, PreLNBert):
                hidden = hidden + out
                hidden = hidden + block.feed_forward(block.feed_forward_norm(hidden))
            else:
                hidden = block.attention_norm(hidden + out)
                hidden = block.feed_forward_norm(hidden + block.feed_forward(hidden))
        found.append(torch.stack(layers))
    return found


def embedded(model: Bert, ids: Tensor, segments: Tensor) -> Tensor:
    of: Any = model.embeddings
    positions = of.positions(torch.arange(len(ids)))
    if isinstance(model, PostLNBert):
        return of.norm(of.tokens(ids) + of.segments(segments) + positions)
    return of.scale * of.tokens(ids) + of.segments(segments) + positions


@pytest.mark.parametrize("config", [POST_LN, PRE_LN], ids=["post_ln", "pre_ln"])
@torch.no_grad()
def test_probabilities_match_the_equations(config: ModelConfig) -> None:
    model, batch = model_of(config), inputs()
    probabilities = OwnProbe(model).attend(*batch)
    assert probabilities.shape == (4, 3, 4, 12, 12)
    for at, expected in enumerate(by_equation(model, *batch)):
        n = expected.shape[-1]
        assert np.allclose(probabilities[:, at, :, :n, :n], expected.numpy(), atol=1e-6)
        assert not probabilities[:, at, :, :, n:].any()


@pytest.mark.parametrize("config", [POST_LN, PRE_LN], ids=["post_ln", "pre_ln"])
@torch.no_grad()
def test_measuring_changes_neither_the_model_nor_its_results(config: ModelConfig) -> None:
    model, (ids, segments, mask) = model_of(config), inputs()
    arguments = (torch.from_numpy(ids), torch.from_numpy(segments), torch.from_numpy(mask))
    before = model.logits(*arguments)
    OwnProbe(model).attend(ids, segments, mask)
    assert all(torch.equal(a, b) for a, b in zip(before, model.logits(*arguments), strict=True))


@pytest.mark.parametrize("variant", ["post_ln", "pre_ln", "modern"])
def test_an_export_attends_identically_in_transformers(variant: str, data: Path, tmp_path: Path) -> None:
    config = ModelConfig(variant=variant, **SHAPE)
    state = write_state(tmp_path / "state", config, random_weights(config))
    _, _, mask = batch = inputs()
    ours, theirs = open_probe(find_model(state)), open_probe(find_model(export(state, tmp_path / "export", data)))
    assert isinstance(ours, OwnProbe) and isinstance(theirs, HuggingFaceProbe)
    assert (ours.layers, ours.heads, ours.vocabulary, ours.longest) == (4, 4, 300, 40)
    assert (theirs.layers, theirs.heads, theirs.vocabulary, theirs.longest) == (4, 4, 300, 40)
    assert np.abs(real(ours.attend(*batch), mask) - real(theirs.attend(*batch), mask)).max() < 1e-5


def real(probabilities: F32, mask: Any) -> F32:
    return probabilities * mask[:, None, :, None]


ENCODERS = {
    "roberta": transformers.RobertaConfig(vocab_size=300, max_position_embeddings=42, type_vocab_size=1),
    "distilbert": transformers.DistilBertConfig(vocab_size=300, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
    "electra": transformers.ElectraConfig(vocab_size=300, embedding_size=16),
    "albert": transformers.AlbertConfig(vocab_size=300, embedding_size=16),
    "deberta-v2": transformers.DebertaV2Config(vocab_size=300, type_vocab_size=2),
}
DECODERS = {
    "gpt2": transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4),
    "llama": transformers.LlamaConfig(vocab_size=300, num_attention_heads=4, num_key_value_heads=4),
    "t5": transformers.T5Config(vocab_size=300, d_model=32, num_layers=2, num_heads=4, d_ff=48, d_kv=8),
    "vit": transformers.ViTConfig(image_size=32, patch_size=16),
    "fnet": transformers.FNetConfig(vocab_size=300),
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def saved(config: Any, folder: Path) -> Path:
    for name, value in SIZES.items():
        if name in config.to_dict():
            setattr(config, name, value)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ENCODERS)
def test_any_transformers_encoder_can_be_measured(name: str, tmp_path: Path) -> None:
    _, _, mask = batch = inputs()
    probabilities = open_probe(find_model(saved(ENCODERS[name], tmp_path))).attend(*batch)
    assert probabilities.shape == (2, 3, 4, 12, 12)
    Tally(2, 4, window=3).add(probabilities, mask, mask)  # refuses probabilities that do not add up to 1


def test_robertas_positions_start_after_the_padding_index(tmp_path: Path) -> None:
    assert open_probe(find_model(saved(ENCODERS["roberta"], tmp_path))).longest == 40


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gpt2", "attends only to earlier tokens, so it is a decoder"),
        ("llama", "attends only to earlier tokens, so it is a decoder"),
        ("t5", r"is not an encoder \(t5\)"),
        ("vit", "has no vocab_size, so it is not an encoder of text"),
        ("fnet", "has no num_attention_heads|returns no attention"),
    ],
)
def test_a_model_that_is_not_a_text_encoder_is_refused_by_name(name: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: .*({problem}).*; give a BERT"):
        open_probe(find_model(saved(DECODERS[name], tmp_path))).attend(*inputs())


def test_a_folder_without_a_known_model_says_how_to_import_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 32}))
    with pytest.raises(UserError, match=r"is not read by transformers .*stacking import"):
        open_probe(find_model(tmp_path))


def test_missing_weights_are_reported_as_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="is not loaded by transformers"):
        open_probe(find_model(tmp_path))


def test_weights_that_transformers_would_initialise_randomly_count_as_missing(tmp_path: Path, exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    shutil.copytree(exported, tmp_path / "export")
    (tmp_path / "export" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(UserError, match=r"lacks 16 weights .*encoder\.layer\.4\."):
        open_probe(find_model(tmp_path / "export"))


def test_a_state_without_a_description_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "state", None, random_weights(POST_LN))
    with pytest.raises(UserError, match="model: is empty"):
        open_probe(FoundModel(tmp_path / "state", "state"))


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder"])
def test_a_path_without_a_model_is_refused(what: str, tmp_path: Path) -> None:
    place = tmp_path / "model"
    if what == "a file":
        place.write_text("")
    elif what == "an empty folder":
        place.mkdir()
    with pytest.raises(UserError, match="give a run, a state, a checkpoint or a Hugging Face folder"):
        find_model(place)
