"""Vocabularies: trained ones, existing ones, and how transformers reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stacking.data import vocabulary
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


def test_words_round_trip_through_decoding(tmp_path: Path) -> None:
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
