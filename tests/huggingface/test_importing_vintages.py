"""Folders as left by different years, tools and mishaps: read exactly, or named as what they are."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stacking.errors import UserError
from stacking.huggingface.export import export
from stacking.huggingface.importing import import_hugging_face
from stacking.model.config import ModelConfig
from tests.states import SMALL, random_weights, write_state

CONFIG = ModelConfig(**SMALL)
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_state(folder / "state", CONFIG, random_weights(CONFIG))
    return export(folder / "state", folder / "hugging-face")


@pytest.fixture
def weights(original: Path) -> Tensors:
    return load_file(original / "model.safetensors")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A folder with the configuration and without weights."""
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_bytes((original / "config.json").read_bytes())
    return tmp_path / "bert"


def change_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value != "drop"}))


def assert_exact(folder: Path, tmp_path: Path) -> list[str]:
    """The import holds the original's weights bit for bit; returns what was noted."""
    report = import_hugging_face(folder, tmp_path / "state")
    found, expected = load_file(tmp_path / "state" / "weights.safetensors"), random_weights(CONFIG)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert report.initialised == []
    return report.notes


class Trainer:
    """A class of the user's own, as checkpoints of training scripts hold them."""


def prefixed(prefix: str) -> Callable[[Tensors], Any]:
    return lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def old_norms(weights: Tensors) -> Any:
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        weights = {name.replace(new, old): tensor for name, tensor in weights.items()}
    return weights


def nvidias(weights: Tensors) -> Any:
    return {
        "model": {name.replace("mediate.dense", "mediate.dense_act"): tensor for name, tensor in weights.items()},
        "optimizer": {"state": {}},
    }


SAVED: dict[str, Callable[[Tensors], Any]] = {
    "DataParallel": prefixed("module."),
    "Lightning": lambda weights: {"state_dict": prefixed("model.")(weights), "epoch": 3, "hparams": Namespace(lr=1)},
    "a compiled model in DataParallel": prefixed("_orig_mod.module."),
    "model beside its optimizer": lambda weights: {"model": weights, "optimizer": {"state": {}}, "args": Trainer()},
    "state_dict": lambda weights: {"state_dict": weights},
    "model_state_dict": lambda weights: {"model_state_dict": weights, "loss": torch.tensor(1.0)},
    "keys of the script's own": lambda weights: {"net": {"bert": weights}, "seed": 1},
    "a model and its average": lambda weights: {"ema": {n: t + 1 for n, t in weights.items()}, "model": weights},
    "NVIDIA's names": nvidias,
    "gamma and beta": old_norms,
    "transposed matrices": lambda weights: {n: t.T.contiguous().T if t.ndim == 2 else t for n, t in weights.items()},
    "a classifier beside": lambda weights: {**weights, "classifier.weight": torch.zeros(3, 32)},
    "parameters, not tensors": lambda weights: {name: torch.nn.Parameter(tensor) for name, tensor in weights.items()},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("kind", SAVED)
def test_checkpoints_of_training_scripts_are_read(
    folder: Path, weights: Tensors, tmp_path: Path, kind: str, legacy: bool
) -> None:
    torch.save(SAVED[kind](weights), folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert_exact(folder, tmp_path)


def test_configs_of_the_first_years_have_no_model_type(folder: Path, weights: Tensors, tmp_path: Path) -> None:
    keys = ("model_type", "architectures", "layer_norm_eps", "pad_token_id", "tie_word_embeddings")
    change_config(folder, **dict.fromkeys(keys, "drop"))
    torch.save(weights, folder / "pytorch_model.bin")
    assert assert_exact(folder, tmp_path) == ["config.json: has no model_type; read as a BERT, whose keys it has"]


def test_keys_that_are_null_count_as_absent(folder: Path, weights: Tensors, tmp_path: Path) -> None:
    keys = ("model_type", "hidden_act", "position_embedding_type", "is_decoder", "layer_norm_eps", "pad_token_id")
    change_config(folder, **dict.fromkeys(keys))
    save_file(weights, folder / "model.safetensors")
    assert_exact(folder, tmp_path)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gelu_python", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
    ],
)
def test_activations_are_the_same_functions_as_in_transformers(
    folder: Path, weights: Tensors, tmp_path: Path, theirs: str, ours: str
) -> None:
    from transformers.activations import ACT2FN

    from stacking.huggingface.names import ACTIVATIONS

    change_config(folder, hidden_act=theirs)
    save_file(weights, folder / "model.safetensors")
    assert import_hugging_face(folder, tmp_path / "state").config.activation == ours
    x = torch.linspace(-6, 6, 1_001, dtype=torch.float64)
    torch.testing.assert_close(ACT2FN[theirs](x), ACT2FN[ACTIVATIONS[ours]](x), rtol=0, atol=1e-7)


ORDINARY_KEYS: dict[str, dict[str, Any]] = {
    "Google's": {"directionality": "bidi", "pooler_type": "first_token_transform", "pooler_num_fc_layers": 3},
    "of 2019": {"output_past": True, "pruned_heads": {}, "_num_labels": 2, "xla_device": None, "num_labels": 2},
    "TinyBERT's": {"cell": {}, "emb_size": 32, "structure": [], "pre_trained": "", "training": ""},
    "MuRIL's": {"embedding_size": 32},
    "synonyms": {"num_layers": 2, "n_heads": 4},
    "of training": {"attention_dropout": 0.1, "layerdrop": 0.1, "gradient_checkpointing": True},
    "unset": {"use_relative_position": False, "rope_scaling": None, "num_experts": 0, "alibi": ""},
    "as in BERT": {"attention_bias": True, "position_embedding_type": "absolute"},
}


@pytest.mark.parametrize("kind", ORDINARY_KEYS)
def test_keys_that_change_nothing_are_accepted(folder: Path, weights: Tensors, tmp_path: Path, kind: str) -> None:
    change_config(folder, model_type="drop", **ORDINARY_KEYS[kind])
    save_file(weights, folder / "model.safetensors")
    assert_exact(folder, tmp_path)


def test_an_unknown_class_name_is_noted(folder: Path, weights: Tensors, tmp_path: Path) -> None:
    change_config(folder, architectures=["MyBertForPreTraining"])
    save_file(weights, folder / "model.safetensors")
    assert "config.json: architectures names MyBertForPreTraining; read as a BERT" in assert_exact(folder, tmp_path)


def test_unknown_keys_are_named(folder: Path, weights: Tensors, tmp_path: Path) -> None:
    change_config(folder, my_note="x", unset=False, auto_map={"AutoModel": "modeling.My"}, num_labels=3)
    save_file(weights, folder / "model.safetensors")
    notes = assert_exact(folder, tmp_path)
    assert any("keys that BERT does not have are left out: my_note" in note for note in notes)
    assert any("auto_map names the model's own code, which is not run" in note for note in notes)


def test_googles_folder_with_pytorch_weights_is_read(folder: Path, weights: Tensors, tmp_path: Path) -> None:
    (folder / "config.json").rename(folder / "bert_config.json")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "bert_model.ckpt.index").write_bytes(b"")
    assert_exact(folder, tmp_path)


@pytest.mark.parametrize("name", ["bert.pt", "checkpoint.pth", "weights.bin", "last.ckpt", "bert.safetensors"])
def test_weights_under_another_file_name_are_read_and_named(
    folder: Path, weights: Tensors, tmp_path: Path, name: str
) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(weights, folder / name)
    torch.save({"lr": 1}, folder / "optimizer.pt")
    torch.save({"lr": 1}, folder / "training_args.bin")
    assert assert_exact(folder, tmp_path) == [f"the weights are read from {name}"]


def test_shards_without_their_index_are_read(folder: Path, weights: Tensors, tmp_path: Path) -> None:
    names = list(weights)
    for number in (1, 2):
        half = {name: weights[name] for name in names[number - 1 :: 2]}
        save_file(half, folder / f"model-0000{number}-of-00002.safetensors")
    assert_exact(folder, tmp_path)


def test_a_pickle_called_safetensors_is_read_as_what_it_is(folder: Path, weights: Tensors, tmp_path: Path) -> None:
    torch.save(weights, folder / "model.safetensors")
    assert_exact(folder, tmp_path)


def test_safetensors_called_bin_are_read_as_what_they_are(folder: Path, weights: Tensors, tmp_path: Path) -> None:
    save_file(weights, folder / "pytorch_model.bin")
    assert_exact(folder, tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440473133\n"

UNREADABLE: dict[str, tuple[dict[str, bytes], str]] = {
    "a TensorFlow checkpoint": (
        {"bert_model.ckpt.index": b"", "bert_model.ckpt.data-00000-of-00001": b""},
        r"bert: holds a TensorFlow checkpoint \(bert_model\.ckpt\.index\), .*transformers-cli convert --model_type "
        r"bert --tf_checkpoint \S+/bert_model\.ckpt --config \S+/config\.json",
    ),
    "TensorFlow weights": ({"tf_model.h5": b"\x89HDF\r\n"}, r"holds TensorFlow weights \(tf_model\.h5\).*from_tf=True"),
    "Flax weights": ({"flax_model.msgpack": b"x"}, r"holds Flax weights .*from_flax=True"),
    "an ONNX graph": ({"model.onnx": b"x"}, r"holds an ONNX graph \(model\.onnx\)"),
    "an ONNX graph below": ({"onnx/model.onnx": b"x"}, r"holds an ONNX graph \(model\.onnx\)"),
    "an adapter": ({"adapter_model.safetensors": b"x"}, r"holds an adapter without its model .*merge_and_unload"),
    "a DeepSpeed checkpoint": (
        {"global_step5/mp_rank_00_model_states.pt": b"x"},
        r"holds a DeepSpeed checkpoint .*`stacking consolidate \S+/global_step5 --config \S+/config\.json --out STATE`",
    ),
    "several": ({"a.pt": b"x", "b.pt": b"x"}, r"holds several weights \(a\.pt, b\.pt\); rename the one to use"),
    "a pointer": ({"model.safetensors": POINTER}, r"model\.safetensors: is a Git LFS pointer, .*git lfs pull"),
    "a pointer as pickle": ({"pytorch_model.bin": POINTER}, r"pytorch_model\.bin: is a Git LFS pointer"),
    "a pointer as index": ({"model.safetensors.index.json": POINTER}, r"index\.json: is a Git LFS pointer"),
    "a pointer as config": ({"config.json": POINTER}, r"config\.json: is a Git LFS pointer"),
    "a web page": ({"pytorch_model.bin": b"<!DOCTYPE html><html>"}, r"pytorch_model\.bin: is a web page"),
    "HDF5 by another name": ({"pytorch_model.bin": b"\x89HDF\r\n\x1a\n"}, r"is an HDF5 file, as TensorFlow writes"),
    "compressed": ({"pytorch_model.bin": b"\x1f\x8b\x08"}, r"pytorch_model\.bin: is compressed by gzip; unpack it"),
    "nothing": ({}, r"bert: holds no weights; put model\.safetensors or pytorch_model\.bin next to config\.json"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_formats_are_named(folder: Path, tmp_path: Path, kind: str) -> None:
    files, message = UNREADABLE[kind]
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        import_hugging_face(folder, tmp_path / "state")


def test_a_folder_whose_subfolder_holds_the_model_says_where(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "0a1b"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    with pytest.raises(UserError, match=r"x/config\.json: does not exist; give \S+/snapshots/0a1b, which has one"):
        import_hugging_face(tmp_path / "models--x", tmp_path / "state")


def test_pipes_and_devices_are_not_opened(folder: Path, tmp_path: Path) -> None:
    import os

    (folder / "pytorch_model.bin").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="holds no weights"):
        import_hugging_face(folder, tmp_path / "state")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(UserError, match=r"config\.json: is not a regular file"):
        import_hugging_face(folder, tmp_path / "state")


def _padded(weights: Tensors) -> Any:
    tokens = "bert.embeddings.word_embeddings.weight"
    return {**weights, tokens: torch.cat([weights[tokens], weights[tokens][:3]])}


MODELS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "another family": (
        lambda weights: {name.replace("bert.", "roberta.", 1): tensor for name, tensor in weights.items()},
        "holds the tensors of a model called 'roberta'; only BERT can be used here",
    ),
    "two encoders": (
        lambda weights: {**prefixed("query.")(weights), **prefixed("passage.")(weights)},
        r"holds 2 encoders, under 'passage\.bert\.' and 'query\.bert\.'",
    ),
    "two checkpoints in one": (
        lambda weights: {"teacher": weights, "student": weights},
        "holds several models, under 'teacher' and 'student'",
    ),
    "relative positions": (
        lambda weights: {**weights, "bert.encoder.layer.0.attention.self.distance_embedding.weight": torch.zeros(3, 8)},
        r"distance_embedding\.weight: is part of the encoder, but BERT has no such tensor",
    ),
    "a tensor twice": (lambda weights: {**weights, **old_norms(weights)}, r"LayerNorm\.\w+ twice, as "),
    "a padded vocabulary": (_padded, r"has shape \[104, 32\] where .*; set vocab_size to 104 if the vocabulary was"),
    "a model, not its tensors": (lambda weights: Trainer(), r"holds a \S+Trainer, not named tensors; save the model"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_anything_other_than_a_single_bert_is_refused(
    folder: Path, weights: Tensors, tmp_path: Path, kind: str
) -> None:
    change, message = MODELS[kind]
    torch.save(change(weights), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        import_hugging_face(folder, tmp_path / "state")
    assert not (tmp_path / "state").exists()
