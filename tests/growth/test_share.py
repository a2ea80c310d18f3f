"""Growing without copying: the grown state shares the files of the shallow one, and reads as if it had its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from stacking.errors import DamagedFile
from stacking.growth.apply import grow
from stacking.growth.operators import OPERATORS, OPTIMIZER_STATES, layer_sources
from stacking.state.format import BUFFERS, State
from stacking.state.layers import composed, origins
from stacking.storage.files import verify_folder, write_sealed
from tests.growth.test_apply import KINDS, contents, shapes, write


def assert_same(one: State, other: State) -> None:
    assert one.names == other.names and dict(one.buffers) == dict(other.buffers)
    assert (one.moments, one.optimizer_step, one.parameter_steps, one.model, one.progress) == (
        other.moments, other.optimizer_step, other.parameter_steps, other.model, other.progress,
    )  # fmt: skip
    for kind in KINDS if one.moments else KINDS[:1]:
        for name in one.names:
            np.testing.assert_array_equal(one.read(kind, name), other.read(kind, name))
            np.testing.assert_array_equal(one.read(kind, name, 1), other.read(kind, name, 1))
    for name in one.buffers:
        np.testing.assert_array_equal(one.read(BUFFERS, name), other.read(BUFFERS, name))


@pytest.mark.parametrize("operator", sorted(OPERATORS))
@pytest.mark.parametrize("rule", sorted(OPTIMIZER_STATES))
def test_a_shared_state_reads_as_a_copied_one(tmp_path: Path, operator: str, rule: str) -> None:
    source = write(tmp_path / "s")

    shared = grow(source, tmp_path / "shared", 6, operator, rule, share=True)

    assert_same(shared, grow(source, tmp_path / "copied", 6, operator, rule))
    assert_same(State(tmp_path / "shared", checksums=True), shared)


def test_it_takes_no_space_and_is_complete_without_its_source(tmp_path: Path) -> None:
    source = write(tmp_path / "s")
    copied = grow(source, tmp_path / "copied", 6, "stack", "copy")

    shared = grow(source, tmp_path / "shared", 6, "stack", "copy", share=True)

    for file in source.path.glob("*.safetensors"):
        assert os.path.samefile(file, shared.path / file.name)
    shutil.rmtree(source.path)
    assert_same(State(shared.path, checksums=True), copied)


def test_without_moments_their_files_are_not_shared(tmp_path: Path) -> None:
    shared = grow(write(tmp_path / "s"), tmp_path / "shared", 6, "stack", "reset", share=True)

    assert not shared.moments and not list(shared.path.glob("exp_avg*"))


@pytest.mark.parametrize("first", ["stack", "interleave", "identity"])
@pytest.mark.parametrize("second", ["stack", "interleave", "identity"])
@pytest.mark.parametrize("rule", ["copy", "keep-old"])
def test_a_shared_state_grows_on_shared_or_not(tmp_path: Path, first: str, second: str, rule: str) -> None:
    source = write(tmp_path / "s")
    copied = grow(grow(source, tmp_path / "6", 6, first, rule), tmp_path / "12", 12, second, rule)

    middle = grow(source, tmp_path / "shared-6", 6, first, rule, share=True)

    assert_same(grow(middle, tmp_path / "shared-12", 12, second, rule, share=True), copied)
    assert_same(grow(middle, tmp_path / "copied-12", 12, second, rule), copied)


def test_the_digest_distinguishes_growths_of_the_same_files(tmp_path: Path) -> None:
    source = write(tmp_path / "s")
    digests = {
        source.digest,
        grow(source, tmp_path / "a", 6, "stack", "copy", share=True).digest,
        grow(source, tmp_path / "b", 6, "interleave", "copy", share=True).digest,
    }
    assert len(digests) == 3
    assert grow(source, tmp_path / "c", 6, "stack", "keep-old", share=True).digest not in digests


def test_damage_after_sharing_is_found_when_reading(tmp_path: Path) -> None:
    """The checksums are carried over, although growing reads nothing."""
    source = write(tmp_path / "s")
    shared = grow(source, tmp_path / "g", 6, "stack", "copy", share=True)
    file = shared.path / "exp_avg.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.raises(DamagedFile, match=r"g/exp_avg\.safetensors: does not match its checksum"):
        State(shared.path).read("exp_avg", shared.names[-1])
    with pytest.raises(DamagedFile, match=r"g/exp_avg\.safetensors: does not match its checksum"):
        verify_folder(shared.path)


def test_damage_before_sharing_is_found_when_reading(tmp_path: Path) -> None:
    file = write(tmp_path / "s").path / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    shared = grow(tmp_path / "s", tmp_path / "g", 6, "stack", "copy", share=True)
    with pytest.raises(DamagedFile, match=r"g/weights\.safetensors: does not match its checksum"):
        shared.read("weights", shared.names[-1])


def test_without_hard_links_the_state_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    source = write(tmp_path / "s")
    monkeypatch.setattr(os, "link", refuse)

    copied = grow(source, tmp_path / "g", 6, "stack", "copy", share=True)

    assert "layer_sources" not in copied.manifest
    monkeypatch.undo()
    assert_same(copied, grow(source, tmp_path / "shared", 6, "stack", "copy", share=True))


def test_the_source_is_unchanged(tmp_path: Path) -> None:
    source = write(tmp_path / "s")
    before = contents(source.path)
    shared = grow(source, tmp_path / "g", 6, "stack", "reset", share=True)
    assert contents(source.path) == before
    assert shared.manifest["provenance"]["parent"] == source.digest


@pytest.mark.parametrize("sources", [["0"], ["0 melted"], ["zero copy"], [0]])
def test_an_unreadable_mapping_is_damage(tmp_path: Path, sources: list[object]) -> None:
    shared = grow(write(tmp_path / "s"), tmp_path / "g", 6, "stack", "reset", share=True)
    text = (shared.path / "manifest.json").read_text()

    write_sealed(shared.path / "manifest.json", {**json.loads(text), "layer_sources": sources})
    with pytest.raises(DamagedFile, match=r"manifest\.json: does not describe a state"):
        State(shared.path)


def test_a_mapping_that_is_too_short_for_the_model_is_damage(tmp_path: Path) -> None:

    shared = grow(write(tmp_path / "s"), tmp_path / "g", 6, "stack", "reset", share=True)
    manifest = json.loads((shared.path / "manifest.json").read_text())
    write_sealed(shared.path / "manifest.json", {**manifest, "layer_sources": ["0 copy"]})
    with pytest.raises(DamagedFile, match=r"weights\.safetensors: lacks the parameter"):
        State(shared.path)


@pytest.mark.parametrize("outer", ["stack", "interleave", "identity"])
@pytest.mark.parametrize("inner", ["stack", "interleave", "identity"])
def test_composing_mappings_equals_growing_twice(outer: str, inner: str) -> None:
    first, second = layer_sources(inner, 2, 4), layer_sources(outer, 4, 8)
    names = tuple(shapes(2))

    once = origins(names, composed(second, first))

    middle = origins(names, first)
    for name, origin in origins(middle, second).items():
        assert once[name] == (middle[origin.name].name, origin.zero or middle[origin.name].zero)
