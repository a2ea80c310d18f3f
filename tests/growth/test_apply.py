"""Growing a state: where each tensor goes, and that the source is unchanged."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stacking.errors import DamagedFile, UserError
from stacking.evaluate.mlm import load_model
from stacking.growth.apply import grow
from stacking.growth.operators import OPERATORS, layer_sources, listed_sources
from stacking.model.bert import build
from stacking.model.config import VARIANTS, ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.format import MOMENTS, State, new_state, step_of
from stacking.storage.safetensors_file import TensorSpec
from tests.model.conftest import example
from tests.states import SMALL, random_weights, write_state

KINDS = ("weights", *MOMENTS)
LISTED = (1, 0, "0 silent", 1)


def model_of(layers: int) -> ModelConfig:
    return ModelConfig(layers=layers, hidden=2, heads=1, intermediate=3, vocabulary=5, max_positions=4)


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    return dict(parameter_shapes(model_of(layers)))


LAYER = [name.removeprefix("layers.0.") for name in shapes(1) if name.startswith("layers.0.")]


def write(path: Path, layers: int = 3, moments: bool = True) -> State:
    """Every tensor of every kind, filled with unique numbers."""
    model = model_of(layers)
    number = 0
    buffers = {f"layers.{i}.seen": TensorSpec("float32", (1,)) for i in range(layers)}
    with new_state(
        path,
        shapes(layers),
        buffers=buffers,
        optimizer_step=50,
        model=model,
        moments=moments,
        progress={"step": 50},
        provenance={"finite": True},
    ) as append:
        for kind in KINDS if moments else KINDS[:1]:
            for name, shape in shapes(layers).items():
                size = int(np.prod(shape))
                append(kind, name, np.arange(number, number + size, dtype=np.float32))
                number += size
        for i in range(layers):
            append("buffers", f"layers.{i}.seen", np.full(1, i, np.float32))
    return State(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(("operator", "sources"), [("stack", [0, 1, 2, 0, 1, 2]), ("interleave", [0, 0, 1, 1, 2, 2])])
def test_weights_and_both_moments_follow_the_mapping(tmp_path: Path, operator: str, sources: list[int]) -> None:
    source = write(tmp_path / "s")

    grown = grow(source, tmp_path / "g", 6, operator, "copy")

    assert grown.names == tuple(shapes(6))  # in the order of the model
    assert grown.model == source.model.with_layers(6)  # type: ignore[union-attr]
    for kind in KINDS:
        for name in ("embeddings.tokens.weight", "mlm_head.bias"):
            np.testing.assert_array_equal(grown.read(kind, name), source.read(kind, name))
        for target, origin in enumerate(sources):
            assert grown.read("buffers", f"layers.{target}.seen") == origin
            for name in LAYER:
                values = grown.read(kind, f"layers.{target}.{name}")
                np.testing.assert_array_equal(values, source.read(kind, f"layers.{origin}.{name}"))


def test_identity_silences_the_new_layers_in_weights_and_moments(tmp_path: Path) -> None:
    source = write(tmp_path / "s", layers=2)

    grown = grow(source.path, tmp_path / "g", 3, "identity", "copy")

    for kind in KINDS:
        assert not grown.read(kind, "layers.2.attention.output.weight").any()
        np.testing.assert_array_equal(
            grown.read(kind, "layers.2.feed_forward.up.bias"), source.read(kind, "layers.0.feed_forward.up.bias")
        )


@given(st.lists(st.integers(0, 2), min_size=1, max_size=7))
def test_a_list_of_layers_decides_where_weights_and_moments_come_from(order: list[int]) -> None:
    with TemporaryDirectory() as folder:
        source = write(Path(folder) / "s")

        grown = grow(source, Path(folder) / "g", layers_from=order, optimizer_state="copy")

        assert grown.model == source.model.with_layers(len(order))  # type: ignore[union-attr]
        for kind in KINDS:
            for target, origin in enumerate(order):
                values = grown.read(kind, f"layers.{target}.attention.qkv.weight")
                np.testing.assert_array_equal(values, source.read(kind, f"layers.{origin}.attention.qkv.weight"))


@pytest.mark.parametrize("share", [False, True])
def test_old_layers_keep_their_moments_and_steps_and_added_ones_begin(tmp_path: Path, share: bool) -> None:
    source = write(tmp_path / "s")

    grown = grow(source, tmp_path / "g", 6, "interleave", "keep-old", share=share)

    assert grown.moments and grown.optimizer_step == 50
    assert set(grown.parameter_steps) == {f"layers.{i}.{name}" for i in (1, 3, 5) for name in LAYER}
    assert set(grown.parameter_steps.values()) == {0}
    for kind in KINDS:
        assert grown.read(kind, "mlm_head.bias").any()
        for target in range(6):
            values = grown.read(kind, f"layers.{target}.feed_forward.up.weight")
            expected = source.read(kind, f"layers.{target // 2}.feed_forward.up.weight")
            kept = kind == "weights" or target % 2 == 0
            np.testing.assert_array_equal(values, expected if kept else np.zeros_like(expected))


@pytest.mark.parametrize("share", [False, True])
def test_layers_added_by_one_growth_are_old_in_the_next(tmp_path: Path, share: bool) -> None:
    """Each of three generations has its own step count; copies with kept steps have their source's."""
    first = grow(write(tmp_path / "s", layers=1), tmp_path / "2", 2, "stack", "keep-old", share=share)

    kept = grow(first, tmp_path / "4", 4, "stack", "copy-keep-step", share=share)
    added = grow(first, tmp_path / "4-old", 4, "stack", "keep-old", share=share)

    assert steps(kept) == [50, 0, 50, 0] and steps(added) == [50, 0, 0, 0]
    assert [kept.read("exp_avg", f"layers.{i}.feed_forward.up.weight").any() for i in range(4)] == [True, False] * 2
    reset = grow(first, tmp_path / "4-reset", 4, "stack", "reset", share=share)
    assert not reset.moments and steps(reset) == [0] * 4 and not reset.fresh_layers


def steps(state: State) -> list[int]:
    return [step_of(state, f"layers.{i}.feed_forward.up.weight") for i in range(4)]


@pytest.mark.parametrize(
    ("rule", "moments", "step"),
    [("reset", False, 0), ("reset-keep-step", False, 50), ("copy", True, 0), ("copy-keep-step", True, 50)],
)
def test_the_optimizer_state_continues_as_the_rule_says(tmp_path: Path, rule: str, moments: bool, step: int) -> None:
    grown = grow(write(tmp_path / "s"), tmp_path / "g", 6, "stack", rule)

    assert (grown.moments, grown.optimizer_step) == (moments, step)


def test_stacking_twice_equals_stacking_once_to_the_same_depth(tmp_path: Path) -> None:
    source = write(tmp_path / "s")

    twice = grow(grow(source, tmp_path / "6", 6, "stack", "copy"), tmp_path / "12", 12, "stack", "copy")

    assert twice.digest == grow(source, tmp_path / "once", 12, "stack", "copy").digest


def test_the_source_is_unchanged_and_named_as_the_parent(tmp_path: Path) -> None:
    source = write(tmp_path / "s")
    before = contents(source.path)

    grown = grow(source, tmp_path / "g", 6, "stack", "reset")

    assert contents(source.path) == before
    provenance = grown.manifest["provenance"]
    assert provenance["operator"] == "stack" and provenance["parent"] == source.digest
    assert grown.progress == {"step": 50}


def test_the_copies_do_not_share_storage(tmp_path: Path) -> None:
    grown = grow(write(tmp_path / "s"), tmp_path / "g", 6, "stack", "copy")

    size = sum(4 * int(np.prod(shape)) for shape in shapes(6).values())
    for kind in KINDS:
        assert (grown.path / f"{kind}.safetensors").stat().st_size > size


def test_a_state_without_moments_grows_without_them(tmp_path: Path) -> None:
    assert not grow(write(tmp_path / "s", moments=False), tmp_path / "g", 6, "stack", "copy").moments


def test_mistakes_are_named(tmp_path: Path) -> None:
    source = write(tmp_path / "s")
    with pytest.raises(UserError, match="stack makes 3, 6, 9, 12, … layers out of 3, not 7"):
        grow(source, tmp_path / "g", 7)
    with pytest.raises(UserError, match="no growth operator 'double'"):
        grow(source, tmp_path / "g", 6, "double")
    with pytest.raises(UserError, match="no optimizer-state rule 'keep'"):
        grow(source, tmp_path / "g", 6, "stack", "keep")
    with pytest.raises(UserError, match=r"--layers-from: layer 3 does not exist: the model has the layers 0 to 2"):
        grow(source, tmp_path / "g", layers_from=[0, 3])
    with pytest.raises(UserError, match="--layers: is missing"):
        grow(source, tmp_path / "g")
    with new_state(tmp_path / "flat", {"a": (1,)}, moments=False) as append:
        append("weights", "a", np.zeros(1, np.float32))
    with pytest.raises(UserError, match="has no layers to grow"):
        grow(tmp_path / "flat", tmp_path / "g", 6)
    assert not (tmp_path / "g").exists()


def test_a_damaged_source_is_found_before_anything_is_written(tmp_path: Path) -> None:
    file = write(tmp_path / "s").path / "exp_avg.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)

    with pytest.raises(DamagedFile, match=r"exp_avg\.safetensors"):
        grow(tmp_path / "s", tmp_path / "g", 6)
    assert not (tmp_path / "g").exists()


def test_a_depth_beyond_all_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--layers: 400,000,000 layers make no model; give 1 to 10,000"):
        grow(write(tmp_path / "shallow"), tmp_path / "deep", 400_000_000)


@pytest.mark.parametrize("how", [*OPERATORS, "a list"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_grows_by_every_operator(tmp_path: Path, variant: str, how: str) -> None:
    """The grown state equals the model assembled in memory from the shallow one's layers, silent or not."""
    config = ModelConfig(**{**SMALL, "variant": variant})
    source = State(write_state(tmp_path / "s", config, random_weights(config)))
    sources = listed_sources(LISTED) if how == "a list" else layer_sources(how, 2, 4)
    order = {"layers_from": LISTED} if how == "a list" else {"layers": 4, "operator": how}

    grown = load_model(grow(source, tmp_path / "g", **order).path).eval()

    shallow, expected = load_model(source.path), build(config.with_layers(4)).eval()
    expected.load_state_dict({k: v for k, v in shallow.state_dict().items() if "layers." not in k}, strict=False)
    for layer, (origin, treatment) in zip(expected.layers, sources, strict=True):
        layer.load_state_dict(shallow.layers[origin].state_dict())
        for name, parameter in layer.named_parameters():
            if treatment == "silent" and name.split(".")[-2] in ("output", "down"):
                torch.nn.init.zeros_(parameter)
    tokens = example()[:3]
    with torch.no_grad():
        assert all(torch.equal(*scores) for scores in zip(grown.logits(*tokens), expected.logits(*tokens), strict=True))
