"""Exports a training state as a Hugging Face folder: config, safetensors, tokenizer, model card. Needs no torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stacking.data.corpus import load_manifest
from stacking.errors import UserError
from stacking.huggingface.architecture import NEXT_SENTENCE, Architecture, architecture_of
from stacking.huggingface.model_card import model_card
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.finite import FiniteState
from stacking.state.format import WEIGHTS, State, TrainingState
from stacking.storage.files import MANIFEST, new_folder, read_json, require_outside, write_atomically, write_json
from stacking.storage.safetensors_file import SafetensorsWriter, TensorSpec

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def export(state: Path, out: Path, data: Path | None = None, allow_non_finite: bool = False) -> Path:
    """Writes the model in ``state`` to ``out``, for use with the variant's class in transformers.

    Args:
        out: the new folder; an existing one is replaced once the new one is complete.
        data: the prepared data folder whose tokenizer is included; without it the export has no tokenizer.

    Raises:
        UserError: Hugging Face does not support the model, a weight is not finite, or the tokenizer has more tokens
            than the model.
        DamagedFile: a file of ``state`` is truncated or altered.
    """
    source, config = read_model(state)
    require_outside(out, source.path)
    if not config.has_hugging_face_class:
        raise UserError(
            state / MANIFEST,
            f"holds a {config.variant} model, which cannot be exported",
            "`stacking evaluate` takes the state itself",
        )
    architecture = architecture_of(config)
    tokenizer: list[Path] = []
    if data is not None:
        manifest = load_manifest(data)
        tokenizer = _tokenizer_files(data, manifest, config)
        padding_id = manifest.get("special", {}).get("pad", config.padding_id)
        config = config.model_copy(update={"padding_id": padding_id})
    with new_folder(out, {"kind": "export", "format": 1}) as folder:
        write_json(folder / "config.json", architecture.config(config))
        view = source if allow_non_finite else FiniteState(source, source.path)
        _write_weights(folder, view, config, architecture)
        if architecture.code:
            shutil.copyfile(Path(__file__).with_name(architecture.code), folder / architecture.code)
        for path in tokenizer:
            shutil.copyfile(path, folder / path.name)
        if architecture.inputs and (settings := folder / "tokenizer_config.json").is_file():
            write_json(settings, {**read_json(settings), "model_input_names": architecture.inputs})
        card = model_card(config, source.manifest, bool(tokenizer), architecture.use, own_code=bool(architecture.code))
        write_atomically(folder / "README.md", card)
    return out


def read_model(path: Path) -> tuple[State, ModelConfig]:
    """Opens and fully verifies a state folder; returns it and its model.

    Raises:
        UserError: the folder is not a state, or does not describe a model.
        DamagedFile: a file is truncated or altered, or its parameters do not match the model.
    """
    state = State(path, checksums=True)
    config = state.model
    if config is None:
        raise UserError(f"{path / MANIFEST}: model", "is empty", "consolidate its checkpoint with --config")
    return state, config


def read_weights(state: TrainingState, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every parameter of the model in ``state`` as fp32, in order, one at a time."""
    for name, shape in parameter_shapes(config).items():
        yield name, state.read(WEIGHTS, name).reshape(shape)


def _write_weights(folder: Path, state: TrainingState, config: ModelConfig, architecture: Architecture) -> None:
    """Writes the weights, one tensor at a time; parameters without a place in the class go to a file of their own."""
    names = list(parameter_shapes(config))
    aside = [name for name in names if name.startswith(architecture.aside)]
    for path, chosen, constants in (
        ("model.safetensors", [name for name in names if name not in aside], architecture.constants(config)),
        (NEXT_SENTENCE, aside, {}),
    ):
        if not chosen:
            continue
        shapes = {piece.name: piece.shape for name in chosen for piece in architecture.exported(config, name)}
        shapes |= {name: values.shape for name, values in constants.items()}
        specs = {name: TensorSpec("float32", shape) for name, shape in shapes.items()}
        with SafetensorsWriter(folder / path, specs, {"format": "pt"}) as file:
            for name in chosen:
                values = state.read(WEIGHTS, name).reshape(state.shape(name))
                for piece in architecture.exported(config, name, values):
                    assert piece.values is not None
                    file.append(piece.name, piece.values)
            for name, values in constants.items():
                file.append(name, values)


def _tokenizer_files(data: Path, manifest: Mapping[str, Any], config: ModelConfig) -> list[Path]:
    """Returns the tokenizer files of a prepared data folder; the vocabulary must not exceed the embedding."""
    vocabulary = manifest["vocabulary"]
    if vocabulary > config.vocabulary:
        raise UserError(
            f"{data / MANIFEST}: vocabulary",
            f"is {vocabulary:,} where the model embeds {config.vocabulary:,} tokens",
            "give the data folder that this model was trained on",
        )
    found = [data / name for name in TOKENIZER_FILES if (data / name).is_file()]
    if data / "tokenizer.json" not in found:
        raise UserError(data / "tokenizer.json", "does not exist", "give a folder made by `stacking prepare`")
    return found
