"""From one stage's checkpoint to the next one's start: every byte is read once, memory is bounded, damage is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stacking.errors import DamagedFile
from stacking.growth.apply import grow
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.consolidate import consolidate
from stacking.state.format import State, manifest_of
from stacking.state.zero import ZeroCheckpoint
from stacking.storage.blocks import BLOCK, digest, entry_of
from stacking.storage.files import MANIFEST, seal_folder, write_sealed
from stacking.storage.safetensors_file import FileLayout, TensorSpec
from tests.state.ranks import ROOT

torch = pytest.importorskip("torch")
from tests.state.checkpoints import shard_file, write_checkpoint  # noqa: E402

MODEL = ModelConfig(layers=1, hidden=512, heads=8, intermediate=2048, vocabulary=4000, max_positions=64)
linux = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="measured through /proc")


def sealed_checkpoint(folder: Path, ranks: int = 2) -> Path:
    """5.9 M parameters: 94 MB, or 90 blocks in all."""
    write_checkpoint(folder, [dict(parameter_shapes(MODEL))], ranks=ranks)
    write_sealed(folder / "progress.json", {"model": MODEL.model_dump(), "step": 7})
    seal_folder(folder, {"kind": "checkpoint"})
    return folder


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def run(script: str, *arguments: object) -> dict[str, int]:
    command = [sys.executable, "-c", _COUNTERS + script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


_COUNTERS = """
import json, sys
from pathlib import Path
from stacking.growth.apply import grow
from stacking.state.consolidate import consolidate

def counter(file, field):
    return next(int(line.split()[1]) for line in open(f"/proc/self/{file}") if line.startswith(field))

def say(work):
    before = counter("io", "rchar"), counter("io", "wchar")
    work()
    after = counter("io", "rchar"), counter("io", "wchar")
    print(json.dumps({"read": after[0] - before[0], "written": after[1] - before[1],
                      "memory": counter("status", "VmHWM") << 10}))
"""


@linux
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_consolidating_reads_every_byte_of_the_checkpoint_once(tmp_path: Path, ranks: int) -> None:
    checkpoint = sealed_checkpoint(tmp_path / "c", ranks)

    found = run("say(lambda: consolidate(Path(sys.argv[1]), Path(sys.argv[2])))", checkpoint, tmp_path / "state")

    assert size_of(checkpoint) <= found["read"] < 1.05 * size_of(checkpoint) + BLOCK
    assert size_of(tmp_path / "state") <= found["written"] < 1.01 * size_of(tmp_path / "state") + BLOCK


@linux
def test_growing_with_shared_files_reads_and_writes_no_tensors(tmp_path: Path) -> None:
    consolidate(sealed_checkpoint(tmp_path / "c"), tmp_path / "state")
    script = 'say(lambda: grow(Path(sys.argv[1]), Path(sys.argv[2]), 2, "stack", "copy-keep-step", share=True))'

    found = run(script, tmp_path / "state", tmp_path / "start")

    assert found["read"] < BLOCK and found["written"] < BLOCK


@linux
def test_growing_with_copies_reads_every_byte_at_most_once_for_each_layer(tmp_path: Path) -> None:
    consolidate(sealed_checkpoint(tmp_path / "c"), tmp_path / "state")
    script = 'say(lambda: grow(Path(sys.argv[1]), Path(sys.argv[2]), 2, "stack", "copy"))'

    found = run(script, tmp_path / "state", tmp_path / "start")

    assert found["read"] < 1.2 * size_of(tmp_path / "start")
    assert found["written"] < 1.01 * size_of(tmp_path / "start") + BLOCK


@pytest.mark.parametrize("share", [True, False])
def test_the_whole_transition_is_exact_bit_for_bit(tmp_path: Path, share: bool) -> None:
    checkpoint = ZeroCheckpoint(sealed_checkpoint(tmp_path / "c", ranks=3))

    state = consolidate(checkpoint.path, tmp_path / "state")
    start = grow(state, tmp_path / "start", 2, "stack", "copy-keep-step", share=share)

    assert start.optimizer_step == checkpoint.optimizer_step == 7
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        for name in start.names:
            np.testing.assert_array_equal(
                start.read(kind, name), checkpoint.read(kind, name.replace("layers.1.", "layers.0."))
            )


# Damage, at every place


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sealed_checkpoint(tmp_path_factory.mktemp("damage") / "c")


FILES = ["mp_rank_00_model_states.pt", shard_file(Path(), 0).name, shard_file(Path(), 1).name, "progress.json"]


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.45, 0.6, 0.7, 0.85, 0.999, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_byte_anywhere_is_found_and_its_file_named(
    checkpoint: Path, tmp_path: Path, name: str, place: float
) -> None:
    """Even in bytes that no state needs: the model's low-precision weights, padding, and what pickles ignore."""
    file = checkpoint / name
    position = min(int(place * file.stat().st_size), file.stat().st_size - 1)
    with flipped(file, position), pytest.raises(DamagedFile, match=name.replace(".", r"\.")):
        consolidate(checkpoint, tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_an_undamaged_checkpoint_is_accepted(checkpoint: Path, tmp_path: Path) -> None:
    """Guards the tests above."""
    consolidate(checkpoint, tmp_path / "state")
    State(tmp_path / "state", checksums=True)


@pytest.mark.parametrize("name", ["weights", "exp_avg", "exp_avg_sq"])
def test_a_damaged_state_is_not_loaded(checkpoint: Path, tmp_path: Path, name: str) -> None:
    state = consolidate(checkpoint, tmp_path / "state")
    with flipped(state.path / f"{name}.safetensors", size_of(checkpoint) // 10), pytest.raises(DamagedFile, match=name):
        for parameter in state.names:
            State(state.path).read(name, parameter)


class flipped:
    """One bit of one byte is another while the block runs."""

    def __init__(self, file: Path, position: int) -> None:
        self.file, self.position = file, position

    def flip(self, *_: object) -> None:
        with open(self.file, "rb+", buffering=0) as file:
            file.seek(self.position)
            byte = file.read(1)
            file.seek(self.position)
            file.write(bytes([byte[0] ^ 1]))

    __enter__ = __exit__ = flip


# Memory, of states several times as large as it may become

LIMIT = 400_000_000


def sparse_state(folder: Path, layers: int) -> Path:
    """A state whose files are sparse: 1.6 GB in five layers that take no space on the disk."""
    model = ModelConfig(layers=layers, hidden=1024, heads=16, intermediate=4096 * 6, vocabulary=500, max_positions=64)
    layout = FileLayout({name: TensorSpec("float32", shape) for name, shape in parameter_shapes(model).items()})
    folder.mkdir()
    with open(folder / "weights.safetensors", "wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
    zero = bytes(BLOCK)
    digests = [digest(zero)] * (layout.size // BLOCK) + [digest(zero[: layout.size % BLOCK])]
    digests[0] = digest(layout.header + zero[len(layout.header) :])
    assert len(layout.header) < BLOCK
    files = {"weights.safetensors": entry_of(layout.size, digests)}
    write_sealed(folder / MANIFEST, {**manifest_of(False, 0, model, None, {}), "files": files})
    return folder


@linux
def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    """Growing with copies, which has the same writer as consolidating, and reading a state as loading does."""
    state = sparse_state(tmp_path / "s", layers=6)
    assert (state / "weights.safetensors").stat().st_size > 3 * LIMIT
    script = """
from stacking.state.format import State
import numpy as np
def read():
    state, buffer = State(Path(sys.argv[1])), np.empty(1 << 22, np.float32)
    for name in state.names:
        count = int(np.prod(state.shape(name)))
        for start in range(0, count, 1 << 22):
            state.fill("weights", name, start, buffer[: min(1 << 22, count - start)])
say(read)
"""
    assert run(script, state)["memory"] < 150_000_000
    script = "say(lambda: grow(Path(sys.argv[1]), Path(sys.argv[2]), 6))"
    assert run(script, state, tmp_path / "grown")["memory"] < 200_000_000
