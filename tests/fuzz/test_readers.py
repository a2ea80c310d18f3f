"""Every reader accepts its valid file, and returns or refuses in one line whatever else it is given."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stacking.storage.seal import sealed
from tests.fuzz.command import main
from tests.fuzz.fuzzer import GOOD, Findings, Worker, fuzz
from tests.fuzz.mutations import zipped
from tests.fuzz.results import Sitting, append_sitting, read_sittings
from tests.fuzz.targets import TARGETS

EXAMPLES = 40
_DEEP = b"[" * 100_000 + b"]" * 100_000
_LONG = b"9" * 5000
_MANY_KEYS = b"{" + b",".join(b'"key%d": 1' % number for number in range(60_000)) + b"}"


_BOMB = "".join(f"a{n}: &b{n} [{', '.join(['x' if n == 0 else f'*b{n - 1}'] * 9)}]\n" for n in range(10))


def _safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def _array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


_BARE_DATA = json.dumps(sealed({"kind": "data", "format": 1, "files": {}})).encode()

FOUND: dict[str, tuple[str, bytes]] = {
    "a number of 5,000 digits": ("JSON", b'{"a": ' + _LONG + b"}"),
    "a number of 5,000 digits in a ds_config": ("ds_config", b'{"train_batch_size": ' + _LONG + b"}"),
    "a number of 5,000 digits in a text": ("JSON lines", b'{"text": "a", "id": ' + _LONG + b"}\n"),
    "a number of 5,000 digits in a BERT config": ("BERT config", b'{"vocab_size": ' + _LONG + b"}"),
    "aliases of aliases of aliases": ("recipe", f"{_BOMB}seed: *b9\nstages: []\n".encode()),
    "half a surrogate pair as a key": ("site", b'{"environment": {"\\ud800": "a"}}'),
    "a memo of 2^27 objects": ("torch archive", zipped({"archive/data.pkl": b"\x80\x05Nr\xff\xff\xff\x07."})),
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
    "a header that is no Python literal": ("data shard", b"\x93NUMPY\x01\x00\x04\x00{'a\n"),
    "a shard of decimals": ("data shard", _array(np.ones(3))),
    "a shard without boundaries": ("data shard", _array(np.ones(0, np.int64))),
    "a scheduler's type that is an object": ("ds_config", b'{"scheduler": {"type": {"warmup_num_steps": "auto"}}}'),
    "data without a vocabulary": (
        "data manifest",
        _BARE_DATA,
    ),
}
"""Files that once led to a traceback, a hang or to memory without bounds."""


def _complaint(findings: Findings) -> str:
    return "\n".join(f"{fault} ({len(content):,} bytes)" for fault, content in findings.faults.items())


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files_are_read_or_refused(target: str, tmp_path: Path) -> None:
    with Worker(target, tmp_path) as worker:
        findings = fuzz(worker, "0", wanted=lambda examples: examples < EXAMPLES, at_once=EXAMPLES)
    assert findings.counts.total() == EXAMPLES
    assert not findings.faults, _complaint(findings)


@pytest.mark.parametrize("name", FOUND)
def test_past_fuzzing_findings_no_longer_crash(name: str, tmp_path: Path) -> None:
    target, content = FOUND[name]
    with Worker(target, tmp_path) as worker:
        outcome, message = worker.read(content)
    assert outcome in GOOD, f"{outcome}: {message}"


def test_fuzzing_sessions_are_continued_and_summed_up(tmp_path: Path) -> None:
    results, page = tmp_path / "results.jsonl", tmp_path / "docs" / "fuzz.md"
    options = ["--minutes", "0.1", "--reader", "JSON", "--reader", "metrics", "--results", str(results)]
    append_sitting(results, Sitting("JSON", 0, 3.0, {"ok": 2, "traceback": 1}, ["KeyError (7 bytes)"]))
    assert CliRunner().invoke(main, [*options, "--write", str(page)]).exit_code == 1
    assert [sitting.target for sitting in read_sittings(results)] == ["JSON", "metrics"]
    assert "| JSON | 2 | 0 | 1 | 0.1 |" in page.read_text()
    assert "* JSON: KeyError (7 bytes)" in page.read_text()
