"""Vocabularies: trained ones, existing ones, and what transformers makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from stacking.data import vocabulary
from stacking.errors import UserError
from tests.data.conftest import prose

TEXTS = ["Hello, world! Naïve café — \u2018x\u2019", "THE cat\tsat\non 中文 mats.", "it's 3.50 a_b [x]", prose(3, 5)]


@pytest.mark.parametrize("lowercase", [True, False])
def test_transformers_gives_the_same_ids(tmp_path: Path, lowercase: bool) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = vocabulary.train([prose(seed, 50) for seed in range(20)] + TEXTS, 500, lowercase)
    vocabulary.save(tokenizer, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in TEXTS:
        assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
        assert loaded(text, TEXTS[0])["token_type_ids"] == tokenizer.encode(text, TEXTS[0]).type_ids
    assert (loaded.pad_token_id, loaded.mask_token_id) == (0, 4)
    assert loaded.is_fast and len(loaded) == vocabulary.size_of(tokenizer)


def test_words_are_decoded_as_they_were(tmp_path: Path) -> None:
    tokenizer = vocabulary.train([prose(seed, 50) for seed in range(20)], 400, lowercase=True)
    text = prose(99, 3).replace("\n\n", " ").lower()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_training_is_the_same_in_every_process() -> None:
    code = (
        "import random; from stacking.data import vocabulary as v; d = random.Random(1)\n"
        "t = [''.join(d.choices([chr(c) for c in range(97, 1700)], k=40)) + ' a b' for _ in range(400)]\n"
        "print(v.train(t, 600, True).to_str())"
    )
    first, second = (subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(2))
    assert first.stdout == second.stdout
    assert len(json.loads(first.stdout)["model"]["vocab"]) <= 600


def test_a_tokenizer_can_be_a_folder_or_either_file(tmp_path: Path) -> None:
    tokenizer = vocabulary.train([prose(1, 100)], 300, lowercase=True)
    vocabulary.save(tokenizer, tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "vocab.txt"):
        loaded = vocabulary.load(path)
        assert [loaded.encode(text).ids for text in TEXTS] == [tokenizer.encode(text).ids for text in TEXTS]
        assert vocabulary.special_ids(loaded) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def test_special_ids_of_an_existing_vocabulary_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\n##b\n[MASK]\n[SEP]\n[UNK]\n[CLS]\n[PAD]\n")
    loaded = vocabulary.load(tmp_path / "vocab.txt")
    assert vocabulary.special_ids(loaded) == {"mask": 2, "sep": 3, "unk": 4, "cls": 5, "pad": 6}
    assert loaded.encode("ab").ids == [5, 0, 1, 3]


def test_tokenizers_that_will_not_do_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    (tmp_path / "broken.json").write_text("{")
    Tokenizer(models.BPE()).save(str(tmp_path / "bpe.json"))
    (tmp_path / "empty").mkdir()
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    Tokenizer(models.WordPiece(words, unk_token="<unk>")).save(str(tmp_path / "unknown.json"))
    dense = Tokenizer(models.WordPiece({**words, "far": 5}, unk_token="[UNK]")).to_str()
    (tmp_path / "sparse.json").write_text(dense.replace('"far":5', '"far":4000000000'))
    cases = {
        "vocab.txt": r"has no \[MASK\]",
        "broken.json": "is not a tokenizer",
        "bpe.json": "is a BPE tokenizer",
        "empty": "has no tokenizer in it",
        "unknown.json": r"writes '<unk>' for unknown words",
        "sparse.json": "has ids up to 4,000,000,000",
        "none": "does not exist",
    }
    for name, problem in cases.items():
        with pytest.raises(UserError, match=problem) as caught:
            vocabulary.load(tmp_path / name)
        assert "\n" not in str(caught.value)
