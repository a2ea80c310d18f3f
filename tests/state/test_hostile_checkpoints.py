"""Checkpoints made to harm their reader: nothing runs, nothing leaks, nothing hangs; one line gives the reason."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import functools
import os
import pickle
import re
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stacking.errors import DamagedFile, UserError
from stacking.state.consolidate import consolidate
from stacking.state.zero import ZeroCheckpoint
from stacking.storage.torch_file import StoredTensor, read_torch_file

torch = pytest.importorskip("torch")
from tests.state.checkpoints import shard_file, write_checkpoint  # noqa: E402

MODEL = "mp_rank_00_model_states.pt"


def rewrite(file: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Rewrite the records of a torch.save archive."""
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in change(records).items():
            archive.writestr(name, data)


def add_client_state(file: Path, value: bytes) -> None:
    """Add the pickled ``value`` under its own key to the dict in the file."""

    def change(records: dict[str, bytes]) -> dict[str, bytes]:
        return {
            name: data[:-1] + b"X\x06\x00\x00\x00client" + value + b"s." if name.endswith("/data.pkl") else data
            for name, data in records.items()
        }

    rewrite(file, change)


NESTED = b")" + b"\x85" * 1_000_000
"""A tuple in a tuple, a million deep."""
DOUBLED = b")" + b"2\x86" * 60
"""A tuple of the same tuple twice, sixty times over: 2 ** 60 leaves in 121 bytes."""


class Options:
    """A class of the user's own."""


ORDINARY = {
    "a Counter": b"ccollections\nCounter\n}K\x0aK\x01s\x85R",
    "a class of the user's own": b"cmytrainer.options\nOptions\n)\x81}X\x01\x00\x00\x00aK\x01sb",
    "a set": b"\x8f(K\x01K\x02\x90",
    "an old set": b"c__builtin__\nset\n]K\x01a\x85R",
    "a frozenset": b"(K\x01\x91",
    "a defaultdict": b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R",
    "a device": b"ctorch\ndevice\nX\x03\x00\x00\x00cpu\x85R",
    "a timedelta": b"cdatetime\ntimedelta\nK\x01K\x00K\x00\x87R",
    "a path of Python 3.13": b"cpathlib._local\nPosixPath\nX\x01\x00\x00\x00a\x85R",
    "a numpy scalar": b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8\x85RC\x01\x00\x86R",
    "a Namespace": b"cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00aK\x01sb",
    "an OmegaConf dict": b"comegaconf.dictconfig\nDictConfig\n)\x81}X\x02\x00\x00\x00_c\x8fsb",
    "a bytearray": b"\x96\x02\x00\x00\x00\x00\x00\x00\x00ab",
    "a tuple as a key": b"}K\x01K\x02\x86K\x03s",
    "nested tuples as a key": b"}" + b"K\x01K\x02\x86\x85" + b"K\x03s",
    "a million nested tuples as a key": b"}" + NESTED + b"K\x03s",
    "sixty doublings as a key": b"}" + DOUBLED + b"K\x03s",
    "sixty doublings in a set": b"\x8f(" + DOUBLED + b"\x90",
    "sixty doublings as an attribute's name": b"c__builtin__\ngetattr\ncmytrainer\nOptions\n" + DOUBLED + b"\x86R",
    "a memo index of 2 ** 31 - 1": b"Nr\xff\xff\xff\x7f",
    "a method of the user's own class": b"c__builtin__\ngetattr\ncmytrainer\nOptions\nX\x04\x00\x00\x00load\x86R)R",
}


@pytest.mark.parametrize("value", ORDINARY.values(), ids=ORDINARY)
def test_other_data_of_a_training_script_is_left_out(tmp_path: Path, value: bytes) -> None:
    folder = write_checkpoint(tmp_path / "c")
    expected = consolidate(folder, tmp_path / "expected").digest

    add_client_state(folder / MODEL, value)

    assert consolidate(folder, tmp_path / "state").digest == expected


def test_real_objects_next_to_the_weights_are_left_out(tmp_path: Path) -> None:
    """As written by the pickle of this Python and the installed torch and numpy."""
    client = {
        "counter": collections.Counter("aab"),
        "defaultdict": collections.defaultdict(list, {1: [2]}),
        "deque": collections.deque([1, 2]),
        "set": {1, (2, 3)},
        "frozenset": frozenset({1}),
        "range": range(3),
        "slice": slice(1, 2),
        "complex": 1j,
        "bytes": b"x" * 300,
        "bytearray": bytearray(b"x"),
        "big": 10**100,
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "sparse": torch.eye(3).to_sparse(),
        "complex tensor": torch.zeros(2, dtype=torch.complex64),
        "float8": torch.zeros(2).to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(torch.zeros(2)),
        "linear": torch.nn.Linear(2, 2),
        "timedelta": datetime.timedelta(1),
        "datetime": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        "decimal": decimal.Decimal("1.5"),
        "fraction": fractions.Fraction(1, 3),
        "uuid": uuid.UUID(int=1),
        "pattern": re.compile("x"),
        "path": Path("x"),
        "namespace": argparse.Namespace(lr=1, nested=argparse.Namespace(a=[Options()])),
        "options": Options(),
        "class": Options,
        "function": os.path.join,
        "partial": functools.partial(max, 1),
        "scalar": np.float64(1.5),
        "array": np.arange(6).reshape(2, 3),
        "objects": np.array([Options(), None]),
        "keys": {(1, (2, 3)): 1, None: 2, 1.5: 3, b"x": 4, frozenset({1}): 5, Path("x"): 6},
        "random": (np.random.default_rng(0).bit_generator.state, torch.get_rng_state()),
    }
    folder = write_checkpoint(tmp_path / "c")
    expected = consolidate(folder, tmp_path / "expected").digest
    for name in (MODEL, shard_file(folder, 1).name):
        for protocol in (2, 4):
            content = torch.load(folder / name, weights_only=False)
            torch.save({**content, **client, "client": client}, folder / name, pickle_protocol=protocol)
            assert consolidate(folder, tmp_path / "state").digest == expected


@pytest.mark.parametrize(
    "name",
    [
        "posix system",
        "os popen",
        "builtins eval",
        "builtins exec",
        "subprocess Popen",
        "pathlib Path.unlink",
        "shutil rmtree",
    ],
)
def test_names_that_run_code_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    module, function = name.split(" ")

    add_client_state(folder / MODEL, f"c{module}\n{function}\nX".encode() + b"\x04\x00\x00\x00true\x85R")

    with pytest.raises(UserError, match=rf"{MODEL}: mentions {module}\.{function}, which no checkpoint needs"):
        ZeroCheckpoint(folder)


MALFORMED = {
    "a byte array of 16 GiB": b"\x96" + (1 << 34).to_bytes(8, "little"),
    "bytes of 2 ** 63": b"\x8e" + (1 << 63).to_bytes(8, "little"),
    "a text of 4 GiB": b"X\xff\xff\xff\xff",
    "a number of 4 GiB": b"\x8b\xff\xff\xff\x7f",
    "an unknown memo index": b"j\xff\xff\xff\x7f",
    "marks without end": b"(" * 100,
    "a pop of nothing": b"0" * 10,
    "a call of nothing": b"R",
    "no such opcode": b"\xff",
    "a decimal of 5,000 digits": b"I" + b"9" * 5_000 + b"\n",
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_malformed_pickles_are_reported_as_torn_files(tmp_path: Path, value: bytes) -> None:
    folder = write_checkpoint(tmp_path / "c")

    add_client_state(folder / MODEL, value)

    with pytest.raises(DamagedFile, match=rf"{MODEL}: is torn"):
        ZeroCheckpoint(folder)


def test_a_pickle_of_too_many_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stacking.storage.pickled.MOST_OPCODES", 1_000)
    folder = write_checkpoint(tmp_path / "c")

    add_client_state(folder / MODEL, b"]" * 2_000)

    with pytest.raises(DamagedFile, match=r"more than 1,000 parts"):
        ZeroCheckpoint(folder)


class Rebuilt:
    """Pickled as a tensor to which BUILD gives attributes of the attacker's choice."""

    def __init__(self, tensor: Any, attributes: dict[str, Any]) -> None:
        self.reduced = (*torch.Tensor.__reduce_ex__(tensor, 2)[:2], attributes)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("attributes", ["path", "fill", "setstate"])
def test_build_changes_nothing_about_a_tensor(tmp_path: Path, attributes: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x42" * 4096)
    chosen = {
        "path": {"path": str(secret), "offset": 0},
        "fill": {"fill": Options, "numel": 1 << 60},
        "setstate": {"__setstate__": Options, "__class__": Options, "__dict__": {}},
    }[attributes]
    expected = consolidate(folder, tmp_path / "expected").digest
    content = torch.load(folder / MODEL, weights_only=False)
    seen = content["module"]["seen"]
    content["module"]["seen"] = Rebuilt(seen, chosen)
    torch.save(content, folder / MODEL)

    assert consolidate(folder, tmp_path / "state").digest == expected
    found = read_torch_file(folder / MODEL)["module"]["seen"]
    assert isinstance(found, StoredTensor) and found.path == folder / MODEL
    with pytest.raises(AttributeError):
        found.path = secret
    assert not hasattr(found, "__dict__") and not hasattr(found, "__setstate__")


class Call:
    """Pickled as a call with arguments of the attacker's choice."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def rebuilt(offset: Any, size: Any, stride: Any) -> Call:
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.arange(10.0).untyped_storage(), dtype=torch.float32, _internal=True
    )
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


TENSORS: dict[str, tuple[Any, Any, Any]] = {
    "behind its storage": (5, (6,), (1,)),
    "before its storage": (-1, (2,), (1,)),
    "larger than its storage": (0, (1 << 40,), (1,)),
    "larger by no stride": (0, (1 << 40,), (0,)),
    "strided out of it": (0, (2, 2), (20, 1)),
    "of a negative shape": (0, (-2, -5), (1, 1)),
    "of a fractional offset": (0.5, (2,), (1,)),
    "of too many axes": (0, (1,) * 100, (1,) * 100),
    "of a huge number": (0, (1 << 40_000,), (1,)),
    "without a shape": (0, None, (1,)),
}


@pytest.mark.parametrize("where", TENSORS)
def test_tensors_must_fit_in_their_own_storage(tmp_path: Path, where: str) -> None:
    torch.save({"x": rebuilt(*TENSORS[where])}, tmp_path / "x.pt")

    with pytest.raises(DamagedFile, match=r"x\.pt: is torn"):
        read_torch_file(tmp_path / "x.pt")


def _directory_entry(data: bytes, name: bytes) -> int:
    """The start of a record's entry in the central directory."""
    return data.rindex(b"PK\x01\x02", 0, data.rindex(name))


@pytest.mark.parametrize("field", ["size", "place", "name"])
def test_records_must_be_within_their_own_archive(tmp_path: Path, field: str) -> None:
    file = tmp_path / "x.pt"
    torch.save({"x": torch.arange(10.0), "y": torch.arange(20.0)}, file)
    data = bytearray(file.read_bytes())
    entry = _directory_entry(bytes(data), b"x/data/1")
    if field == "size":
        data[entry + 20 : entry + 28] = (1 << 30).to_bytes(4, "little") * 2
    elif field == "place":
        data[entry + 42 : entry + 46] = (0).to_bytes(4, "little")
    else:
        data[entry + 46 + 7 : entry + 46 + 8] = b"0"
    file.write_bytes(data)

    with pytest.raises(DamagedFile, match=r"x\.pt: is torn"):
        read_torch_file(file)


STRUCTURES: dict[str, tuple[str, Any]] = {
    "names that are tuples": ("buffer_names", [((1, 2), 3)]),
    "a module that is a list": ("module", []),
    "shapes of text": ("param_shapes", [{"a": "b"}]),
    "shapes without end": ("param_shapes", [{"a": (1 << 47,) * 65}]),
    "shapes below zero": ("param_shapes", [{"a": (-1,)}]),
    "an object as optimizer": ("optimizer", [1]),
    "fewer groups": ("param_shapes", []),
    "more groups": ("param_shapes", [{"a": (1,)}] * 5),
    "an object as a buffer": ("module", {"seen": Path("x")}),
}


@pytest.mark.parametrize("what", STRUCTURES)
def test_a_model_file_of_another_structure_is_refused(tmp_path: Path, what: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    key, value = STRUCTURES[what]
    torch.save({**torch.load(folder / MODEL, weights_only=False), key: value}, folder / MODEL)

    with pytest.raises(UserError) as error:
        consolidate(folder, tmp_path / "state")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1_000


SHARDS: dict[str, tuple[str, Any]] = {
    "a stage of 5,000 digits": ("zero_stage", 10**5_000),
    "a stage that is a text": ("zero_stage", "two"),
    "ranks without end": ("partition_count", 10**30),
    "ranks that are tuples": ("partition_count", [((1,),), ((2,),)]),
    "no masters": ("single_partition_of_fp32_groups", []),
    "objects as masters": ("single_partition_of_fp32_groups", [Path("x"), Path("y")]),
    "no Adam": ("base_optimizer_state", {"state": {}, "param_groups": 3}),
    "paddings below zero": ("param_alignment_paddings", [[-5, -5], [-5]]),
    "a step of 10 ** 30": (
        "base_optimizer_state",
        {"state": {i: {"step": 10**30} for i in (0, 1)}, "param_groups": [{"params": [0]}, {"params": [1]}]},
    ),
}


@pytest.mark.parametrize("what", SHARDS)
def test_an_optimizer_file_of_another_structure_is_refused(tmp_path: Path, what: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    key, value = SHARDS[what]
    for rank in range(2):
        content = torch.load(shard_file(folder, rank), weights_only=False)
        content["optimizer_state_dict"][key] = value
        torch.save(content, shard_file(folder, rank))

    with pytest.raises(UserError) as error:
        consolidate(folder, tmp_path / "state")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1_000


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("name", [MODEL, "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, name: str) -> None:
    folder = write_checkpoint(tmp_path / "c")
    file = folder / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")

    with pytest.raises(DamagedFile, match=rf"{name}: is not a file"):
        consolidate(folder, tmp_path / "state")


def test_a_manifest_that_omits_a_shard_is_named(tmp_path: Path) -> None:
    from stacking.storage.files import read_json, seal_folder, write_sealed

    folder = write_checkpoint(tmp_path / "c")
    seal_folder(folder, {})
    manifest = read_json(folder / "manifest.json")
    del manifest["files"][shard_file(folder, 1).name]
    write_sealed(folder / "manifest.json", manifest)

    with pytest.raises(DamagedFile, match=rf"manifest\.json: does not list {shard_file(folder, 1).name}"):
        consolidate(folder, tmp_path / "state")


def test_tensors_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    tensors = {
        "transposed": torch.arange(12.0).view(3, 4).T,
        "sliced": torch.arange(30.0).view(5, 6)[1:4:2, 2:],
        "half": torch.arange(6.0).half().view(2, 3).T,
        "brain": torch.arange(6.0).bfloat16().view(2, 3).T,
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
    }
    for legacy in (False, True):
        torch.save(tensors, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
        found = read_torch_file(tmp_path / "x.pt")
        for name, tensor in tensors.items():
            read = torch.from_numpy(found[name].read()).view(found[name].shape)
            assert torch.equal(read, tensor.float()), (name, legacy)


def test_a_legacy_file_with_wrong_storage_sizes_is_reported_as_torn(tmp_path: Path) -> None:
    torch.save({"x": torch.arange(10.0)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "x.pt").read_bytes()
    sizes = data[: -10 * 4 - 8] + (1 << 60).to_bytes(8, "little") + data[-10 * 4 :]
    for content in (sizes, data[:-4], data[:40], pickle.dumps(1), b"hello", b""):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(DamagedFile, match=r"x\.pt: is torn"):
            read_torch_file(tmp_path / "x.pt")
