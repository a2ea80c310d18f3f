from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from stacking.errors import UserError
from stacking.glue.encode import Encoded, encode, load_tokenizer, shuffled_batches, sorted_batches
from tests.glue.small_glue import WORDS, write_tokenizer

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200).map(np.array)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("of_bert", [True, False])
@pytest.mark.parametrize("longest", [8, 64])
@pytest.mark.parametrize("pairs", [True, False])
def test_inputs_match_those_of_transformers(tokenizer_folder: Path, of_bert: bool, longest: int, pairs: bool) -> None:
    first = [" ".join(WORDS[: 1 + number]) for number in range(9)]
    second = [" ".join(WORDS[number:]) for number in range(9)] if pairs else []
    encoded = encode(load_tokenizer(tokenizer_folder, of_bert), first, second, longest)
    reference = transformers.AutoTokenizer.from_pretrained(str(tokenizer_folder))
    expected = reference(first, second or None, truncation=True, max_length=longest)
    for number in range(9):
        part = encoded.batch(np.array([number]))
        assert part.input_ids.tolist() == expected["input_ids"][number]
        assert part.segment_ids.tolist() == expected["token_type_ids"][number]
    whole = reference(first, second or None)["input_ids"]
    assert encoded.cut == sum(len(ids) > longest for ids in whole)


def test_a_batch_holds_the_inputs_in_the_requested_order() -> None:
    encoded = Encoded(np.arange(6, dtype=np.int32), np.zeros(6, dtype=np.uint8), np.array([0, 1, 3, 6]), 0)
    batch = encoded.batch(np.array([2, 0]))
    assert batch.input_ids.tolist() == [3, 4, 5, 0]
    assert (batch.lengths.tolist(), batch.position_ids.tolist()) == ([3, 1], [0, 1, 2, 0])
    both = encoded.followed_by(encoded).batch(np.array([5, 1]))
    assert both.input_ids.tolist() == [3, 4, 5, 1, 2]


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 5))
def test_an_epoch_has_every_example_once_in_full_batches(lengths: np.ndarray, size: int, seed: int) -> None:
    batches = list(shuffled_batches(lengths, size, np.random.default_rng(seed)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1])
    assert [b.tolist() for b in shuffled_batches(lengths, size, np.random.default_rng(seed))] == [
        b.tolist() for b in batches
    ]


@given(lengths=LENGTHS, size=st.integers(1, 9))
def test_sorted_batches_have_every_example_once_longest_first(lengths: np.ndarray, size: int) -> None:
    order = np.concatenate(list(sorted_batches(lengths, size)))
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()


def test_batches_need_little_padding_and_are_not_sorted_by_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=2_000)
    batches = list(shuffled_batches(lengths, 16, np.random.default_rng(1)))
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert padded < 1.15 * lengths.sum()
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.4


def test_a_bert_may_have_a_different_kind_of_tokenizer(tmp_path: Path) -> None:
    """As multilingual sentence encoders have, although their architecture is BERT's."""
    own = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("good", -2.0), ("film", -2.0)], unk_id=0))
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>").save_pretrained(tmp_path)
    encoded = encode(load_tokenizer(tmp_path, of_bert=True), ["good film"], [], 8)
    assert encoded.ids.tolist() == own.encode("good film").ids


def test_a_folder_without_a_usable_tokenizer_is_reported_in_one_line(tmp_path: Path) -> None:
    for of_bert in (True, False):
        with pytest.raises(UserError, match="tokenizer"):
            load_tokenizer(tmp_path, of_bert)
