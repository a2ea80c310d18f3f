"""What people do with an export first: fill a mask, and embed sentences; with every variant."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from stacking.evaluate.mlm import load_model
from stacking.huggingface.export import export
from stacking.model.config import VARIANTS, ModelConfig
from stacking.storage.files import new_folder, write_json
from tests.states import SMALL, random_weights, write_state

transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "ran", "on", "a", "mat"]
SENTENCES = ["the cat sat on a mat", "a dog ran", "the mat"]


@pytest.fixture(params=[name for name, variant in VARIANTS.items() if variant.hugging_face])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An export of each variant with a tokenizer; its state is in ``state`` next to it."""
    from tokenizers import BertWordPieceTokenizer

    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), range(5), strict=True))
    about = {"kind": "data", "format": 1, "vocabulary": len(WORDS), "special": special, "splits": {}}
    with new_folder(tmp_path / "data", about) as data:
        BertWordPieceTokenizer({word: number for number, word in enumerate(WORDS)}).save(str(data / "tokenizer.json"))
        (data / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
        tokens = {f"{name}_token": WORDS[number] for name, number in special.items()}
        write_json(data / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **tokens})
    config = ModelConfig(**{**SMALL, "variant": request.param, "vocabulary": len(WORDS)})
    write_state(tmp_path / "state", config, random_weights(config))
    return export(tmp_path / "state", tmp_path / "out", tmp_path / "data")


def test_the_fill_mask_pipeline_returns_our_top_answer(folder: Path) -> None:
    fill: Any = transformers.pipeline("fill-mask", model=str(folder), trust_remote_code=True)
    (answer,) = fill("the cat [MASK] on a mat", top_k=1)
    ids = torch.tensor([[2, *(WORDS.index(w) for w in ("the", "cat", "[MASK]", "on", "a", "mat")), 3]])
    with torch.no_grad():
        scores, _ = load_model(folder.parent / "state").eval().logits(ids, ids * 0, ids > 0)
    assert answer["token_str"] == WORDS[int(scores[0, 3].argmax())]


def test_mean_pooled_sentence_embeddings_do_not_depend_on_padding(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoder = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()

    def embedded(sentences: list[str]) -> torch.Tensor:
        batch = tokenizer(sentences, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)

    together, alone = embedded(SENTENCES), torch.cat([embedded([sentence]) for sentence in SENTENCES])
    assert together.shape == (3, SMALL["hidden"])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_the_tokenizer_returns_what_the_model_class_accepts(folder: Path) -> None:
    returned = set(transformers.AutoTokenizer.from_pretrained(folder)("the cat"))
    encoder = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert returned <= set(inspect.signature(encoder.forward).parameters)
