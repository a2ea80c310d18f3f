"""A training state as an ordinary Hugging Face folder: config, safetensors, tokenizer, model card. No torch here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stacking.data.corpus import load_manifest
from stacking.errors import UserError
from stacking.huggingface.model_card import model_card
from stacking.huggingface.names import hugging_face_names, to_hugging_face
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.finite import FiniteState
from stacking.state.format import WEIGHTS, Readable, State
from stacking.storage.files import MANIFEST, new_folder, require_outside, write_atomically, write_json
from stacking.storage.safetensors_file import SafetensorsWriter, TensorSpec

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def export(state: Path, out: Path, data: Path | None = None, allow_non_finite: bool = False) -> Path:
    """Write the model in ``state`` to ``out``, where transformers' BertForPreTraining and AutoModel find it.

    Args:
        state: a state folder of a ``post_ln`` model.
        out: the new folder; one that stands there is replaced once the new one is complete.
        data: the prepared data folder whose tokenizer goes along; without it the export has no tokenizer.
        allow_non_finite: take NaN and infinity as they are.

    Raises:
        UserError: ``state`` holds no model that Hugging Face knows or a weight that is not finite, or the tokenizer has
            more words than the model.
        DamagedFile: a file of ``state`` is torn or altered.
    """
    source, config = read_model(state)
    require_outside(out, source.path)
    if config.variant != "post_ln":
        raise UserError(
            state / MANIFEST,
            f"holds a {config.variant} model, for which Hugging Face has no class",
            "export a post_ln model; `stacking evaluate` takes the state itself",
        )
    tokenizer: list[Path] = []
    if data is not None:
        manifest = load_manifest(data)
        tokenizer = _tokenizer_files(data, manifest, config)
        padding_id = manifest.get("special", {}).get("pad", config.padding_id)
        config = config.model_copy(update={"padding_id": padding_id})
    with new_folder(out, {"kind": "export", "format": 1}) as folder:
        write_json(folder / "config.json", to_hugging_face(config))
        with SafetensorsWriter(folder / "model.safetensors", _specs(config), {"format": "pt"}) as file:
            view = source if allow_non_finite else FiniteState(source, source.path)
            for name, values in _renamed(view, config):
                file.append(name, values)
        for path in tokenizer:
            shutil.copyfile(path, folder / path.name)
        write_atomically(folder / "README.md", model_card(config, source.manifest, has_tokenizer=bool(tokenizer)))
    return out


def read_model(path: Path) -> tuple[State, ModelConfig]:
    """A state folder, verified to the last byte, and the description of its model.

    Raises:
        UserError: it is no state folder, or one that describes no model.
        DamagedFile: a file is torn or altered, or does not hold the parameters of the model that is described.
    """
    state = State(path, checksums=True)
    config = state.model
    if config is None:
        raise UserError(f"{path / MANIFEST}: model", "is empty", "consolidate its checkpoint with --config")
    return state, config


def read_weights(state: Readable, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter of the model in ``state``, fp32, in order, one in memory at a time."""
    for name, shape in parameter_shapes(config).items():
        yield name, state.read(WEIGHTS, name).reshape(shape)


def _specs(config: ModelConfig) -> dict[str, TensorSpec]:
    """What the exported file holds, in order."""
    names = hugging_face_names(config)
    return {
        theirs: TensorSpec("float32", (shape[0] // len(names[name]), *shape[1:]))
        for name, shape in parameter_shapes(config).items()
        for theirs in names[name]
    }


def _renamed(state: Readable, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The weights under Hugging Face's names, the fused matrices cut into theirs."""
    names = hugging_face_names(config)
    for name, values in read_weights(state, config):
        yield from zip(names[name], np.split(values, len(names[name])), strict=True)


def _tokenizer_files(data: Path, manifest: Mapping[str, Any], config: ModelConfig) -> list[Path]:
    """The tokenizer in a prepared data folder; it may be smaller than the embedding, but not larger."""
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
