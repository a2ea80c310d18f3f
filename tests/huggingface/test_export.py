"""An export is exactly what transformers expects, to the last digit; anything else is refused in one line."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stacking.errors import DamagedFile, NoSpace, UserError
from stacking.evaluate.mlm import load_model
from stacking.huggingface.export import export
from stacking.model.config import VARIANTS, ModelConfig
from stacking.storage.files import new_folder, verify_folder, write_json, write_sealed
from stacking.storage.safetensors_file import SafetensorsWriter
from tests.states import SMALL, random_weights, write_state

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "the", "cat", "sat", "mat"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    config = ModelConfig(**SMALL)
    return write_state(tmp_path / "state", config, random_weights(config))


def _about_data(vocabulary: int) -> dict[str, Any]:
    """The manifest of a prepared folder without splits."""
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), range(5), strict=True))
    return {"kind": "data", "format": 1, "vocabulary": vocabulary, "special": special, "splits": {}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The part of a prepared data folder that export reads."""
    from tokenizers import BertWordPieceTokenizer

    with new_folder(tmp_path / "data", _about_data(len(WORDS))) as folder:
        tokenizer = BertWordPieceTokenizer({word: number for number, word in enumerate(WORDS)})
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "mask_token": "[MASK]"})
    return tmp_path / "data"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"layers": 1, "heads": 1},
        {"layers": 3, "hidden": 48, "heads": 6, "intermediate": 20, "norm_eps": 1e-5},
        {"activation": "gelu_tanh", "segments": 3, "padding_id": 4},
        {"activation": "relu", "vocabulary": 64, "max_positions": 16},
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [1, 13, 16])
def test_logits_match_bert_for_pre_training(tmp_path: Path, change: dict, length: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(**{**SMALL, **change})
    write_state(tmp_path / "state", config, random_weights(config))
    theirs = transformers.BertForPreTraining.from_pretrained(export(tmp_path / "state", tmp_path / "out")).eval()
    ours = load_model(tmp_path / "state").eval()
    torch.manual_seed(2)
    input_ids = torch.randint(0, config.vocabulary, (4, length))
    segment_ids = torch.randint(0, config.segments, (4, length))
    attention_mask = torch.arange(length) < torch.tensor([length, 1, (length + 1) // 2, length])[:, None]
    with torch.no_grad():
        mlm_logits, nsp_logits = ours.logits(input_ids, segment_ids, attention_mask)
        expected = theirs(input_ids=input_ids, token_type_ids=segment_ids, attention_mask=attention_mask.long())
    torch.testing.assert_close(
        mlm_logits[attention_mask], expected.prediction_logits[attention_mask], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(nsp_logits, expected.seq_relationship_logits, rtol=0, atol=1e-5)


def test_transformers_finds_exactly_the_expected_weights(state: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    _, info = transformers.BertForPreTraining.from_pretrained(export(state, tmp_path / "out"), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_fill_mask_works_with_the_exported_tokenizer(state: Path, data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = export(state, tmp_path / "out", data)
    model = transformers.AutoModelForMaskedLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    answers = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)("the cat [MASK]", top_k=3)
    assert len(answers) == 3
    assert tokenizer("the cat")["input_ids"] == [2, WORDS.index("the"), WORDS.index("cat"), 3]


def test_export_is_sealed_and_leaves_the_state_unchanged(state: Path, tmp_path: Path) -> None:
    before = verify_folder(state)
    files = verify_folder(export(state, tmp_path / "out"))["files"]
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    assert verify_folder(state) == before


def test_weights_are_split_not_changed(state: Path, tmp_path: Path) -> None:
    exported = load_file(export(state, tmp_path / "out") / "model.safetensors")
    weights = load_file(state / "weights.safetensors")
    pieces = [f"bert.encoder.layer.1.attention.self.{name}.weight" for name in ("query", "key", "value")]
    assert torch.equal(torch.cat([exported[name] for name in pieces]), weights["layers.1.attention.qkv.weight"])
    assert sum(tensor.numel() for tensor in exported.values()) == sum(tensor.numel() for tensor in weights.values())


def test_the_model_card_says_what_is_known(tmp_path: Path) -> None:
    config = ModelConfig(**SMALL)
    provenance = {"operation": "grow", "operator": "stack", "parent": "c0ffee"}
    write_state(tmp_path / "state", config, random_weights(config), **provenance)
    card = (export(tmp_path / "state", tmp_path / "out") / "README.md").read_text()
    assert "| layers | 2 |" in card
    assert "| tokens seen in training, without padding | 1,792 |" in card
    assert '"operator": "stack"' in card
    assert "The tokenizer is not part of this folder." in card


def test_export_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, stacking.huggingface.export; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_variant_without_a_hugging_face_class_is_refused(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "post_ln", replace(VARIANTS["post_ln"], hugging_face=""))
    with pytest.raises(UserError, match="post_ln model, which cannot be exported"):
        export(state, state.parent / "out")
    assert not (state.parent / "out").exists()


def test_a_larger_tokenizer_is_refused(state: Path, tmp_path: Path) -> None:
    with new_folder(tmp_path / "data", _about_data(102)):
        pass
    with pytest.raises(UserError, match="is 102 where the model embeds 101 tokens"):
        export(state, tmp_path / "out", tmp_path / "data")


def test_a_folder_that_is_not_a_state_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds 'data', not a state; give a folder written by"):
        export(data, tmp_path / "out")
    with pytest.raises(
        UserError, match=r"manifest\.json: is missing, so this is not a state folder; give a folder written by"
    ):
        export(tmp_path, tmp_path / "out")


def test_a_tokenizer_of_something_else_is_refused(state: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 'export', not data"):
        export(state, tmp_path / "out", export(state, tmp_path / "other"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 2}, "has format 2, but this version reads 1"),
        ({"moments": "no"}, "does not describe a state: moments"),
        ({"optimizer_step": -1}, "does not describe a state: optimizer_step"),
        ({"progress": [1]}, "does not describe a state: progress"),
        ({"model": [1]}, "does not describe a state: model"),
        ({"model": {**SMALL, "depth": 3}}, "does not describe a state: model.depth"),
        ({"model": {**SMALL, "layers": 1}}, "which the model in its manifest does not have"),
        ({"model": {**SMALL, "layers": 3}}, "lacks the parameter layers.2."),
    ],
)
def test_a_manifest_that_was_edited_is_named(state: Path, tmp_path: Path, change: dict, problem: str) -> None:
    manifest = json.loads((state / "manifest.json").read_text())
    write_sealed(state / "manifest.json", manifest | change)
    with pytest.raises(UserError) as error:
        export(state, tmp_path / "out")
    assert problem in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_state_without_a_model_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "state", None, random_weights(ModelConfig(**SMALL)))
    with pytest.raises(UserError, match=r"manifest\.json: model: is empty"):
        export(tmp_path / "state", tmp_path / "out")


def test_an_altered_weight_is_detected(state: Path, tmp_path: Path) -> None:
    path = state / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="does not match its checksum"):
        export(state, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("problem", ["lacks the parameter pooler.bias", "has pooler.bias as [31]"])
def test_weights_of_another_model_are_named_and_nothing_is_left(tmp_path: Path, problem: str) -> None:
    config = ModelConfig(**SMALL)
    weights = random_weights(config)
    bias = weights.pop("pooler.bias")
    if "has" in problem:
        weights["pooler.bias"] = bias[1:].clone()
    write_state(tmp_path / "state", config, weights)
    with pytest.raises(DamagedFile) as error:
        export(tmp_path / "state", tmp_path / "out")
    assert problem in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_full_disk_leaves_no_export(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SafetensorsWriter, "append", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(NoSpace):
        export(state, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_config_of_the_export_is_plain_json(state: Path, tmp_path: Path) -> None:
    content = json.loads((export(state, tmp_path / "out") / "config.json").read_text())
    assert content["model_type"] == "bert"
    assert content["num_hidden_layers"] == 2
    assert content["vocab_size"] == 101
