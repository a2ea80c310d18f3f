"""Format-aware mutations: their results are mostly well formed, and wrong in one or a few places."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import xxhash
from hypothesis import strategies as st

from stacking.storage.seal import sealed

Draw = Callable[[st.SearchStrategy[Any]], Any]
Mutation = Callable[[Draw, bytes], bytes]

_DEEP, _LONG = "\x01deep\x01", "\x01long\x01"
"""Stand for values that no JSON encoder writes."""
_RAW = {_DEEP: "[" * 100_000 + "]" * 100_000, _LONG: "9" * 5000}
ODD_VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.0, -0.5, 1e308, float("nan"), float("inf")]),
    st.sampled_from(["", "0", "a b", "../../x", "/dev/zero", "\x00", "\ud800", "é" * 300, "x" * 100_000, _DEEP, _LONG]),
    st.sampled_from([[], {}, [[]], {"": {}}, [None], list(range(1000)), {str(n): n for n in range(30_000)}]),
    st.integers(),
    st.text(max_size=8),
)
_BLOCKS = st.sampled_from(
    [b"", b"\x00", b"\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\x00" * 64, b"{", b"]", b'"', b"\x1f\x8b", b"PK\x03\x04"]
)


def bytes_anywhere(draw: Draw, valid: bytes) -> bytes:
    """A few bits flipped, blocks inserted, dropped, duplicated or overwritten, more often at the ends."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        size = len(content)
        near_end = draw(st.booleans())
        at = draw(st.integers(max(0, size - 600) if near_end else 0, size))
        match draw(st.sampled_from(["flip", "insert", "drop", "double", "number", "cut"])):
            case "flip" if at < size:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                content[at:at] = draw(_BLOCKS | st.binary(max_size=8))
            case "drop":
                del content[at : at + draw(st.integers(1, 64))]
            case "double":
                content[at:at] = content[at : at + draw(st.integers(1, 256))]
            case "number":
                number = draw(st.sampled_from([0, 1, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]))
                content[at : at + 8] = struct.pack("<Q", number)[: draw(st.sampled_from([1, 4, 8]))]
            case "cut":
                del content[at:]
    return bytes(content)


def json_values(draw: Draw, valid: bytes) -> bytes:
    """One or two values of a JSON document replaced, dropped or renamed; rarely its bytes."""
    if draw(st.integers(0, 5)) == 0:
        return bytes_anywhere(draw, valid)
    return _encoded(_mutated(draw, json.loads(valid)))


def sealed_values(draw: Draw, valid: bytes) -> bytes:
    """As `json_values`, with a valid seal: what somebody might forge on purpose."""
    return _sealed(json_values(draw, valid))


def _sealed(content: bytes) -> bytes:
    try:
        return _encoded(sealed(json.loads(content)))
    except (ValueError, AttributeError, RecursionError):
        return content


def sealed_lines(draw: Draw, valid: bytes) -> bytes:
    """As `json_lines`, each line with a valid seal."""
    return b"".join(_sealed(line) + b"\n" for line in json_lines(draw, valid).splitlines())


def checked_lines(draw: Draw, valid: bytes) -> bytes:
    """As `json_lines`, each line with a valid checksum, as in metrics."""
    bare = re.sub(rb', "check": "[0-9a-f]+"', b"", valid)
    return b"".join(checked(line) + b"\n" for line in json_lines(draw, bare).splitlines())


def checked(line: bytes) -> bytes:
    """A line of metrics with its checksum."""
    return line[:-1] + b', "check": "%s"}' % xxhash.xxh3_64_hexdigest(line).encode()


def json_lines(draw: Draw, valid: bytes) -> bytes:
    """One line mutated as JSON, duplicated, dropped or torn."""
    lines = valid.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    match draw(st.sampled_from(["value", "value", "bytes", "drop", "double", "torn"])):
        case "value":
            lines[at] = _encoded(_mutated(draw, json.loads(lines[at]))) + b"\n"
        case "bytes":
            lines[at] = bytes_anywhere(draw, lines[at])
        case "drop":
            del lines[at]
        case "double":
            lines.insert(at, lines[at])
        case "torn":
            lines[-1] = lines[-1][: draw(st.integers(0, len(lines[-1])))]
    return b"".join(lines)


_BOMB = "a: &b0 [x]\n" + "".join(f"a{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 10))
"""Nine aliases of nine aliases of …: some lines of text, 3 × 10^8 values."""
_YAML_TRICKS = st.sampled_from(
    [
        *[f"{_BOMB}{key}: *b9\n" for key in ("name", "start", "seed", "ds_config", "model", "growth", "log_every")],
        "start: &loop [*loop]\n",
        "ds_config: &loop {a: *loop}\n",
        "evaluation: &loop {samples: *loop}\n",
        "loop: &loop [*loop]\n",
        "loop: &loop {inner: *loop}\n",
        "<<: &m {<<: *m}\n",
        "name: !!python/object/apply:os.system ['true']\n",
        "? [a, b]\n: c\n",
        "seed: 1_000_000:60:60\n",
        "seed: !!int 0b" + "1" * 9000 + "\n",
        "\tseed: 1\n",
        "seed: " + "[" * 2000 + "\n",
        "seed: 2020-13-45\n",
        "--- \n---\n",
        "%YAML 9.9\n---\n",
        "name: |\n  " + "x" * 100_000 + "\n",
        "name: \x07\n",
    ]
)


def yaml_text(draw: Draw, valid: bytes) -> bytes:
    """A recipe as JSON, which is valid YAML, with a value mutated; or its text with one of YAML's special features."""
    match draw(st.sampled_from(["value", "value", "trick", "bytes"])):
        case "value":
            import yaml

            return _encoded(_mutated(draw, yaml.safe_load(valid)))
        case "trick":
            lines = valid.splitlines(keepends=True)
            lines.insert(draw(st.integers(0, len(lines))), draw(_YAML_TRICKS).encode())
            return b"".join(lines)
    return bytes_anywhere(draw, valid)


def safetensors_header(draw: Draw, valid: bytes) -> bytes:
    """The header mutated as JSON with its right length, or with a wrong one; or any bytes."""
    length = int.from_bytes(valid[:8], "little")
    header, tensors = valid[8 : 8 + length], valid[8 + length :]
    match draw(st.sampled_from(["header", "header", "length", "bytes", "cut"])):
        case "header":
            changed = _encoded(_mutated(draw, json.loads(header)))
            return struct.pack("<Q", len(changed)) + changed + tensors
        case "length":
            wrong = draw(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, length - 1, length + 1, 2**63, 10**8]))
            return struct.pack("<Q", wrong) + header + tensors
        case "cut":
            return valid[: draw(st.integers(0, len(valid)))]
    return bytes_anywhere(draw, valid)


_OPCODES = st.sampled_from(
    [
        b"(",
        b"0",
        b"1",
        b"2",
        b"N",
        b"a",
        b"b",
        b"d",
        b"e",
        b"l",
        b"o",
        b"p0\n",
        b"R",
        b"s",
        b"t",
        b"u",
        b"}",
        b"]",
        b")",
        b"Q",
        b"\x81",
        b"\x85",
        b"\x86",
        b"\x87",
        b"\x8f",
        b"\x90",
        b"\x91",
        b"\x92",
        b"\x93",
        b"\x94",
        b"\x97",
        b"K\x05",
        b"J\xff\xff\xff\x7f",
        b"r\xff\xff\xff\x07",
        b"h\x00",
        b"\x8a\xff" + b"\xff" * 255,
        b"\x8e" + b"\xff" * 7 + b"\x03",
        b"\x96" + b"\x00\x00\x00\x00\x04\x00\x00\x00",
        b"X\xff\xff\xff\x7f",
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"cbuiltins\ngetattr\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"cargparse\nNamespace\n",
        b"I" + b"9" * 5000 + b"\n",
        b"2" * 40 + b"t" * 40,
        b"(" * 1000,
        b")\x85" * 500,
    ]
)


def torch_file(draw: Draw, valid: bytes) -> bytes:
    """The pickle in the archive with opcodes inserted, dropped, duplicated or swapped; or the archive's own bytes."""
    if draw(st.integers(0, 3)) == 0:
        return bytes_anywhere(draw, valid)
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    opcodes = list(_opcodes(records[name]))
    for _ in range(draw(st.integers(1, 3))):
        at, other = draw(st.integers(0, len(opcodes) - 1)), draw(st.integers(0, len(opcodes) - 1))
        match draw(st.sampled_from(["insert", "drop", "double", "swap", "bytes"])):
            case "insert":
                opcodes.insert(at, draw(_OPCODES))
            case "drop" if len(opcodes) > 1:
                del opcodes[at]
            case "double":
                opcodes.insert(at, opcodes[other])
            case "swap":
                opcodes[at], opcodes[other] = opcodes[other], opcodes[at]
            case "bytes":
                opcodes[at] = bytes_anywhere(draw, opcodes[at])
    records[name] = b"".join(opcodes)
    if draw(st.integers(0, 5)) == 0:
        del records[draw(st.sampled_from(sorted(records)))]
    return zipped(records)


def saved_values(draw: Draw, valid: bytes) -> bytes:
    """A torch.save file with one or two of its values replaced, dropped or renamed."""
    import torch

    value = torch.load(io.BytesIO(valid), weights_only=False)
    buffer = io.BytesIO()
    odd = st.sampled_from(
        [torch.ones(3), torch.zeros(2, 2).half(), (1, 2), {1, 2}, torch.Size((5, 3)), {0: {"step": 1}}]
    )
    torch.save(_mutated(draw, value, ODD_VALUES | odd), buffer)
    return buffer.getvalue()


def _opcodes(pickled: bytes) -> Iterator[bytes]:
    """The pickle cut before each opcode."""
    starts = [position for _, _, position in pickletools.genops(pickled) if position is not None]
    for start, stop in zip(starts, [*starts[1:], len(pickled)], strict=True):
        yield pickled[start:stop]


def zipped(records: dict[str, bytes]) -> bytes:
    """An archive of uncompressed records, as written by torch.save."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _mutated(draw: Draw, value: Any, odd: st.SearchStrategy[Any] = ODD_VALUES) -> Any:
    """``value`` with one or two of its places changed."""
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(draw(odd))
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "replace", "drop", "rename", "swap"])):
            case "replace":
                holder[key] = copy.deepcopy(draw(odd))
            case "drop":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                name = draw(st.text(max_size=6) | st.sampled_from(sorted(holder, key=str)))
                holder[name] = holder.pop(key)
            case "swap":
                other, there = draw(st.sampled_from(places))
                holder[key] = copy.deepcopy(other[there])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in the tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def _encoded(value: Any) -> bytes:
    text = json.dumps(value)
    for name, raw in _RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode()
