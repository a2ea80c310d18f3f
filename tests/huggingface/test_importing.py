"""Importing is exact for every layout of a Hugging Face BERT folder, and says what it had to make up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from stacking.errors import DamagedFile, UserError
from stacking.evaluate.mlm import load_model
from stacking.huggingface.bert import BertFolder
from stacking.huggingface.export import export
from stacking.huggingface.importing import HEADS, import_hugging_face
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.model.tokens import padded_tokens
from stacking.storage.files import verify_folder
from tests.states import SMALL, random_weights, write_state

CONFIG = ModelConfig(**SMALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with random weights."""
    write_state(tmp_path / "source", CONFIG, random_weights(CONFIG))
    return export(tmp_path / "source", tmp_path / "hugging-face")


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def change_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value != "drop"}))


def imported(folder: Path, tmp_path: Path) -> dict[str, Tensor]:
    import_hugging_face(folder, tmp_path / "state")
    return load_file(tmp_path / "state" / "weights.safetensors")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_importing_an_export_restores_the_state_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    report = import_hugging_face(folder, tmp_path / "state")
    manifest = verify_folder(tmp_path / "state")
    assert same(load_file(tmp_path / "state" / "weights.safetensors"), random_weights(CONFIG))
    assert report.config == CONFIG
    assert report.initialised == report.ignored == []
    assert manifest["kind"] == "state"
    assert manifest["moments"] is False
    assert ModelConfig(**manifest["model"]) == CONFIG
    assert manifest["provenance"]["source"] == "hugging-face"


def test_exporting_an_import_restores_the_folder_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    import_hugging_face(folder, tmp_path / "state")
    again = export(tmp_path / "state", tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (again / "config.json").read_bytes() == (folder / "config.json").read_bytes()


@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 4),
    config=st.fixed_dictionaries(
        {
            "layers": st.integers(1, 24),
            "intermediate": st.integers(1, 64),
            "vocabulary": st.integers(5, 90),
            "max_positions": st.integers(1, 512),
            "segments": st.integers(1, 4),
            "norm_eps": st.floats(1e-12, 1e-3),
            "activation": st.sampled_from(["gelu", "gelu_tanh", "relu"]),
            "dropout": st.floats(0, 0.9),
            "attention_dropout": st.floats(0, 0.9),
            "initializer_range": st.floats(1e-3, 1),
            "padding_id": st.integers(0, 4),
        }
    ),
)
def test_every_post_ln_config_round_trips_through_hugging_face(heads: int, config: dict) -> None:
    ours = ModelConfig(hidden=8 * heads, heads=heads, **config)
    theirs = json.loads(json.dumps(BertFolder().config(ours)))
    assert BertFolder().model(theirs, Path("config.json")) == ours


@pytest.mark.parametrize(
    "name", ["BertForPreTraining", "BertForMaskedLM", "BertModel", "BertForSequenceClassification"]
)
def test_models_saved_by_transformers_keep_their_logits(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    theirs = getattr(transformers, name)(transformers.BertConfig(**BertFolder().config(CONFIG))).eval()
    theirs.save_pretrained(tmp_path / "hf")
    report = import_hugging_face(tmp_path / "hf", tmp_path / "state")
    ours = load_model(tmp_path / "state").eval()
    ids, segments = torch.randint(0, 101, (2, 12)), torch.randint(0, 2, (2, 12))
    with torch.no_grad():
        expected = getattr(theirs, "bert", theirs)(ids, token_type_ids=segments).last_hidden_state
        found = ours.encode(padded_tokens(ids.numpy(), segments.numpy(), None, np.arange(2)))
        torch.testing.assert_close(found.unflatten(0, ids.shape), expected, rtol=0, atol=1e-5)
    assert any(tensor.startswith("classifier") for tensor in report.ignored) == (
        name == "BertForSequenceClassification"
    )


def test_missing_heads_are_initialised_as_for_a_new_model_and_named(folder: Path, tmp_path: Path) -> None:
    whole = tensors(folder)
    rewrite(folder, {name: t for name, t in whole.items() if not name.startswith(("cls.", "bert.pooler."))})
    torch.manual_seed(99)
    first_draw = torch.rand(1)
    torch.manual_seed(99)
    report = import_hugging_face(folder, tmp_path / "first")
    assert torch.equal(torch.rand(1), first_draw), "importing moved the caller's random generator"
    import_hugging_face(folder, tmp_path / "second")
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("first", "second"))
    assert same(first, second)
    assert report.initialised == [name for name in parameter_shapes(CONFIG) if name.startswith(HEADS)]
    assert first["pooler.weight"].std().item() == pytest.approx(CONFIG.initializer_range, rel=0.1)
    assert (first["mlm_head.norm.weight"] == 1).all() and not first["mlm_head.bias"].any()
    assert verify_folder(tmp_path / "first")["provenance"]["initialised"] == report.initialised


def test_a_bert_model_without_prefix_is_imported(folder: Path, tmp_path: Path) -> None:
    whole = tensors(folder)
    rewrite(folder, {name.removeprefix("bert."): t for name, t in whole.items() if name.startswith("bert.")})
    weights = imported(folder, tmp_path)
    assert all(
        torch.equal(weights[name], tensor)
        for name, tensor in random_weights(CONFIG).items()
        if not name.startswith(("mlm_head.", "nsp_head."))
    )


def test_old_norm_names_are_read_and_old_buffers_ignored(folder: Path, tmp_path: Path) -> None:
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors(folder).items()
    }
    rewrite(folder, old | {"bert.embeddings.position_ids": torch.arange(40)[None]})
    report = import_hugging_face(folder, tmp_path / "state")
    assert same(load_file(tmp_path / "state" / "weights.safetensors"), random_weights(CONFIG))
    assert report.ignored == ["bert.embeddings.position_ids"]


def test_a_redundant_copy_of_the_decoder_is_accepted(folder: Path, tmp_path: Path) -> None:
    weights = tensors(folder)
    bias = weights.pop("cls.predictions.bias")
    copies = {
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": bias,
    }
    rewrite(folder, weights | copies)
    report = import_hugging_face(folder, tmp_path / "state")
    assert same(load_file(tmp_path / "state" / "weights.safetensors"), random_weights(CONFIG))
    assert report.ignored == []


def test_pickled_weights_are_read(folder: Path, tmp_path: Path) -> None:
    torch.save(tensors(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert same(imported(folder, tmp_path), random_weights(CONFIG))


def test_pickled_weights_from_before_torch_1_6_are_read(folder: Path, tmp_path: Path) -> None:
    torch.save(tensors(folder), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    assert same(imported(folder, tmp_path), random_weights(CONFIG))


@pytest.mark.parametrize("base", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_read(folder: Path, tmp_path: Path, base: str) -> None:
    weights = tensors(folder)
    stem, suffix = base.split(".")
    shards: dict[str, dict[str, Tensor]] = {f"{stem}-0000{i}-of-00003.{suffix}": {} for i in (1, 2, 3)}
    weight_map = {name: list(shards)[number % 3] for number, name in enumerate(weights)}
    for name, shard in weight_map.items():
        shards[shard][name] = weights[name]
    (folder / "model.safetensors").unlink()
    for shard, content in shards.items():
        (save_file if suffix == "safetensors" else torch.save)(content, folder / shard)
    (folder / f"{base}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same(imported(folder, tmp_path), random_weights(CONFIG))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_widened_exactly(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    rewrite(folder, {name: tensor.to(dtype) for name, tensor in tensors(folder).items()})
    weights = imported(folder, tmp_path)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert same(weights, {name: tensor.to(dtype).float() for name, tensor in random_weights(CONFIG).items()})


def test_absent_optional_config_keys_default_to_berts_values(folder: Path, tmp_path: Path) -> None:
    optional = ("hidden_act", "layer_norm_eps", "hidden_dropout_prob", "initializer_range", "pad_token_id")
    change_config(folder, **dict.fromkeys(optional, "drop"))
    assert import_hugging_face(folder, tmp_path / "state").config == CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "config.json: model_type: is 'roberta'; only bert can be used here"),
        ({"model_type": "drop", "architectures": ["RobertaModel"]}, "architectures: is 'RobertaModel'; only BERT"),
        (
            {"layer_norm_large_model": True},
            "layer_norm_large_model: is True, which moves the LayerNorms; only an",
        ),
        ({"use_relative_position": True}, "use_relative_position: is True, which makes positions relative"),
        ({"embedding_size": 16}, "embedding_size: is 16: BERT has no such key, and it may change what the model"),
        ({"alibi_starting_size": 512}, "alibi_starting_size: is 512: BERT has no such key"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads: is {'0': [1]}, which removes attention heads"),
        ({"hidden_size": 10**400}, "config.json: hidden_size: Input should be"),
        ({"hidden_size": None}, "config.json: hidden_size: is missing"),
        ({"is_decoder": [[]]}, "is_decoder: is [[]]; only False"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: is 'relative_key'; only absolute"),
        ({"hidden_act": "silu"}, "hidden_act: is 'silu'; only gelu or gelu_new or relu"),
        ({"is_decoder": True}, "is_decoder: is True; only False"),
        ({"hidden_size": "drop"}, "config.json: hidden_size: is missing"),
        ({"hidden_size": 33}, "hidden 33 does not divide into 4 heads"),
        ({"num_hidden_layers": 0}, "config.json: num_hidden_layers: Input should be greater than 0"),
        ({"vocab_size": "many"}, "config.json: vocab_size: Input should be a valid integer"),
        ({"num_hidden_layers": 3}, "has no tensor bert.encoder.layer.2.attention.self.query.weight"),
        ({"vocab_size": 102}, "word_embeddings.weight: has shape [101, 32] where config.json asks for [102, 32]"),
        ({"intermediate_size": 47}, "intermediate.dense.weight: has shape [48, 32]"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, tmp_path: Path, changes: dict, message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(UserError) as error:
        import_hugging_face(folder, tmp_path / "state")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "state").exists()


def test_fewer_layers_in_the_config_than_in_the_weights_are_reported(folder: Path, tmp_path: Path) -> None:
    change_config(folder, num_hidden_layers=1)
    report = import_hugging_face(folder, tmp_path / "state")
    assert report.ignored
    assert all(name.startswith("bert.encoder.layer.1.") for name in report.ignored)


def test_an_untied_decoder_is_refused(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, tensors(folder) | {"cls.predictions.decoder.weight": torch.zeros(101, 32)})
    with pytest.raises(UserError, match=r"cls.predictions.decoder.weight: differs from .* tied embeddings"):
        import_hugging_face(folder, tmp_path / "state")


def test_a_missing_encoder_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    weights = tensors(folder)
    del weights["bert.encoder.layer.1.output.dense.bias"]
    rewrite(folder, weights)
    with pytest.raises(UserError, match=r"has no tensor bert\.encoder\.layer\.1\.output\.dense\.bias"):
        import_hugging_face(folder, tmp_path / "state")


def test_double_precision_is_refused(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, {name: tensor.double() for name, tensor in tensors(folder).items()})
    with pytest.raises(UserError, match="is float64, which fp32 cannot hold exactly"):
        import_hugging_face(folder, tmp_path / "state")


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: is not a folder"):
        import_hugging_face(tmp_path / "nowhere", tmp_path / "state")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json: does not exist"):
        import_hugging_face(tmp_path / "empty", tmp_path / "state")


def test_a_folder_without_weights_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights; put model\.safetensors"):
        import_hugging_face(folder, tmp_path / "state")


def test_a_listed_shard_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    with pytest.raises(UserError, match=r"model-00001-of-00001\.safetensors: is missing"):
        import_hugging_face(folder, tmp_path / "state")


def test_a_truncated_safetensors_file_is_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedFile, match=r"model\.safetensors: is not a safetensors file"):
        import_hugging_face(folder, tmp_path / "state")


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/passwd", "", ".."])
def test_an_index_that_points_outside_the_folder_is_named(folder: Path, tmp_path: Path, shard: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(DamagedFile, match="which is not a file next to it"):
        import_hugging_face(folder, tmp_path / "state")


@pytest.mark.parametrize("content", ["[]", '{"weight_map": 3}', "{}"])
def test_an_index_without_a_weight_map_is_named(folder: Path, tmp_path: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DamagedFile, match=r"index\.json: has no weight_map"):
        import_hugging_face(folder, tmp_path / "state")


def test_a_vocabulary_larger_than_memory_is_refused_before_any_head_is_initialised(
    folder: Path, tmp_path: Path
) -> None:
    rewrite(folder, {name: t for name, t in tensors(folder).items() if not name.startswith("cls.")})
    change_config(folder, vocab_size=10**12)
    with pytest.raises(UserError, match=r"word_embeddings\.weight: has shape \[101, 32\] where config\.json asks for"):
        import_hugging_face(folder, tmp_path / "state")


@pytest.mark.parametrize(("content", "message"), [("[]", "is not a JSON object"), ("{", "is not JSON")])
def test_a_config_that_is_not_an_object_is_named(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"config\.json: {message}"):
        import_hugging_face(folder, tmp_path / "state")


def test_a_pickle_of_something_else_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(3)], folder / "pytorch_model.bin")
    with pytest.raises(DamagedFile, match="holds a list, not named tensors"):
        import_hugging_face(folder, tmp_path / "state")


class Payload:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", ["code", "cut", "text", "empty"])
def test_a_pickle_that_is_not_plain_tensors_is_refused_and_not_run(
    folder: Path, tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({"weight": Payload()} if content == "code" else {"weight": torch.zeros(1_000)}, path)
    path.write_bytes({"cut": path.read_bytes()[:-500], "text": b"hello", "empty": b""}.get(content, path.read_bytes()))
    with pytest.raises(DamagedFile, match=r"pytorch_model\.bin: cannot be read as plain tensors") as error:
        import_hugging_face(folder, tmp_path / "state")
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_state_is_not_written_into_the_folder_that_it_comes_from(folder: Path) -> None:
    with pytest.raises(UserError, match=r"is inside its source .*choose a folder elsewhere"):
        import_hugging_face(folder, folder / "state")
    assert not (folder / "state").exists()
