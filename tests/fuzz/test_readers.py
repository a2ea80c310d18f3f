"""Whatever bytes a file holds, a reader returns or raises a one-line error: no traceback, no hang, no memory beyond it.

The tests try a few examples of every target; ``python -m tests.fuzz.test_readers --seconds 300`` goes on for longer.
"""

from __future__ import annotations

import argparse
import io
import json
import pickletools
import random
import struct
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from stacking.config.reading import parse_yaml, read_json_mapping
from stacking.errors import UserError
from stacking.huggingface.importing import import_hugging_face
from stacking.huggingface.names import from_hugging_face, to_hugging_face
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.consolidate import consolidate
from stacking.state.format import State
from stacking.storage.files import MANIFEST, read_json, seal_folder
from stacking.storage.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec
from stacking.storage.torch_file import StoredTensor, read_torch_file
from tests.growth.test_apply import write
from tests.state.checkpoints import shard_file, write_checkpoint

EXAMPLES = 40
"""Of each target in the test suite."""
_MEMORY, _TIMES = 64 << 20, 300
"""A reader may need so many bytes, and so many times the size of its file."""

# What files are made of


NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30, -1, 10**4_299]),
    st.floats(),
    st.booleans(),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "..", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "\udc80", "x" * 300, "weights.safetensors"]),
)
LEAVES = st.one_of(st.none(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inside: st.one_of(st.lists(inside, max_size=4), st.dictionaries(TEXTS, inside, max_size=4)),
    max_leaves=12,
)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")


@st.composite
def altered(draw: Callable[[SearchStrategy[Any]], Any], original: bytes) -> bytes:
    """``original`` with bytes flipped, cut out, put in or repeated, in a few places."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(["replace", "remove", "insert", "repeat", "cut"]))
        if kind == "replace":
            data[start:end] = draw(st.binary(min_size=end - start, max_size=end - start))
        elif kind == "remove":
            del data[start:end]
        elif kind == "insert":
            data[start:start] = draw(st.binary(max_size=16))
        elif kind == "repeat":
            data[start:start] = data[start:end] * draw(st.integers(1, 50))
        else:
            del data[start:]
    return bytes(data)


@st.composite
def altered_value(draw: Callable[[SearchStrategy[Any]], Any], original: Any, values: SearchStrategy[Any]) -> Any:
    """``original``, a tree of dicts and lists, with something else in one or two places."""
    value = original
    for _ in range(draw(st.integers(1, 2))):
        value = _replaced(draw, value, values)
    return value


def _replaced(draw: Callable[[SearchStrategy[Any]], Any], value: Any, values: SearchStrategy[Any]) -> Any:
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value, key=str)))
        if draw(st.integers(0, 5)) == 0:
            return {name: inside for name, inside in value.items() if name != key}
        return {**value, key: _replaced(draw, value[key], values)}
    if isinstance(value, list) and value and draw(st.booleans()):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], _replaced(draw, value[index], values), *value[index + 1 :]]
    return draw(values)


# Pickles


def _argument(opcode: pickletools.OpcodeInfo) -> SearchStrategy[bytes]:
    """Bytes that can follow an opcode, mostly of the right form."""
    name = opcode.arg.name if opcode.arg is not None else ""
    small = st.integers(0, 9)
    fixed = {"uint1": "<B", "uint2": "<H", "int4": "<i", "uint4": "<I", "uint8": "<Q"}
    if name in fixed:
        size = struct.calcsize(fixed[name])
        return st.one_of(small.map(lambda n: n.to_bytes(size, "little")), st.binary(min_size=size, max_size=size))
    if name in ("string1", "bytes1", "unicodestring1", "long1"):
        return st.binary(max_size=9).map(lambda data: bytes([len(data)]) + data)
    if name in ("string4", "bytes4", "unicodestring4", "long4"):
        return st.binary(max_size=9).map(lambda data: len(data).to_bytes(4, "little") + data)
    if name in ("bytes8", "bytearray8", "unicodestring8"):
        return st.binary(max_size=9).map(lambda data: len(data).to_bytes(8, "little") + data)
    if name == "stringnl_noescape_pair":
        return st.sampled_from(CLASSES)
    if name == "float8":
        return st.binary(min_size=8, max_size=8)
    return st.sampled_from([b"1\n", b"-5L\n", b"'a'\n", b"0.5\n", b"x\n"]) if name else st.just(b"")


CLASSES = [
    b"collections\nOrderedDict\n",
    b"collections\nCounter\n",
    b"torch\nFloatStorage\n",
    b"torch\nSize\n",
    b"torch._utils\n_rebuild_tensor_v2\n",
    b"torch._utils\n_rebuild_parameter\n",
    b"torch._tensor\n_rebuild_from_type_v2\n",
    b"deepspeed.runtime.zero.config\nZeroStageEnum\n",
    b"__builtin__\ngetattr\n",
    b"mytrainer\nOptions\n",
    b"os\nsystem\n",
]


def _with_argument(opcode: pickletools.OpcodeInfo) -> SearchStrategy[bytes]:
    code = opcode.code.encode("latin1")
    return _argument(opcode).map(lambda data: code + data)


OPCODES = st.one_of(*map(_with_argument, pickletools.opcodes))
PICKLES = st.lists(OPCODES, max_size=60).map(lambda codes: b"\x80\x02" + b"".join(codes) + b".")


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _together(before: bytes, items: SearchStrategy[bytes], after: bytes, most: int = 4) -> SearchStrategy[bytes]:
    return st.lists(items, max_size=most).map(lambda parts: before + b"".join(parts) + after)


INTEGERS = st.one_of(st.integers(0, 20), st.sampled_from([-1, 2**31 - 1]))
WHOLE = INTEGERS.map(lambda number: b"J" + number.to_bytes(4, "little", signed=True))
CONSTANTS = st.sampled_from([b"N", b"\x88", b")", b"]", b"}", b"\x8f", _text("a"), b"G\x7f\xf0" + bytes(6)])
STORAGES = st.builds(
    lambda kind, key, count: b"(" + _text("storage") + kind + _text(key) + _text("cpu") + count + b"tQ",
    st.sampled_from([b"ctorch\nFloatStorage\n", b"ctorch\nHalfStorage\n", b"ctorch\nComplexFloatStorage\n", b"N"]),
    st.sampled_from(["0", "1", "2"]),
    WHOLE,
)
AXES = _together(b"(", WHOLE, b"t")
REBUILT = st.tuples(STORAGES, WHOLE, AXES, AXES).map(
    lambda arguments: b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"".join(arguments) + b"\x89}tR"
)
OBJECTS = st.recursive(
    st.one_of(WHOLE, CONSTANTS, STORAGES, REBUILT),
    lambda inside: st.one_of(
        _together(b"(", inside, b"t"),
        _together(b"](", inside, b"e"),
        _together(b"\x8f(", inside, b"\x90"),
        _together(b"", inside, b"\x86", most=2),
        st.builds(lambda key, value: b"}" + key + value + b"s", inside, inside),
        st.builds(lambda name, arguments: b"c" + name + arguments + b"\x85R", st.sampled_from(CLASSES), inside),
        st.builds(lambda name, a, b: b"c" + name + a + b + b"\x86R", st.sampled_from(CLASSES), inside, inside),
        st.builds(lambda value, state: value + state + b"b", inside, inside),
        st.builds(lambda value, index: value + b"q" + bytes([index]), inside, st.integers(0, 3)),
        st.builds(lambda value, index: value + b"h" + bytes([index]) + b"\x86", inside, st.integers(0, 3)),
        st.builds(lambda value, count: value + b"2\x86" * count, inside, st.integers(1, 60)),
    ),
    max_leaves=15,
).map(lambda code: b"\x80\x02" + code + b".")


def archive(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr("x/data.pkl", pickled)
        file.writestr("x/data/0", bytes(64))
        file.writestr("x/data/1", bytes(64))
    return buffer.getvalue()


def saved(value: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": [torch.ones(2).half()], "c": {"d": torch.zeros(0)}, "e": 1}

# Readers


def read_every_tensor(path: Path) -> None:
    """Read a file of torch.save, and every tensor that is said to be in it."""
    left = [read_torch_file(path)]
    while left:
        value = left.pop()
        if isinstance(value, StoredTensor):
            value.read()
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value


def read_safetensors(path: Path) -> None:
    file = SafetensorsFile.open(path)
    for name in file.specs:
        file.read(name)


def read_checkpoint(path: Path) -> None:
    """Consolidate a checkpoint whose model file this is."""
    folder = path.parent / "checkpoint"
    if not folder.exists():
        write_checkpoint(folder)
    (folder / "mp_rank_00_model_states.pt").write_bytes(path.read_bytes())
    consolidate(folder, path.parent / "state")


def read_shard(path: Path) -> None:
    """Consolidate a checkpoint of which this is a rank's optimizer file."""
    folder = path.parent / "shards"
    if not folder.exists():
        write_checkpoint(folder)
    shard_file(folder, 0).write_bytes(path.read_bytes())
    consolidate(folder, path.parent / "state")


def read_manifest(path: Path) -> None:
    """Open a state whose manifest this is, and read it."""
    folder = path.parent / "state-folder"
    if not folder.exists():
        write(folder)
    (folder / MANIFEST).write_bytes(path.read_bytes())
    state = State(folder)
    for name in state.names[:50]:
        state.read("weights", name)


def read_progress(path: Path) -> None:
    """Consolidate a sealed checkpoint whose ``progress.json`` this is."""
    folder = path.parent / "sealed"
    if not folder.exists():
        write_checkpoint(folder)
    (folder / "progress.json").write_bytes(path.read_bytes())
    seal_folder(folder, {})
    consolidate(folder, path.parent / "state")


def read_model(path: Path) -> None:
    """Import a Hugging Face folder whose weights these are."""
    folder = path.parent / "hugging-face"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_hugging_face(MODEL)))
    (folder / "pytorch_model.bin").write_bytes(path.read_bytes())
    import_hugging_face(folder, path.parent / "imported")


MODEL = ModelConfig(layers=1, hidden=2, heads=1, intermediate=3, vocabulary=5, max_positions=4)


def _original(make: Callable[[Path], Path]) -> bytes:
    """The bytes of a file that ``make`` writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder)).read_bytes()


def _write_safetensors(folder: Path) -> Path:
    specs = {"a": TensorSpec("float32", (2, 3)), "b": TensorSpec("int64", (0,)), "c": TensorSpec("uint8", ())}
    with SafetensorsWriter(folder / "x", specs):
        pass
    return folder / "x"


def _write_manifest(folder: Path) -> Path:
    return write(folder / "state").path / MANIFEST


HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "U8", "shape": [8], "data_offsets": [24, 32]},
}
FILE = struct.pack("<Q", len(as_json(HEADER))) + as_json(HEADER) + bytes(32)
MODEL_FILE = {
    "module": {"a": torch.zeros(5), "seen": torch.ones(2)},
    "buffer_names": ["seen"],
    "optimizer": None,
    "param_shapes": [{"tokens.weight": torch.Size((5, 3)), "layers.0.up.weight": torch.Size((4, 3))}, {"c": (4,)}],
    "frozen_param_shapes": {},
}
PICKLED_VALUES = st.one_of(VALUES, st.tuples(VALUES, NUMBERS), st.just(torch.ones(3)), st.just({1, 2}))
YAML_WORDS = ["\n  ", "&a ", "*a", "<<: *a", ": ", "- ", "a", "1e3", "12:30", "!!int ", "~"]
YAML = st.lists(st.sampled_from([*"[]{},:-?!&*#|>%@'\"\n \t", *YAML_WORDS]), max_size=60).map("".join)
REPEATED = st.sampled_from([b"[", b'{"a":', b"9", b'"', b"-"])
JSON_TEXT = st.one_of(
    VALUES.map(as_json),
    st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")),
    st.builds(lambda count, text: text * count, st.integers(1, 30_000), REPEATED),
)
STATE_MANIFEST = _original(_write_manifest)

Target = tuple[SearchStrategy[bytes], Callable[[Path], Any]]
TARGETS: dict[str, Target] = {
    "safetensors": (altered(FILE), read_safetensors),
    "safetensors header": (
        altered_value(HEADER, VALUES).map(as_json).map(lambda h: struct.pack("<Q", len(h)) + h + bytes(32)),
        read_safetensors,
    ),
    "torch archive": (altered(saved(TENSORS)), read_every_tensor),
    "torch file before 1.6": (altered(saved(TENSORS, legacy=True)), read_every_tensor),
    "pickle": (PICKLES.map(archive), read_every_tensor),
    "pickled objects": (OBJECTS.map(archive), read_every_tensor),
    "altered pickle": (
        altered(zipfile.ZipFile(io.BytesIO(saved(TENSORS))).read("archive/data.pkl")).map(archive),
        read_every_tensor,
    ),
    "model file of ZeRO": (altered_value(MODEL_FILE, PICKLED_VALUES).map(saved), read_checkpoint),
    "optimizer file of ZeRO": (
        altered_value(
            torch.load(
                io.BytesIO(_original(lambda folder: shard_file(write_checkpoint(folder / "c"), 0))), weights_only=False
            ),
            PICKLED_VALUES,
        ).map(saved),
        read_shard,
    ),
    "progress": (altered_value({"model": MODEL.model_dump(), "step": 3}, VALUES).map(as_json), read_progress),
    "manifest": (altered(STATE_MANIFEST), read_manifest),
    "manifest values": (altered_value(json.loads(STATE_MANIFEST), VALUES).map(as_json), read_manifest),
    "weights to import": (
        altered_value({name: torch.zeros(2) for name in list(parameter_shapes(MODEL))[:3]}, PICKLED_VALUES).map(saved),
        read_model,
    ),
    "safetensors to import": (altered(FILE), read_model),
    "config.json": (
        altered_value(to_hugging_face(MODEL), VALUES).map(as_json),
        lambda path: from_hugging_face(read_json(path), path),
    ),
    "JSON": (JSON_TEXT, read_json),
    "JSON by hand": (JSON_TEXT, read_json_mapping),
    "YAML": (YAML.map(str.encode), lambda path: parse_yaml(path.read_text(), str(path))),
}
"""Of each kind of file, how it is made up, and what reads it."""


def fuzz(target: str, folder: Path, examples: int, number: int = 0) -> None:
    """Try ``examples`` files of a target, the same ones for the same ``number``."""
    strategy, read = TARGETS[target]

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=10_000,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(strategy)
    def try_one(data: bytes) -> None:
        path = folder / "file"
        path.write_bytes(data)
        tracemalloc.start()
        try:
            read(path)
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 2_500
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < _MEMORY + _TIMES * len(data), f"{peak:,} bytes for a file of {len(data):,}"

    try_one()


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_a_file_holds_its_reader_returns_or_says_why_not(target: str, tmp_path: Path) -> None:
    fuzz(target, tmp_path, EXAMPLES)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the readers of files for a given time.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=TARGETS)
    given_ = parser.parse_args()
    end, tried = time.monotonic() + given_.seconds, 0
    for number, target in enumerate(cycle(given_.targets)):
        if time.monotonic() > end:
            break
        with tempfile.TemporaryDirectory() as folder:
            fuzz(target, Path(folder), examples=100, number=given_.seed + number)
        tried += 100
    print(f"seed {given_.seed}: {tried:,} files of {len(given_.targets)} kinds, no finding")


if __name__ == "__main__":
    main()
