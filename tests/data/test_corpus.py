"""Opening prepared data: navigation, and one line for anything inconsistent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stacking.data import shards
from stacking.data.corpus import Corpus, load_manifest
from stacking.data.prepare import prepare
from stacking.data.sampler import SAMPLERS
from stacking.data.samples import build_samples
from stacking.errors import UserError
from stacking.storage.files import write_sealed


@pytest.fixture
def copy(tmp_path: Path, data_folder: Path) -> Path:
    return Path(shutil.copytree(data_folder, tmp_path / "data"))


def test_boundaries_are_consistent(corpus: Corpus) -> None:
    sentences = np.arange(corpus.sentences)
    starts = corpus.sentence_start(np.arange(corpus.sentences + 1))
    assert starts[0] == 0 and starts[-1] == corpus.tokens and (np.diff(starts) > 0).all()
    assert np.array_equal(corpus.sentence_at(starts[:-1]), sentences)
    assert np.array_equal(corpus.sentence_at(starts[1:] - 1), sentences)
    documents = corpus.document_of(sentences)
    assert np.array_equal(np.unique(documents), np.arange(corpus.documents))
    assert np.array_equal(corpus.document_start(documents[:1]), [0])


def test_shards_are_invisible(
    tmp_path: Path, text_folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same text in many shards and in one gives the same samples."""
    import stacking.data.prepare as module

    monkeypatch.setattr(shards, "SHARD_TOKENS", 500)
    monkeypatch.setattr(module, "PART_CHARACTERS", 2000)
    prepare([str(text_folder)], tmp_path / "many", vocabulary_size=300, held_out=0.1, workers=1)
    many = Corpus(tmp_path / "many")
    assert len(many._tokens) > 5 and (many.tokens, many.documents) == (corpus.tokens, corpus.documents)
    for kind in SAMPLERS:
        batches = []
        for each in (corpus, many):
            index = build_samples(each, kind, 48)
            batches.append(SAMPLERS[kind](each, index, 48, 1).batch(np.arange(300)))
        assert np.array_equal(batches[0].input_ids, batches[1].input_ids)
        assert np.array_equal(batches[0].mlm_labels, batches[1].mlm_labels)


def _remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _put_a_folder_in_place_of_the_manifest(folder: Path) -> None:
    _remove_manifest(folder)
    (folder / "manifest.json").mkdir()


def _change(**entries: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        write_sealed(path, json.loads(path.read_text()) | entries)

    return change


def _cut_tokens(folder: Path) -> None:
    path = folder / "train/00000.tokens.npy"
    path.write_bytes(path.read_bytes()[:-2])


def _remove_sentences(folder: Path) -> None:
    (folder / "train/00000.sentences.npy").unlink()


def _raise_token(folder: Path) -> None:
    tokens = np.load(folder / "train/00000.tokens.npy", mmap_mode="r+")
    tokens[10] = 60_000


def _swap_documents(folder: Path) -> None:
    path = folder / "train/00000.documents.npy"
    documents = np.load(path)
    documents[-1] += 1
    np.save(path, documents)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (shutil.rmtree, "is not a prepared data folder"),
        (_remove_manifest, "manifest.json: is missing"),
        (_put_a_folder_in_place_of_the_manifest, "manifest.json: is not a file"),
        (_change(kind="state"), "holds 'state', not data"),
        (_change(format=2), "has format 2"),
        (_change(vocabulary=50), "but the vocabulary ends at 49"),
        (_cut_tokens, r"00000.tokens.npy: has .* bytes where the manifest says"),
        (_remove_sentences, "00000.sentences.npy: is missing"),
        (_raise_token, "token id 60,000, but the vocabulary ends"),
        (_swap_documents, "does not fit its sentence and document boundaries"),
    ],
)
def test_damaged_data_is_refused_in_one_line(copy: Path, damage: Callable[[Path], None], problem: str) -> None:
    damage(copy)
    with pytest.raises(UserError, match=problem) as caught:
        Corpus(copy)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value) and str(copy) in str(caught.value)


def test_an_id_beyond_the_vocabulary_is_detected_when_it_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stacking.data import corpus as module

    monkeypatch.setattr(module, "_PROBED_TOKENS", 4)
    _raise_token(copy)
    opened = Corpus(copy)
    with pytest.raises(UserError, match="token id 60,000"):
        opened.read(np.array([0]), np.array([20]))


def test_a_missing_split_is_refused(data_folder: Path) -> None:
    with pytest.raises(UserError, match="use one of train, held_out"):
        Corpus(data_folder, "valid")


def test_the_manifest_contains_what_the_contract_requires(data_folder: Path) -> None:
    manifest = load_manifest(data_folder)
    assert manifest["special"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert {"kind", "format", "vocabulary", "splits", "source", "options", "digest", "files"} <= manifest.keys()
    assert all(manifest["splits"][split]["documents"] > 0 for split in ("train", "held_out"))
