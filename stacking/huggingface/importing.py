"""A Hugging Face BERT folder as a training state, to grow or to go on from."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stacking.errors import DamagedFile, UserError
from stacking.huggingface.names import from_hugging_face, hugging_face_names
from stacking.model.bert import build
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.format import WEIGHTS, StateWriter
from stacking.storage.files import checksum, read_json

Loaders = dict[str, Callable[[], Tensor]]
"""By a tensor's name in BertForPreTraining, what reads it."""
Sources = dict[str, tuple[str, ...]]
"""By our parameter's name, the tensors whose rows it holds."""

EXACT_IN_FP32 = (torch.float32, torch.float16, torch.bfloat16)
HEADS = ("pooler.", "mlm_head.", "nsp_head.")
"""Parameters that a checkpoint may lack: BertModel has no heads, BertForMaskedLM no pooler."""

TOKENS = "bert.embeddings.word_embeddings.weight"
BIAS = "cls.predictions.bias"
DECODER_WEIGHT, DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
"""The decoder is tied to the embedding and to the bias, but some checkpoints store it once more."""


@dataclass(frozen=True)
class ImportReport:
    """What became of a Hugging Face folder."""

    config: ModelConfig
    initialised: list[str]
    """Our parameters that the folder does not have: drawn as for a new model, with seed 0."""
    ignored: list[str]
    """Tensors of the folder that pre-training has no use for, such as a classifier."""


def import_hugging_face(folder: Path, out: Path) -> ImportReport:
    """Write the BERT in ``folder`` to the state folder ``out``: weights bit for bit, without moments.

    Takes BertForPreTraining, BertForMaskedLM, BertModel and other BERT heads; ``model.safetensors`` or
    ``pytorch_model.bin``, whole or in shards; fp32, fp16 or bf16; ``gamma`` and ``beta`` for LayerNorm as well.
    No code from ``folder`` runs.

    Raises:
        UserError: ``folder`` is not a BERT encoder, or lacks a tensor, or one has the wrong shape or type.
        DamagedFile: a weights file cannot be read.
    """
    if not folder.is_dir():
        raise UserError(folder, "is not a folder", "give a Hugging Face folder with config.json and weights")
    config = from_hugging_face(read_json(folder / "config.json"), folder / "config.json")
    files = _weight_files(folder)
    with ExitStack() as stack:
        loaders = _loaders(files, stack)
        sources, initialised = _match(loaders, config, folder)
        _check_tied(loaders, folder)
        used = {name for names in sources.values() for name in names} | {DECODER_WEIGHT, DECODER_BIAS}
        provenance = {
            "operation": "import",
            "source": folder.resolve().name,
            "files": {path.name: checksum(path) for path in files},
            "initialised": initialised,
        }
        writer = StateWriter(out, parameter_shapes(config), moments=False, model=config, provenance=provenance)
        with writer:
            for name, tensor in _tensors(loaders, sources, config, folder):
                writer.append(WEIGHTS, name, tensor.numpy().reshape(-1))
    return ImportReport(config, initialised, sorted(set(loaders) - used))


def _weight_files(folder: Path) -> list[Path]:
    """The files with the weights: one, or the shards that an index lists; safetensors before pickles."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = _shards(index)
            for shard in shards:
                if not shard.is_file():
                    raise UserError(shard, f"is missing, but {index.name} lists it", "download the folder again")
            return shards
    raise UserError(folder, "holds no weights", "put model.safetensors or pytorch_model.bin beside config.json")


def _shards(index: Path) -> list[Path]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedFile(index, "has no weight_map", "download it again")
    shards = {str(shard) for shard in weight_map.values()}
    for shard in shards:
        if shard != Path(shard).name or Path(shard).suffix not in (".safetensors", ".bin"):
            raise DamagedFile(index, f"lists {shard!r}, which is no file beside it", "download it again")
    return sorted(index.with_name(shard) for shard in shards)


def _loaders(files: list[Path], stack: ExitStack) -> Loaders:
    """For every tensor in the files, under its modern name, a call that reads it; none is read yet."""
    loaders: Loaders = {}
    for path in files:
        found = _open_safetensors(path, stack) if path.suffix == ".safetensors" else _open_pickle(path)
        loaders |= {_modern(name): load for name, load in found.items()}
    return loaders


def _open_safetensors(path: Path, stack: ExitStack) -> Loaders:
    try:
        file = stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise DamagedFile(path, f"is not a safetensors file ({error})", "download it again") from None
    names = file.keys()
    return {name: partial(file.get_tensor, name) for name in names}


def _open_pickle(path: Path) -> Loaders:
    # weights_only refuses everything but tensors and plain containers; files from before torch 1.6 cannot be mapped.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which are refused or read all the same
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:  # torch's own words advise to run the file
        problem = "cannot be read as plain tensors (it holds something else, or is torn)"
        raise DamagedFile(path, problem, "download it again, as safetensors if there is a choice") from None
    except Exception as error:  # a torn pickle may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DamagedFile(path, f"cannot be read as plain tensors ({reason})", "download it again") from None
    if not isinstance(tensors, dict):
        raise DamagedFile(path, f"holds a {type(tensors).__name__}, not named tensors", "save the model's state_dict")
    return {
        str(name): partial(tensors.__getitem__, name) for name, tensor in tensors.items() if isinstance(tensor, Tensor)
    }


def _modern(name: str) -> str:
    """The name as BertForPreTraining has it today: with its prefix, ``weight`` for ``gamma``, ``bias`` for ``beta``."""
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"bert.{name}"
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _match(loaders: Loaders, config: ModelConfig, folder: Path) -> tuple[Sources, list[str]]:
    """For each parameter of ours the tensors that it is made of, and the parameters of heads that have none."""
    if BIAS not in loaders and DECODER_BIAS in loaders:
        loaders[BIAS] = loaders[DECODER_BIAS]
    sources: Sources = {}
    initialised = []
    for name, theirs in hugging_face_names(config).items():
        missing = [their for their in theirs if their not in loaders]
        if not missing:
            sources[name] = theirs
        elif name.startswith(HEADS):
            initialised.append(name)
        else:
            raise UserError(folder, f"has no tensor {missing[0]}", "give a complete BERT whose config.json is its own")
    return sources, initialised


def _check_tied(loaders: Loaders, folder: Path) -> None:
    """Refuse a decoder that has weights of its own: this model has one matrix for both."""
    for name, tied in ((DECODER_WEIGHT, TOKENS), (DECODER_BIAS, BIAS)):
        if name in loaders and not torch.equal(loaders[name](), loaders[tied]()):
            raise UserError(f"{folder}: {name}", f"differs from {tied}", "only models with tied embeddings can be used")


def _tensors(loaders: Loaders, sources: Sources, config: ModelConfig, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Our parameters in order, in fp32, one in memory at a time."""
    shapes = parameter_shapes(config)
    fresh = {} if sources.keys() == shapes.keys() else _fresh(config)
    for name, shape in shapes.items():
        if name not in sources:
            yield name, fresh[name]
            continue
        rows = shape[0] // len(sources[name])
        pieces = [_checked(loaders[theirs](), theirs, (rows, *shape[1:]), folder) for theirs in sources[name]]
        yield name, torch.cat(pieces)


def _checked(tensor: Tensor, name: str, shape: tuple[int, ...], folder: Path) -> Tensor:
    if tuple(tensor.shape) != shape:
        problem = f"has shape {list(tensor.shape)} where config.json asks for {list(shape)}"
        raise UserError(f"{folder}: {name}", problem, "give the config.json that belongs to these weights")
    if tensor.dtype not in EXACT_IN_FP32:
        problem = f"is {str(tensor.dtype).removeprefix('torch.')}, which fp32 cannot hold exactly"
        raise UserError(f"{folder}: {name}", problem, "save the model in fp32, fp16 or bf16")
    return tensor.float()


def _fresh(config: ModelConfig) -> dict[str, Tensor]:
    """A new model's heads, the same every time; the caller's random generator is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config.with_layers(1))
    return {name: parameter.detach() for name, parameter in model.named_parameters() if name.startswith(HEADS)}
