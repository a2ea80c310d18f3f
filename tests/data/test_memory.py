"""The memory needed to sample from a corpus does not depend on the corpus's size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stacking.storage.files import write_sealed

LIMIT = 320 << 20
SHARDS, SHARD_TOKENS, SENTENCE, DOCUMENT = 3, 1 << 28, 64, 100 * 64

UNDER_LIMIT = """
import pathlib, resource, sys
import numpy as np
folder, out, limit = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    np.ones(limit, dtype=np.uint8)
except MemoryError:
    print("limited")
from stacking.data.corpus import Corpus
from stacking.data.sampler import SAMPLERS
from stacking.data.samples import SampleIndex
corpus = Corpus(folder)
for kind, sampler in SAMPLERS.items():
    index = SampleIndex(corpus, kind, 128)
    index.write(out)
    count = len(index)
    drawn = sampler(corpus, np.load(out, mmap_mode="r"), 128, seed=1)
    batch = drawn.unpadded(np.linspace(0, count - 1, 500).astype(np.int64))
    print(kind, count, batch.lengths.max())
"""


def write_sparse(folder: Path) -> int:
    """A prepared folder of SHARDS shards whose tokens are holes in sparse files; returns its size in bytes."""
    (folder / "train").mkdir(parents=True)
    bounds = {
        "sentences": np.arange(0, SHARD_TOKENS + 1, SENTENCE),
        "documents": np.append(np.arange(0, SHARD_TOKENS // SENTENCE, DOCUMENT // SENTENCE), SHARD_TOKENS // SENTENCE),
    }
    for shard in range(SHARDS):
        np.lib.format.open_memmap(folder / f"train/{shard:05d}.tokens.npy", "w+", np.uint16, (SHARD_TOKENS,))
        for name, array in bounds.items():
            np.save(folder / f"train/{shard:05d}.{name}.npy", array)
    # Opening only compares the sizes.
    files = {
        f"train/{path.name}": {"bytes": path.stat().st_size, "checksum": ""} for path in (folder / "train").iterdir()
    }
    counts = {"tokens": SHARDS * SHARD_TOKENS, "sentences": SHARDS * (len(bounds["sentences"]) - 1)}
    manifest = {
        "kind": "data",
        "format": 1,
        "vocabulary": 100,
        "special": {"pad": 1, "unk": 2, "cls": 3, "sep": 4, "mask": 5},
        "splits": {"train": counts | {"documents": SHARDS * (len(bounds["documents"]) - 1)}},
        "files": files,
    }
    write_sealed(folder / "manifest.json", manifest)
    return sum(file["bytes"] for file in files.values())


@pytest.mark.skipif(sys.platform != "linux", reason="the limit exists only on Linux")
def test_a_corpus_larger_than_memory_can_be_indexed_and_sampled(tmp_path: Path) -> None:
    assert write_sparse(tmp_path / "data") > 4 * LIMIT
    command = [sys.executable, "-c", UNDER_LIMIT, str(tmp_path / "data"), str(tmp_path / "samples.npy"), str(LIMIT)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    limited, *kinds = done.stdout.splitlines()
    assert limited == "limited"
    sentences, documents = SHARDS * SHARD_TOKENS // SENTENCE, SHARDS * -(-SHARD_TOKENS // DOCUMENT)
    stream = SHARDS * SHARD_TOKENS + documents - 1
    assert kinds[0] == f"sentence-pair {sentences - documents} 128"
    assert kinds[1].startswith("segment-pair") and kinds[2] == f"packed {-(-stream // 126)} 128"
