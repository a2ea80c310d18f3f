"""Compares the written tokenizer with the shards: what users load must give what the model learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stacking.errors import StackingError
from stacking.storage.files import read_json

_FAST = {"BertTokenizer": "BertTokenizerFast"}


def check_written(folder: Path, sentences: Sequence[str], tokens: npt.NDArray[np.integer]) -> None:
    """Loads the tokenizer in ``folder`` with transformers and compares its ids with those in the shards.

    Args:
        folder: a prepared data folder.
        sentences: the first ones of a split.
        tokens: the ids of that split, [T], from its beginning; T may exceed the sentences' tokens.

    Raises:
        StackingError: an id differs; names the sentence.
    """
    tokenizer = _loaded(folder)
    start = 0
    for sentence in sentences:
        expected = tokenizer(sentence, add_special_tokens=False, verbose=False)["input_ids"]
        found = tokens[start : start + len(expected)].tolist()
        if found != expected:
            raise StackingError(
                f"{folder}: transformers gives {expected[:12]} for {sentence[:80]!r}, the shards have {found[:12]}; "
                "this is a bug in stacking or the installed transformers: please report it with the tokenizer"
            )
        start += len(expected)


def _loaded(folder: Path) -> Any:
    """Loads the class that AutoTokenizer would choose; importing AutoTokenizer itself would load torch."""
    import transformers

    name = read_json(folder / "tokenizer_config.json")["tokenizer_class"]
    return getattr(transformers, _FAST.get(name, name)).from_pretrained(str(folder), local_files_only=True)
