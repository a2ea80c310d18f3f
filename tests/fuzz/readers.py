"""Reads each kind of file completely; returns, or raises `UserError`, and nothing else.

Imports are inside the functions, so that a worker only loads what it needs.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def recipe(path: Path) -> object:
    from stacking.config.recipe import load_recipe

    return load_recipe(path)


def site(path: Path) -> object:
    from stacking.slurm.site import load_site

    return load_site(path)


def ds_config(path: Path) -> object:
    from stacking.deepspeed_config.ds_config import load

    return load(str(path), "recipe.yaml: ds_config", path.parent)


def plan(path: Path) -> object:
    from stacking.planning.plan import load_plan

    return load_plan(path)


def any_json(path: Path) -> object:
    from stacking.storage.files import read_json

    return read_json(path)


def json_by_hand(path: Path) -> object:
    """JSON written by people: duplicate keys are refused."""
    from stacking.config.reading import read_json_mapping

    return read_json_mapping(path)


def any_yaml(path: Path) -> object:
    from stacking.config.reading import parse_yaml

    return parse_yaml(path.read_text(errors="surrogateescape"), str(path))


def safetensors(path: Path) -> object:
    import numpy as np

    from stacking.storage.safetensors_file import SafetensorsFile

    file = SafetensorsFile.open(path)
    read = {name: np.empty(spec.shape, spec.dtype) for name, spec in file.specs.items()}
    for name, values in read.items():
        file.fill(name, 0, values.reshape(-1))
    return read


def state(path: Path) -> object:
    from stacking.state.format import State

    opened = State(path.parent)
    return [opened.read("weights", name) for name in opened.names[:50]]


def sealed_state(path: Path) -> object:
    """A state whose manifest vouches for the file."""
    _vouch(path.parent)
    return state(path)


def _vouch(folder: Path) -> None:
    """Seal a folder whose files were changed after its manifest was written."""
    from stacking.storage.files import read_json, seal_folder

    seal_folder(folder, {**read_json(folder / "manifest.json")})


def torch_file(path: Path) -> object:
    """Read the file, and every tensor that it claims to contain."""
    from stacking.storage.torch_file import StoredTensor, read_torch_file

    left = [read_torch_file(path)]
    while left:
        value = left.pop()
        if isinstance(value, StoredTensor):
            value.read()
        elif isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value
    return None


def checkpoint(path: Path) -> object:
    """Consolidate the checkpoint that the file is part of."""
    from stacking.state.consolidate import consolidate

    out = path.parent.parent / "consolidated"
    shutil.rmtree(out, ignore_errors=True)
    return consolidate(path.parent, out)


def sealed_checkpoint(path: Path) -> object:
    """The same, with a manifest that vouches for the file."""
    from stacking.storage.files import seal_folder

    seal_folder(path.parent, {})
    return checkpoint(path)


def imported(path: Path) -> object:
    """Import the Hugging Face folder that the file is part of."""
    from stacking.huggingface.importing import import_hugging_face

    out = path.parent.parent / "imported"
    shutil.rmtree(out, ignore_errors=True)
    return import_hugging_face(path.parent, out)


def documents(path: Path) -> object:
    from stacking.data.readers import TextFile, documents

    format = "parquet" if path.suffix == ".parquet" else "jsonl"
    return sum(1 for _ in documents(TextFile(path, format)))


def metrics(path: Path) -> object:
    from stacking.run.metrics import read_metrics

    return read_metrics(path)


def journal(path: Path) -> object:
    from stacking.run.journal import Journal

    return Journal(path).events()


def data(path: Path) -> object:
    from stacking.data.corpus import Corpus

    folder = next(parent for parent in path.parents if (parent / "held_out").is_dir())
    corpus = Corpus(folder)
    return corpus.digest, corpus.head(1000)


def sealed_data(path: Path) -> object:
    """Data whose manifest vouches for the file."""
    _vouch(path.parent.parent)
    return data(path)


def tokenizer(path: Path) -> object:
    from stacking.data.given import load

    return load(path.parent)


def bert_config(path: Path) -> object:
    from stacking.huggingface.architecture import model_in
    from stacking.storage.files import read_json

    return model_in(read_json(path), path)
