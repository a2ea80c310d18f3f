"""The tokenizer next to the shards is loaded as users load it, and compared with them."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stacking.data.corpus import Corpus
from stacking.data.prepare import prepare
from stacking.data.sentences import split_sentences
from stacking.data.written import check_written
from stacking.errors import StackingError
from tests.chain import stacking
from tests.data.test_given import FOLDERS, write

transformers = pytest.importorskip("transformers")
TEXTS = ["Müde time [DRUG] C1ccccc1. Zeit <url> time flies!", "The [MASK] of 中文. Aé, time.", "Time time. Zeit."]


@pytest.mark.parametrize("name", ["molecules", "added", "own names", "pad is last"])
def test_shards_hold_the_ids_of_the_given_folder(tmp_path: Path, name: str) -> None:
    given = write(tmp_path / "given", **FOLDERS[name])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 3))
    manifest = prepare([str(tmp_path / "a.jsonl")], tmp_path / "out", tokenizer=given, held_out=0.3, workers=1).manifest
    theirs = transformers.AutoTokenizer.from_pretrained(str(given))
    expected = {
        tuple(theirs(sentence, add_special_tokens=False)["input_ids"])
        for text in TEXTS
        for sentence in split_sentences(text)
    }
    found = set()
    for split in manifest["splits"]:
        corpus = Corpus(tmp_path / "out", split)
        bounds = corpus.sentence_start(np.arange(corpus.sentences + 1))
        found |= {tuple(corpus.read(*np.array([span]).T).tolist()) for span in pairwise(bounds)}
    assert found == expected
    assert manifest["special"]["pad"] == theirs.pad_token_id


def test_a_differing_tokenizer_stops_the_preparation(data_folder: Path) -> None:
    sentences = ["time year people.", "way day man."]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(data_folder))
    ids = np.concatenate([tokenizer(each, add_special_tokens=False)["input_ids"] for each in sentences])
    check_written(data_folder, sentences, ids)
    ids[-1] += 1
    with pytest.raises(StackingError, match=r"for 'way day man\.', the shards have"):
        check_written(data_folder, sentences, ids)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--tokenizer", "v.txt", "--vocabulary-size", "30522"), "--vocabulary-size: has no effect with --tokenizer"),
        (("--held-out-input", "b", "--held-out", "0.01"), "--held-out: has no effect with --held-out-input"),
    ],
)
def test_options_without_effect_are_refused(tmp_path: Path, options: tuple[str, ...], line: str) -> None:
    done = stacking("prepare", "a.txt", "--out", str(tmp_path / "out"), *options, check=False)
    assert done.returncode == 2 and line in done.stderr


def test_preparing_text_does_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 3))
    code = (
        "import sys; from pathlib import Path; from stacking.data.prepare import prepare\n"
        "prepare(['a.jsonl'], Path('out'), held_out=0.3, workers=1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
