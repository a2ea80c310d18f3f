"""A small corpus of generated English-like text, prepared once for all tests."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from stacking.data.corpus import Corpus
from stacking.data.prepare import prepare
from stacking.storage.files import seal_folder

WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father hour
""".split()  # noqa: SIM905


def prose(seed: int, sentences: int) -> str:
    """``sentences`` sentences in paragraphs of four, all words drawn by ``seed``."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(3, 14))).capitalize() + "." for _ in range(sentences)]
    return "\n\n".join(" ".join(lines[start : start + 4]) for start in range(0, len(lines), 4))


def write_corpus(folder: Path, documents: int = 40, seed: int = 0) -> Path:
    """A folder of ``documents`` files of 1 to 30 sentences, with realistic names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        text = prose(seed * 1_000_003 + number, 1 + (number * 7) % 30)
        (folder / f'L\'été {number:03d} "part".txt').write_text(text, encoding="utf-8")
    return folder


def write_numbers(folder: Path, documents: int = 30, vocabulary: int = 1000) -> Path:
    """A prepared folder whose tokens, sentences and documents are arithmetic, not text."""
    sizes = [1 + number % 7 for number in range(documents)]
    lengths = [1 + (number * number) % 23 for number in range(sum(sizes))]
    tokens = 5 + np.arange(sum(lengths)) ** 2 % (vocabulary - 5)
    arrays = {"tokens": tokens.astype(np.uint16), "sentences": _bounds(lengths), "documents": _bounds(sizes)}
    (folder / "train").mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"train/00000.{name}.npy", array)
    counts = {"documents": documents, "sentences": len(lengths), "tokens": len(tokens)}
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    manifest = {"kind": "data", "format": 1, "vocabulary": vocabulary, "special": special}
    seal_folder(folder, manifest | {"splits": {"train": counts}})
    return folder


def _bounds(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "books & essays")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("data") / "data"
    prepare([str(text_folder)], out, vocabulary_size=300, held_out=0.1, workers=1)
    return out


@pytest.fixture(scope="session")
def corpus(data_folder: Path) -> Corpus:
    return Corpus(data_folder)
