"""Pickles generated from opcodes: at random, or in the way `torch.save` assembles objects."""

from __future__ import annotations

import pickletools
import struct

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.mutations import Draw, zipped

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
"""Names that a pickle asks for."""


def _argument(opcode: pickletools.OpcodeInfo) -> SearchStrategy[bytes]:
    """Bytes that can follow an opcode, mostly well formed."""
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


def random_opcodes(draw: Draw, _: bytes) -> bytes:
    """An archive whose pickle is an arbitrary sequence of opcodes with mostly well-formed arguments."""
    return _archive(draw(PICKLES))


def random_objects(draw: Draw, _: bytes) -> bytes:
    """An archive whose pickle nests tuples, lists, sets, calls, memo entries and tensors at random."""
    return _archive(draw(OBJECTS))


def _archive(pickled: bytes) -> bytes:
    return zipped({"x/data.pkl": pickled, "x/data/0": bytes(64), "x/data/1": bytes(64)})
