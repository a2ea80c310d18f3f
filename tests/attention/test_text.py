"""The text is held out, unmasked, and tokenized as the model's tokenizer does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers

from stacking.attention.text import FileText, HeldOutText, rectangle
from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS
from stacking.data.samples import build_samples
from stacking.errors import UserError
from tests.data.conftest import write_numbers


def test_samples_are_the_training_samples_without_masking(data: Path) -> None:
    text = HeldOutText(data, "segment-pair", 32, seed=3)
    corpus = Corpus(data, "held_out")
    sampler = SAMPLERS["segment-pair"](corpus, build_samples(corpus, "segment-pair", 32), 32, 3)
    (drawn,) = text.sequences(5, at_once=5)
    batch = sampler.batch(np.arange(5))
    width = drawn.mask.shape[1]
    assert corpus.special["mask"] in batch.input_ids and corpus.special["mask"] not in drawn.input_ids
    assert (drawn.mask == batch.attention_mask[:, :width]).all()
    assert (drawn.segment_ids == batch.segment_ids[:, :width]).all()
    kept = np.ones(batch.input_ids.size, dtype=bool)
    kept[batch.mlm_positions] = False
    assert (drawn.input_ids == batch.input_ids[:, :width])[kept.reshape(5, -1)[:, :width]].all()


def test_separators_are_the_real_ones(data: Path) -> None:
    (drawn,) = HeldOutText(data, "segment-pair", 32, seed=0).sequences(6, at_once=6)
    sep = Corpus(data, "held_out").special["sep"]
    assert (drawn.separators == ((drawn.input_ids == sep) & drawn.mask)).all()
    assert (drawn.separators.sum(1) == 2).all()


def test_sequences_do_not_depend_on_how_many_are_drawn_together(data: Path) -> None:
    text = HeldOutText(data, "packed", 24, seed=0)
    singly = [drawn.input_ids[0] for drawn in text.sequences(7, at_once=1)]
    together = [
        row[mask]
        for drawn in text.sequences(7, at_once=3)
        for row, mask in zip(drawn.input_ids, drawn.mask, strict=True)
    ]
    assert [row.tolist() for row in singly] == [row.tolist() for row in together]


def test_a_short_text_yields_as_many_sequences_as_it_has(data: Path) -> None:
    text = HeldOutText(data, "segment-pair", 32, seed=0)
    whole = sum(len(drawn.mask) for drawn in text.sequences(10**9, at_once=64))
    assert 0 < whole < 1000


def test_examples_are_single_sentences_decoded_into_words(data: Path) -> None:
    text = HeldOutText(data, "segment-pair", 32, seed=0)
    rows = text.examples(3)
    assert len(rows) == 3
    for row in rows:
        words = [text.word(int(token)) for token in row]
        assert words[0] == "[CLS]" and words[-1] == "[SEP]" and len(row) <= 30
        assert "[SEP]" not in words[:-1] and all(words)


def test_a_sentence_is_encoded_with_the_tokenizer_of_the_data(data: Path) -> None:
    text = HeldOutText(data, "segment-pair", 32, seed=0)
    words = [text.word(int(token)) for token in text.encode("The.")]
    assert "".join(words).replace("##", "") == "[CLS]the.[SEP]"
    assert text.encode("").tolist() == text.encode(" ").tolist()


def test_data_without_held_out_text_is_refused(tmp_path: Path) -> None:
    folder = write_numbers(tmp_path / "data")
    with pytest.raises(
        UserError, match=r"manifest\.json: splits\.held_out: has no held-out text; prepare .*--held-out"
    ):
        HeldOutText(folder, "segment-pair", 32, seed=0)


def test_a_file_is_tokenized_as_transformers_does(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("First paragraph,\nstill the first.\n\n\nSecond.\n")
    text = FileText(file, data, 32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(data)
    (drawn,) = text.sequences(9, at_once=9)
    paragraphs = ["First paragraph, still the first.", "Second."]
    assert [row[mask].tolist() for row, mask in zip(drawn.input_ids, drawn.mask, strict=True)] == [
        tokenizer(paragraph)["input_ids"] for paragraph in paragraphs
    ]
    assert (drawn.separators.sum(1) == 1).all() and not drawn.segment_ids.any()


def test_long_paragraphs_become_several_sequences(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one two three four five six seven " * 20)
    drawn = list(FileText(file, data, 16).sequences(5, at_once=2))
    assert [len(batch.mask) for batch in drawn] == [2, 2, 1]
    assert all(batch.mask.shape[1] == 16 and batch.separators.any(1).all() for batch in drawn)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "is not a file"), (b" \n\n", "holds no text"), (b"caf\xe9 au lait", "is not UTF-8")],
)
def test_files_that_hold_no_text_are_refused(content: bytes | None, problem: str, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file}: {problem}"):
        FileText(file, data, 32)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing: holds no tokenizer"):
        FileText(tmp_path / "text.txt", tmp_path / "nothing", 32)


def test_rows_of_different_lengths_are_padded_at_their_ends() -> None:
    rows = [np.array([1, 7, 2]), np.array([1, 2])]
    drawn = rectangle(rows, [np.zeros(3), np.zeros(2)], separator=2, padding=9)
    assert drawn.input_ids.tolist() == [[1, 7, 2], [1, 2, 9]]
    assert drawn.separators.tolist() == [[False, False, True], [False, True, False]]
