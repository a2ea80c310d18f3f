"""Every reader takes its valid file, and returns or refuses in one line whatever else it is given."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.fuzz.fuzzer import Findings, Worker, fuzz
from tests.fuzz.mutations import zipped
from tests.fuzz.targets import TARGETS

EXAMPLES = 40
_DEEP = b"[" * 100_000 + b"]" * 100_000
_LONG = b"9" * 5000
_MANY_KEYS = b"{" + b",".join(b'"key%d": 1' % number for number in range(60_000)) + b"}"


_BOMB = "".join(f"a{n}: &b{n} [{', '.join(['x' if n == 0 else f'*b{n - 1}'] * 9)}]\n" for n in range(10))


def _safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


FOUND: dict[str, tuple[str, bytes]] = {
    "a number of 5,000 digits": ("json", b'{"a": ' + _LONG + b"}"),
    "a number of 5,000 digits in a ds_config": ("ds_config", b'{"train_batch_size": ' + _LONG + b"}"),
    "a number of 5,000 digits in a text": ("json lines", b'{"text": "a", "id": ' + _LONG + b"}\n"),
    "a number of 5,000 digits in a BERT config": ("BERT config", b'{"vocab_size": ' + _LONG + b"}"),
    "aliases of aliases of aliases": ("recipe", f"{_BOMB}seed: *b9\nstages: []\n".encode()),
    "half a surrogate pair as a key": ("site", b'{"environment": {"\\ud800": "a"}}'),
    "a memo of 2^27 objects": ("checkpoint", zipped({"archive/data.pkl": b"\x80\x05Nr\xff\xff\xff\x07."})),
    "60,000 keys in a ds_config": ("ds_config", _MANY_KEYS),
    "a header nested too deeply": ("safetensors", _safetensors(_DEEP)),
    "offsets that are no pair": (
        "safetensors",
        _safetensors(b'{"a": {"dtype": "F32", "shape": [], "data_offsets": []}}') + bytes(4),
    ),
    "offsets that are a text": (
        "safetensors",
        _safetensors(b'{"a": {"dtype": "F32", "shape": [], "data_offsets": ""}}') + bytes(4),
    ),
    "metrics nested too deeply": ("metrics", b'{"kind": ' + _DEEP + b"}\n"),
    "events nested too deeply": ("journal", b'{"event": ' + _DEEP + b"}\n"),
    "an array whose header does not end": ("data shard", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<i8', ('shape': (9,"),
}
"""Files that once led to a traceback, a hang or to memory without bounds."""


def _complaint(findings: Findings) -> str:
    return "\n".join(f"{fault} ({len(content):,} bytes)" for fault, content in findings.faults.items())


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files_are_read_or_refused(target: str, tmp_path: Path) -> None:
    findings = fuzz(target, tmp_path, of_seed=0, go_on=lambda examples: examples < EXAMPLES)
    assert findings.counts.total() == EXAMPLES
    assert not findings.faults, _complaint(findings)


@pytest.mark.parametrize("name", FOUND)
def test_what_fuzzing_found_is_refused(name: str, tmp_path: Path) -> None:
    target, content = FOUND[name]
    with Worker(target, tmp_path) as worker:
        outcome, message = worker.read(content)
    assert outcome in ("ok", "refused"), f"{outcome}: {message}"
