"""Builds the sample index of an epoch, which is written once per run, in chunks, and then memory-mapped.

Each kind of samples has its own rows: see `stacking.data.sample_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stacking.data.arrays import growing_array
from stacking.data.batch import I64
from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS
from stacking.errors import UserError
from stacking.storage.files import disk_errors

SHORTEST_SEQUENCE = 8


def build_samples(corpus: Corpus, kind: str, sequence_length: int) -> I64:
    """Builds the sample index of ``corpus``, int64 [N, columns of the kind].

    Raises:
        UserError: the kind is unknown, the sequence too short, or the corpus has no sample of this kind.
    """
    _check(corpus, kind, sequence_length)
    return np.concatenate(list(SAMPLERS[kind].rows(corpus, sequence_length)))


@dataclass(frozen=True)
class SampleIndex:
    """The result of ``build_samples``, built on demand and never in memory as a whole.

    Raises:
        UserError: on construction, as ``build_samples``.
    """

    corpus: Corpus
    kind: str
    sequence_length: int

    def __post_init__(self) -> None:
        _check(self.corpus, self.kind, self.sequence_length)

    def __len__(self) -> int:
        return SAMPLERS[self.kind].count(self.corpus, self.sequence_length)

    def write(self, path: Path) -> None:
        """Writes it to ``path`` (.npy), which appears when complete.

        Raises:
            NoSpace: the disk is full.
        """
        with disk_errors(path), growing_array(path, np.int64) as rows:
            for chunk in SAMPLERS[self.kind].rows(self.corpus, self.sequence_length):
                rows.append(chunk)


def _check(corpus: Corpus, kind: str, sequence_length: int) -> None:
    if kind not in SAMPLERS:
        raise UserError("data.samples", f"there is no kind {kind!r}", f"use one of {', '.join(SAMPLERS)}")
    if sequence_length < SHORTEST_SEQUENCE:
        problem = f"{sequence_length} tokens cannot hold a pair of sentences"
        raise UserError("data.sequence_length", problem, f"use at least {SHORTEST_SEQUENCE}")
    where = f"{corpus.folder}: {corpus.split}"
    if not SAMPLERS[kind].pairs:
        return
    if corpus.documents < 2:
        problem = f"{kind} samples need partners from another document, but there is only one"
        raise UserError(where, problem, "prepare more documents or use packed samples")
    if corpus.sentences == corpus.documents:
        problem = f"{kind} samples need documents of two or more sentences, but there are none"
        raise UserError(where, problem, "prepare longer documents or use packed samples")
