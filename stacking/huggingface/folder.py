"""Finds the configuration and weights in a Hugging Face or Google BERT folder. Needs no torch."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from stacking.errors import DamagedFile, UserError
from stacking.storage.files import read_json
from stacking.storage.signatures import refuse_other_formats

CONFIGS = ("config.json", "bert_config.json")
"""The file names of Hugging Face and Google."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In order of preference; each is a single file or, with an index of this name, sharded."""
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_NOT_THE_MODEL = (
    "training_args.bin",
    "*optimizer*",
    "*scheduler*",
    "*scaler*",
    "rng_state*",
    "adapter_*",
    "*_states.pt",
    "*.ckpt.*",
)
"""Files that trainers save next to the weights."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")

_TRANSFORMERS_4 = "convert it with transformers 4: "
CONVERSIONS: dict[str, tuple[str, str]] = {
    "*.ckpt*.index": (
        "a TensorFlow checkpoint",
        f"{_TRANSFORMERS_4}`transformers-cli convert --model_type bert --tf_checkpoint {{stem}} --config {{config}}"
        " --pytorch_dump_output {folder}/pytorch_model.bin`",
    ),
    "*.h5": (
        "TensorFlow weights",
        f"{_TRANSFORMERS_4}BertForPreTraining.from_pretrained({{name}}, from_tf=True).save_pretrained(NEW)",
    ),
    "*.msgpack": (
        "Flax weights",
        f"{_TRANSFORMERS_4}BertForPreTraining.from_pretrained({{name}}, from_flax=True).save_pretrained(NEW)",
    ),
    "adapter_*": (
        "an adapter without its model",
        "merge the two with peft: model.merge_and_unload().save_pretrained(NEW)",
    ),
    "*.onnx": ("an ONNX graph", "take the PyTorch weights from which it was exported"),
    "*.tflite": ("a TensorFlow Lite graph", "take the PyTorch weights from which it was exported"),
    "*.gguf": ("a GGUF file", "take the PyTorch weights from which it was made"),
    "*.ot": ("weights for Rust", "take the PyTorch weights from which they were made"),
    "saved_model.pb": ("a TensorFlow graph", "take the checkpoint or the PyTorch weights from which it was made"),
    "*_states.pt": (
        "a DeepSpeed checkpoint",
        "turn that into a state: `stacking consolidate {folder} --config {config} --out STATE`",
    ),
}
"""Unsupported weights by file name: what they are, and how to convert them."""


class Weights(NamedTuple):
    """Lists the files with the weights of a model: one, or its shards."""

    files: list[Path]
    note: str = ""
    """A note on unusual weights."""


def read_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the configuration file of the model in ``folder``, and its content.

    Raises:
        UserError: there is none; the message names a subfolder with one, or the files found.
    """
    if not folder.is_dir():
        raise UserError(folder, "is not a folder", "give a Hugging Face folder with config.json and weights")
    found = [folder / name for name in CONFIGS if (folder / name).exists()]
    if not found:
        below = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json"))
        remedy = f"give {below[0]}, which has one" if below else _what_stands_there(folder)
        raise UserError(folder / CONFIGS[0], "does not exist", remedy)
    refuse_other_formats(found[0])
    content = read_json(found[0])
    if not isinstance(content, dict):
        raise UserError(found[0], "is not a JSON object", "take a complete Hugging Face BERT folder")
    return found[0], content


def find_weights(folder: Path, config: Path) -> Weights:
    """Finds the files with the weights: one, or shards given by an index or their names; prefers safetensors.

    Raises:
        UserError: there are no supported weights; the message says what was found and how to convert it.
        DamagedFile: the index is malformed, or lists a missing file.
    """
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return Weights([folder / name])
        if index.is_file():
            return Weights(_listed(index))
    others = _other_weights(folder)
    if len(others) == 1 or (others and _complete(others)):
        return Weights(others, f"the weights are read from {' and '.join(path.name for path in others)}")
    if others:
        names = ", ".join(path.name for path in others[:5])
        raise UserError(folder, f"holds several weights ({names})", f"rename the one to use to {WEIGHTS[1]}")
    raise UserError(folder, *_unreadable(folder, config))


def _listed(index: Path) -> list[Path]:
    refuse_other_formats(index)
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedFile(index, "has no weight_map", "download it again")
    names = {str(name) for name in weight_map.values()}
    for name in names:
        if name != Path(name).name or Path(name).suffix not in (".safetensors", ".bin"):
            raise DamagedFile(index, f"lists {name!r}, which is not a file next to it", "download it again")
        if not index.with_name(name).is_file():
            raise UserError(
                index.with_name(name), f"is missing, but {index.name} lists it", "download the folder again"
            )
    return sorted(index.with_name(name) for name in names)


def _other_weights(folder: Path) -> list[Path]:
    """Returns files that may hold the weights under another name, only in the preferred format."""
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in _SUFFIXES and path.is_file() and not any(fnmatch(path.name, name) for name in _NOT_THE_MODEL)
    )
    return [path for path in found if path.suffix == _SUFFIXES[0]] or found


def _complete(files: list[Path]) -> bool:
    """Returns whether the files are all shards of one model, by their names."""
    found = [_SHARD.fullmatch(path.name) for path in files]
    kinds = {(match[1], match[3], match[4]) for match in found if match}
    numbers = [int(match[2]) for match in found if match]
    return len(kinds) == 1 and numbers == list(range(1, len(files) + 1)) and int(next(iter(kinds))[1]) == len(files)


def _unreadable(folder: Path, config: Path) -> tuple[str, str]:
    """Returns the problem and remedy of a folder without supported weights."""
    for pattern, (what, conversion) in CONVERSIONS.items():
        for path in [*sorted(folder.glob(pattern)), *sorted(folder.glob(f"*/{pattern}"))]:
            words = {"folder": path.parent, "stem": path.with_suffix(""), "config": config}
            quoted = {key: quote(str(word)) for key, word in words.items()}
            remedy = conversion.format(**quoted, name=repr(str(path.parent)))
            return f"holds {what} ({path.name}), which is not supported", remedy
    return "holds no weights", f"put {WEIGHTS[0]} or {WEIGHTS[1]} next to {config.name}"


def _what_stands_there(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    there = f"{', '.join(names[:8])}{' …' * (len(names) > 8)} found" if names else "the folder is empty"
    return f"take a complete Hugging Face BERT folder ({there})"
