"""State folders made to harm whoever reads or grows them: nothing outside is touched; one line gives the reason."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stacking.errors import DamagedFile, UserError
from stacking.growth.apply import grow
from stacking.huggingface.export import export
from stacking.state.format import State
from stacking.storage.blocks import hash_files
from stacking.storage.files import MANIFEST, write_sealed
from stacking.storage.safetensors_file import SafetensorsFile
from tests.growth.test_apply import write


def change(state: Path, **values: Any) -> None:
    manifest = json.loads((state / MANIFEST).read_text())
    write_sealed(state / MANIFEST, {**manifest, **values})


def list_file(state: Path, name: str, file: Path) -> None:
    """Let the manifest list ``file`` under a name of the attacker's choice, with its right size and checksum."""
    manifest = json.loads((state / MANIFEST).read_text())
    change(state, files={**manifest["files"], name: hash_files([file])[0]})


NAMES = ["../secret", "../deep/../secret", "{absolute}", "./weights.safetensors", "a/../../secret", "", ".", "secret"]


@pytest.mark.parametrize("name", NAMES)
def test_growing_links_only_the_files_of_a_state(tmp_path: Path, name: str) -> None:
    state = write(tmp_path / "deep" / "state").path
    secret = tmp_path / "deep" / "secret"
    secret.write_bytes(b"x" * 100)
    (state / "secret").write_bytes(b"x" * 100)
    list_file(state, name.format(absolute=secret), secret)

    with pytest.raises(DamagedFile, match=r"manifest\.json: lists .*, which is not a file of "):
        grow(state, tmp_path / "elsewhere" / "out", 6, share=True)
    assert not (tmp_path / "elsewhere").exists()


def test_a_link_that_leaves_the_state_is_copied_not_shared(tmp_path: Path) -> None:
    state = write(tmp_path / "state").path
    outside = tmp_path / "weights"
    (state / "weights.safetensors").rename(outside)
    (state / "weights.safetensors").symlink_to(outside)

    grown = grow(state, tmp_path / "out", 6, share=True)

    assert outside.stat().st_nlink == 1
    assert not (grown.path / "weights.safetensors").is_symlink()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    state = write(tmp_path / "state").path
    file = state / "exp_avg.safetensors"
    file.unlink()
    makers: dict[str, Callable[[], None]] = {
        "pipe": lambda: os.mkfifo(file),
        "device": lambda: file.symlink_to("/dev/zero"),
        "folder": file.mkdir,
    }
    makers[kind]()
    with pytest.raises(DamagedFile, match=r"exp_avg\.safetensors: is missing"):
        State(state)


@pytest.mark.parametrize("command", ["grow", "export"])
@pytest.mark.parametrize("place", ["{state}/deeper", "{state}/../state/deeper", "{link}/deeper"])
def test_nothing_is_written_into_its_own_source(tmp_path: Path, command: str, place: str) -> None:
    state = write(tmp_path / "state").path
    (tmp_path / "link").symlink_to(state)
    out = Path(place.format(state=state, link=tmp_path / "link"))
    with pytest.raises(UserError, match=r"deeper: is inside its source .*state; choose a folder elsewhere"):
        grow(state, out, 6) if command == "grow" else export(state, out)
    assert not (state / "deeper").exists()


MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no files": ({"files": {}}, "does not list weights.safetensors"),
    "layers without end": ({"layer_sources": ["0 copy"] * 1_000_000}, "layer_sources: List should have at most 10000"),
    "a layer of 5,000 digits": ({"layer_sources": ["9" * 5_000 + " copy"]}, "layer_sources: a layer's number is not"),
    "a negative layer": ({"layer_sources": ["-1 copy"]}, "layer_sources: a layer's number is not one"),
    "a layer that is not there": ({"layer_sources": ["7 copy"] * 3}, "lacks the parameter layers."),
    "10 ** 30 updates": ({"optimizer_step": 10**30}, "optimizer_step: Input should be less than or equal to"),
    "no updates": ({"optimizer_step": -1}, "optimizer_step: Input should be greater"),
    "updates of a stranger": ({"parameter_steps": {"x": 1}}, "counts the steps of 'x', which is not a parameter"),
    "negative updates of one": ({"parameter_steps": {"x": -1}}, "parameter_steps.x: Input should be greater"),
    "a fresh layer below the first": ({"fresh_layers": [-1]}, "fresh_layers.0: Input should be greater"),
    "a text as updates": ({"optimizer_step": "8"}, "optimizer_step: Input should be a valid integer"),
    "a kind that is nested": ({"kind": [[[[[[[[[1]]]]]]]]]}, "not a state"),
    "a format of another type": ({"format": {}}, "has format {}, but this version reads 1"),
    "a model of 10 ** 9 layers": ({"model": {"layers": 10**9}}, "does not describe a state: model"),
    "moments that are not there": ({"moments": "yes"}, "moments: Input should be a valid boolean"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_with_values_out_of_bounds_is_refused(tmp_path: Path, kind: str) -> None:
    state = write(tmp_path / "state").path
    values, message = MANIFESTS[kind]
    change(state, **values)
    with pytest.raises(UserError) as error:
        State(state)
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 2_500


def test_a_manifest_without_the_moments_that_it_promises_is_refused(tmp_path: Path) -> None:
    state = write(tmp_path / "state").path
    manifest = json.loads((state / MANIFEST).read_text())
    change(state, files={name: entry for name, entry in manifest["files"].items() if "exp_avg_sq" not in name})
    with pytest.raises(DamagedFile, match=r"does not list exp_avg_sq\.safetensors"):
        State(state)


def header(text: str | bytes, data: bytes = b"\0" * 16) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(first: Any = 0, last: Any = 16, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


HEADERS: dict[str, bytes] = {
    "nested 100,000 deep": header("[" * 100_000),
    "longer than the file": struct.pack("<Q", 1 << 63) + b"{}",
    "fractional offsets": header(json.dumps({"a": entry(0.0, 16.0)})),
    "true as an offset": header(json.dumps({"a": entry(False, 16)})),
    "an end that contradicts the shape": header(json.dumps({"a": entry(0, 12)})),
    "an end before the beginning": header(json.dumps({"a": entry(16, 0)})),
    "overlapping tensors": header(json.dumps({"a": entry(), "b": entry(8, 16, [2])})),
    "the same bytes twice": header(json.dumps({"a": entry(), "b": entry()})),
    "bytes between tensors": header(json.dumps({"a": entry(0, 4, [1]), "b": entry(8, 16, [2])})),
    "bytes behind the tensors": header(json.dumps({"a": entry(0, 8, [2])})),
    "a tensor in the header": header(json.dumps({"a": entry(-16, 0)})),
    "a shape of 2 ** 62": header(json.dumps({"a": entry(0, 1 << 64, [1 << 62])})),
    "a negative shape": header(json.dumps({"a": entry(0, 16, [-2, -2])})),
    "a fractional shape": header(json.dumps({"a": entry(0, 16, [4.0])})),
    "a shape without end": header(json.dumps({"a": entry(0, 16, [1] * 100_000 + [4])})),
    "a shape that is a text": header(json.dumps({"a": entry(0, 16, "4")})),
    "a dtype that is a list": header(json.dumps({"a": entry(dtype=["F32"])})),
    "three offsets": header(json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}})),
    "a number of 5,000 digits": header('{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0]}}' % ("9" * 5_000)),
    "NaN": header('{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}'),
    "a text as an entry": header('{"a": "F32"}'),
    "a list": header("[]"),
    "no text": header(b"\xff\xfe"),
    "a text with control characters": header(json.dumps({"a\x1b[2J": entry(dtype="\x1b[2J")})),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").write_bytes(HEADERS[kind])
    with pytest.raises(DamagedFile) as error:
        SafetensorsFile.open(tmp_path / "x")
    assert str(error.value).isprintable()
