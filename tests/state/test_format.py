"""The state folder: what is written is read back, by us and by the safetensors library; nothing is half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacking.errors import DamagedFile, NoSpace, UserError
from stacking.state.format import MOMENTS, State, new_state, write_state
from stacking.storage.files import new_folder
from stacking.storage.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec

SHAPES = {"b": (2, 3), "a": (4,), "scalar": ()}
BUFFERS = {"seen": TensorSpec("int64", (2,))}


def values(kind: str, name: str) -> np.ndarray:
    rng = np.random.default_rng(abs(hash((kind, name))) % 1000)
    return rng.normal(size=int(np.prod(SHAPES[name]))).astype(np.float32)


def write(path: Path, moments: bool = True) -> State:
    kinds = ("weights", *(MOMENTS if moments else ()))
    with new_state(path, SHAPES, buffers=BUFFERS, moments=moments, optimizer_step=9) as append:
        for kind in kinds:
            for name in SHAPES:
                append(kind, name, values(kind, name))
        append("buffers", "seen", np.array([1, 2]))
    return State(path, checksums=True)


@pytest.mark.parametrize("moments", [True, False])
def test_a_state_round_trips(tmp_path: Path, moments: bool) -> None:
    state = write(tmp_path / "s", moments)

    assert state.names == tuple(SHAPES) and state.shape("b") == (2, 3) and state.shape("scalar") == ()
    assert state.optimizer_step == 9 and state.moments is moments and state.model is None
    for kind in ("weights", *(MOMENTS if moments else ())):
        for name in SHAPES:
            np.testing.assert_array_equal(state.read(kind, name), values(kind, name))
    np.testing.assert_array_equal(state.read("weights", "b", 2, 5), values("weights", "b")[2:5])
    np.testing.assert_array_equal(state.read("buffers", "seen"), [1, 2])
    assert (tmp_path / "s" / "exp_avg.safetensors").exists() is moments


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    write(tmp_path / "s")

    for kind in ("weights", *MOMENTS):
        tensors = safetensors.load_file(tmp_path / "s" / f"{kind}.safetensors")
        assert {name: tensor.shape for name, tensor in tensors.items()} == SHAPES
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor.ravel(), values(kind, name))
    assert safetensors.load_file(tmp_path / "s" / "buffers.safetensors")["seen"].tolist() == [1, 2]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 17))
def test_slices_of_any_size_make_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], step: int
) -> None:
    folder = tmp_path_factory.mktemp("slices")
    tensors = {f"t{i}": np.arange(i, i + size, dtype=np.float32) for i, size in enumerate(sizes)}
    specs = {name: TensorSpec("float32", tensor.shape) for name, tensor in tensors.items()}
    with SafetensorsWriter(folder / "whole", specs) as writer:
        for name, tensor in tensors.items():
            writer.append(name, tensor)
    with SafetensorsWriter(folder / "sliced", specs) as writer:
        for name, tensor in tensors.items():
            for start in range(0, tensor.size, step):
                writer.append(name, tensor[start : start + step])

    assert (folder / "sliced").read_bytes() == (folder / "whole").read_bytes()
    for name, tensor in tensors.items():
        read = np.empty_like(tensor)
        SafetensorsFile.open(folder / "whole").fill(name, 0, read)
        np.testing.assert_array_equal(read, tensor)


def test_a_state_copied_through_the_stream_has_the_same_digest(tmp_path: Path) -> None:
    state = write(tmp_path / "s")
    done: list[tuple[int, int]] = []

    write_state(tmp_path / "copy", state, {}, lambda *progress: done.append(progress))

    assert State(tmp_path / "copy").digest == state.digest
    assert done[-1] == (3 * 11 * 4, 3 * 11 * 4)


@pytest.mark.parametrize("mistake", ["order", "too much", "too little", "dtype"])
def test_a_writer_refuses_undeclared_tensors_and_leaves_nothing(tmp_path: Path, mistake: str) -> None:
    with pytest.raises(ValueError), new_state(tmp_path / "s", {"a": (2,), "b": (2,)}, moments=False) as append:
        if mistake == "order":
            append("weights", "b", np.zeros(2, np.float32))
            append("weights", "a", np.zeros(2, np.float32))
        elif mistake == "too much":
            append("weights", "a", np.zeros(3, np.float32))
        elif mistake == "too little":
            append("weights", "a", np.zeros(2, np.float32))
        else:
            append("weights", "a", np.zeros(2, np.float64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = write(tmp_path / "s")
    monkeypatch.setattr("stacking.storage.safetensors_file.open", lambda *_: open("/dev/full", "wb"), raising=False)  # noqa: SIM115

    with pytest.raises(NoSpace, match="copy: no space left"):
        write_state(tmp_path / "copy", state, {})
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    file = write(tmp_path / "s").path / "exp_avg.safetensors"
    data = file.read_bytes()

    file.write_bytes(data[:-1])
    with pytest.raises(DamagedFile, match=r"exp_avg\.safetensors: has"):
        State(tmp_path / "s")
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    State(tmp_path / "s")  # a quick check does not read the tensors
    with pytest.raises(DamagedFile, match=r"exp_avg\.safetensors: does not match its checksum"):
        State(tmp_path / "s", checksums=True)
    file.unlink()
    with pytest.raises(DamagedFile, match=r"exp_avg\.safetensors: is missing"):
        State(tmp_path / "s")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 16, (8).to_bytes(8, "little") + b"not json", (2).to_bytes(8, "little") + b"[]"]
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DamagedFile, match="x: "):
        SafetensorsFile.open(tmp_path / "x")


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with new_folder(tmp_path / "data", {"kind": "data", "format": 1}):
        pass
    with pytest.raises(UserError, match="not a state"):
        State(tmp_path / "data")
    with pytest.raises(UserError, match="is not a folder"):
        State(tmp_path / "nowhere")
