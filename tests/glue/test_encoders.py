"""Any encoder gives the same vectors as transformers, with as little padding as it allows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from stacking.data.unpad import Unpadded, positions_in
from stacking.errors import UserError
from stacking.glue.encoders import SentenceEncoder, open_encoder
from stacking.glue.model_source import _name, find_model
from stacking.glue.recipes import FineTuning
from stacking.huggingface.importing import import_hugging_face
from stacking.model.bert import build
from stacking.model.config import ModelConfig
from tests.glue.small_glue import write_bert, write_tokenizer
from tests.states import SMALL, random_weights, write_state

RECIPE = FineTuning(epochs=1, batch=4, learning_rate=1e-3)
CPU = torch.device("cpu")
LENGTHS = (9, 3, 6)
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "roberta": (transformers.RobertaConfig, {"pad_token_id": 1, "max_position_embeddings": 34}),
    "distilbert": (transformers.DistilBertConfig, {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}),
    "electra": (transformers.ElectraConfig, {"embedding_size": 16}),
    "megatron-bert": (transformers.MegatronBertConfig, {}),
}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def some_inputs(segments: bool = True) -> Unpadded:
    lengths = np.array(LENGTHS)
    positions = positions_in(lengths)
    none = np.empty(0, dtype=np.int64)
    ids = np.random.default_rng(0).integers(5, 30, size=lengths.sum())
    return Unpadded(ids, (positions > 2).astype(np.int64) * segments, positions, lengths, none, none, None)


def one_by_one(model: Any, batch: Unpadded, pooled: bool, segments: bool) -> torch.Tensor:
    """The model's own vectors, computed one sequence at a time, so that there is nothing to pad."""
    ends = np.cumsum(batch.lengths)
    vectors = []
    for start, end in zip(ends - batch.lengths, ends, strict=True):
        inputs = {"input_ids": torch.from_numpy(batch.input_ids[None, start:end])}
        if segments:
            inputs["token_type_ids"] = torch.from_numpy(batch.segment_ids[None, start:end])
        output = model.eval()(**inputs)
        vectors.append(output.pooler_output[0] if pooled else output.last_hidden_state[0, 0])
    return torch.stack(vectors)


def opened(folder: Path) -> tuple[SentenceEncoder, list[str]]:
    encoder, notes = open_encoder(find_model(folder), RECIPE, CPU)
    return encoder.eval(), notes


@torch.no_grad()
def test_a_hugging_face_bert_is_computed_without_padding(tmp_path: Path) -> None:
    encoder, notes = opened(write_bert(tmp_path / "bert"))
    assert encoder.name == "stacking, without padding" and not notes
    expected = one_by_one(transformers.BertModel.from_pretrained(tmp_path / "bert"), some_inputs(), True, True)
    assert torch.allclose(encoder(some_inputs()), expected, atol=1e-5)


@torch.no_grad()
def test_the_state_of_an_imported_bert_is_the_same_model(tmp_path: Path) -> None:
    write_bert(tmp_path / "bert")
    import_hugging_face(tmp_path / "bert", tmp_path / "state")
    encoder, _ = open_encoder(find_model(tmp_path / "state", tokenizer=tmp_path / "bert"), RECIPE, CPU)
    assert torch.equal(encoder.eval()(some_inputs()), opened(tmp_path / "bert")[0](some_inputs()))


@torch.no_grad()
def test_a_pre_ln_state_yields_its_normalised_first_token(tmp_path: Path) -> None:
    config = ModelConfig(**{**SMALL, "variant": "pre_ln", "positions": "sinusoidal", "norm_affine": False})
    weights = random_weights(config)
    write_tokenizer(tmp_path / "tokenizer")
    source = find_model(write_state(tmp_path / "state", config, weights), tokenizer=tmp_path / "tokenizer")
    vectors = open_encoder(source, RECIPE, CPU)[0].eval()(some_inputs())
    model = build(config).eval()
    model.load_state_dict(weights, strict=False)
    hidden = []
    ends = np.cumsum(LENGTHS)
    batch = some_inputs()
    for start, end in zip(ends - np.array(LENGTHS), ends, strict=True):
        from stacking.model.tokens import padded_tokens

        ids, segments = batch.input_ids[None, start:end], batch.segment_ids[None, start:end]
        hidden.append(model.encode(padded_tokens(ids, segments, None, np.empty(0, dtype=np.int64)))[0])
    assert torch.allclose(vectors, torch.stack(hidden), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", OTHERS)
def test_other_encoders_are_run_by_transformers_independently_of_the_padding(kind: str, tmp_path: Path) -> None:
    config_class, more = OTHERS[kind]
    transformers.set_seed(0)
    settings = {"vocab_size": 40, "max_position_embeddings": 32, **SHAPE, **more}
    model = transformers.AutoModel.from_config(config_class(**settings))
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    encoder, notes = opened(tmp_path)
    assert encoder.name == "transformers, padded"
    assert len(notes) == 1 and notes[0].startswith("transformers computes the model, because ")
    assert (encoder.width, encoder.longest, encoder.vocabulary) == (16, 32, 40)
    segments = kind in ("electra", "megatron-bert")
    batch = some_inputs(segments)
    expected = one_by_one(model, batch, getattr(model, "pooler", None) is not None, segments)
    assert torch.allclose(encoder(batch), expected, atol=1e-5)


def test_a_model_without_a_pooler_gets_a_new_one_and_reports_it(tmp_path: Path) -> None:
    write_bert(tmp_path / "bert")
    bare = transformers.BertModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False)
    bare.save_pretrained(tmp_path / "bert")
    first, notes = opened(tmp_path / "bert")
    assert notes == ["the model has no pooler; a new one is drawn with seed 0"]
    torch.manual_seed(17)
    assert torch.equal(first(some_inputs()), opened(tmp_path / "bert")[0](some_inputs()))


def test_a_recipe_sets_the_dropout_of_any_encoder(tmp_path: Path) -> None:
    write_bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = transformers.RobertaConfig(vocab_size=40, **SHAPE)
    transformers.RobertaModel(config).save_pretrained(tmp_path / "roberta")
    write_tokenizer(tmp_path / "roberta")
    for folder, dropout, same in (("bert", None, True), ("bert", 0.5, False), ("roberta", 0.0, True)):
        recipe = RECIPE.model_copy(update={"dropout": dropout})
        encoder = open_encoder(find_model(tmp_path / folder), recipe, CPU)[0].train()
        batch = some_inputs(segments=False)
        assert torch.equal(encoder(batch), encoder(batch)) == same


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda folder: (folder / "tokenizer.json").unlink() or (folder / "vocab.txt").unlink(),
            "has no tokenizer; add",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: does not exist"),
        (lambda folder: shutil.rmtree(folder), "does not exist; give a run folder, a state or a Hugging Face folder"),
    ],
)
def test_a_path_that_is_not_a_model_is_reported_in_one_line(change: Any, expected: str, tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    change(folder)
    with pytest.raises(UserError) as caught:
        find_model(folder)
    assert expected in str(caught.value)


def test_a_deepspeed_checkpoint_must_be_consolidated_first(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("global_step20")
    with pytest.raises(UserError, match=r"is a DeepSpeed checkpoint; make a state of it: `stacking consolidate /"):
        find_model(tmp_path)


def test_a_decoder_is_not_an_encoder(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5Model(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(UserError, match="is a T5Model, not an encoder"):
        opened(tmp_path)


@pytest.mark.parametrize(("folder", "name"), [("runs/bert", "bert"), ("out/arms/late-2-12/seed-0", "late-2-12/seed-0")])
def test_a_run_of_a_comparison_is_named_after_its_arm(folder: str, name: str) -> None:
    assert _name(Path(folder)) == name
