"""Streams datasets from the Hugging Face Hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stacking.data.compression import plain_suffix
from stacking.data.formats import READABLE
from stacking.data.rows import Texts, listed
from stacking.errors import UserError, first_line

_DATASET = re.compile(r"[\w-]+(\.[\w-]+)*/[\w.-]+(:[\w.-]+)?|[\w-]+(\.[\w-]+)*:[\w.-]+")
_SECONDS_TO_ANSWER = 10
_LOUD = ("datasets", "huggingface_hub", "fsspec", "httpx", "urllib3")


def is_dataset(name: str) -> bool:
    """Whether ``name`` is a dataset: ``OWNER/NAME``, ``OWNER/NAME:CONFIGURATION`` or ``NAME:CONFIGURATION``.

    It is one unless such a path or its parent folder exists, or the name ends like a text file.
    """
    path = Path(name)
    if path.exists() or not _DATASET.fullmatch(name) or plain_suffix(path) in READABLE:
        return False
    return "/" not in name or not Path(path.parts[0]).exists()


def dataset_documents(name: str, key: str) -> Iterator[str]:
    """Yields the documents of a dataset's ``train`` split; null becomes an empty document.

    Raises:
        UserError: the dataset cannot be reached or has no column ``key`` of strings.
    """
    repository, _, configuration = name.partition(":")
    for logger in _LOUD:
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        require_on_hub(repository)
        rows = iter(_stream(repository, configuration or None))
        texts = Texts(name, key)
        for row in rows:
            if key not in row:
                remedy = f"name one of its columns with --text-key: {listed(row)}"
                raise UserError(name, f"has no column `{key}`", remedy)
            yield from [texts.of(row, name)]
        texts.end()
    except UserError:
        raise
    except Exception as error:
        reason = first_line(error)[:160]
        problem = f"is neither a path here nor a dataset that can be read ({type(error).__name__}: {reason})"
        raise UserError(name, problem, "check the name, or the network") from None


def require_on_hub(repository: str) -> None:
    """Asks the Hub once whether it has ``repository``; the library itself would retry for half a minute.

    Raises:
        Exception: whatever the library raises if the Hub does not answer or has no such dataset.
    """
    from huggingface_hub import HfApi

    HfApi().dataset_info(repository, timeout=_SECONDS_TO_ANSWER)


def _stream(repository: str, configuration: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(repository, configuration, split="train", streaming=True)
