"""Imports a Hugging Face BERT folder as a training state, to grow it or to train it further."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stacking.errors import DamagedFile, UserError
from stacking.huggingface.architecture import NEXT_SENTENCE, Architecture, architecture_in
from stacking.huggingface.folder import find_weights, read_config
from stacking.huggingface.names import BIAS, DECODER_BIAS, DECODER_WEIGHT, with_bias
from stacking.huggingface.tensor_names import TOKENS as TOKEN_EMBEDDING
from stacking.huggingface.tensor_names import modern_names
from stacking.model.bert import build
from stacking.model.config import ModelConfig
from stacking.model.size import parameter_shapes
from stacking.state.format import WEIGHTS, new_state
from stacking.storage.files import checksum, require_outside
from stacking.storage.pickled import described
from stacking.storage.signatures import first_bytes, refuse_other_formats
from stacking.storage.torch_file import StoredTensor, read_torch_file

Loaders = dict[str, Callable[[], Tensor]]
"""Maps a tensor's name in BertForPreTraining to a function that reads it."""
Sources = dict[str, tuple[str, ...]]
"""Maps a parameter's name to the tensors whose rows it holds."""

EXACT_IN_FP32 = (torch.float32, torch.float16, torch.bfloat16)
HEADS = ("pooler.", "mlm_head.", "nsp_head.")
"""Parameters that may be missing: BertModel has no heads, BertForMaskedLM no pooler."""

TOKENS = "bert.embeddings.word_embeddings.weight"

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts save a model's tensors, in order of preference."""
NO_WEIGHTS = (".position_ids", ".token_type_ids")
"""Buffers that old versions of transformers saved."""
_LAYER = re.compile(r"bert\.encoder\.layer\.(\d{1,9})\.")


@dataclass(frozen=True)
class ImportReport:
    """Describes an imported model, and what was unusual about its folder."""

    config: ModelConfig
    initialised: list[str]
    """Parameters that the folder lacks, initialised as in a new model, with seed 0."""
    ignored: list[str]
    """Tensors of the folder that pre-training does not use, such as a classifier."""
    notes: list[str] = field(default_factory=list)
    """Notes on unusual properties of the folder."""


def import_hugging_face(folder: Path, out: Path) -> ImportReport:
    """Writes the BERT in ``folder`` to the state folder ``out``: exact weights, without moments.

    Supports what `stacking export` writes for any variant, and BertForPreTraining, BertForMaskedLM, BertModel and other
    BERT heads, also inside another module or a training script's checkpoint; Hugging Face's ``config.json`` or Google's
    ``bert_config.json``; safetensors or pickles, sharded or not; fp32, fp16 or bf16; and ``gamma`` and ``beta`` for
    LayerNorm. Runs no code from ``folder``.

    Raises:
        UserError: ``folder`` is not a BERT encoder, lacks a tensor, or has one of the wrong shape or dtype; or ``out``
            is inside it.
        DamagedFile: a weights file is unreadable.
    """
    require_outside(out, folder)
    architecture, config, files, notes = _model_and_files(folder)
    with ExitStack() as stack:
        loaders = _loaders(files, stack, folder)
        sources, initialised, ignored = _matched(loaders, architecture, config, folder)
        if architecture.tied:
            _check_tied(loaders, folder)
        provenance = {
            "operation": "import",
            "source": folder.resolve().name,
            "files": {path.name: checksum(path) for path in files},
            "initialised": initialised,
        }
        shapes = parameter_shapes(config)
        with new_state(out, shapes, moments=False, model=config, provenance=provenance) as append:
            for name, tensor in _tensors(loaders, sources, config, folder):
                append(WEIGHTS, name, tensor.numpy().reshape(-1))
    return ImportReport(config, initialised, ignored, notes)


def read_hugging_face(folder: Path) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]], list[str]]:
    """Reads the BERT in ``folder`` for use without a state: its shape, its parameters in fp32, and the missing ones.

    The decoder may differ from the embedding, and is not read. Missing heads are initialised as by
    `import_hugging_face`.

    Raises:
        UserError: as `import_hugging_face`; also while the parameters are read.
    """
    architecture, config, files, _ = _model_and_files(folder)
    with ExitStack() as stack:
        sources, initialised, _ = _matched(_loaders(files, stack, folder), architecture, config, folder)

    def parameters() -> Iterator[tuple[str, Tensor]]:
        with ExitStack() as stack:
            yield from _tensors(_loaders(files, stack, folder), sources, config, folder)

    return config, parameters(), initialised


def _model_and_files(folder: Path) -> tuple[Architecture, ModelConfig, list[Path], list[str]]:
    """Returns the architecture of the model in ``folder``, the model, its files, and notes on what is unusual."""
    where, content = read_config(folder)
    architecture = architecture_in(content)
    config = architecture.model(content, where)
    weights = find_weights(folder, where)
    notes = [f"{where.name}: {note}" for note in architecture.notes(content)] + ([weights.note] if weights.note else [])
    head = folder / NEXT_SENTENCE
    files = [*weights.files, head] if architecture.aside and head.is_file() else weights.files
    return architecture, config, files, notes


def _loaders(files: list[Path], stack: ExitStack, folder: Path) -> Loaders:
    """Maps every tensor in the files, by its modern name, to a function that reads it lazily."""
    loaders: Loaders = {}
    for path in files:
        refuse_other_formats(path)
        loaders |= _open_pickle(path) if _is_pickle(path) else _open_safetensors(path, stack)
    return with_bias({modern: loaders[stored] for modern, stored in modern_names(loaders, folder).items()})


def _is_pickle(path: Path) -> bool:
    """Returns whether torch.save wrote the file: a zip archive or, before torch 1.6, a pickle."""
    head = first_bytes(path)
    return head.startswith((b"PK", b"\x80")) or (path.suffix != ".safetensors" and head[8:9] != b"{")


def _open_safetensors(path: Path, stack: ExitStack) -> Loaders:
    try:
        file = stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise DamagedFile(path, f"is not a safetensors file ({error})", "download it again") from None
    names = file.keys()
    return {name: partial(file.get_tensor, name) for name in names}


def _open_pickle(path: Path) -> Loaders:
    try:
        content = read_torch_file(path)
    except UserError as error:
        problem = f"cannot be read as plain tensors (it {error.problem})"
        raise DamagedFile(path, problem, "download it again, as safetensors if available") from None
    if not isinstance(content, dict):
        raise DamagedFile(path, f"holds {described(content)}, not named tensors", "save the model's state_dict")
    tensors = {
        name: value
        for name, value in _state_dict(content, path).items()
        if isinstance(name, str) and isinstance(value, StoredTensor)
    }
    return {name: partial(_read, tensor) for name, tensor in tensors.items()}


def _state_dict(content: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """Finds a model's tensors in a training script's checkpoint: the dict that holds a token embedding.

    Raises:
        UserError: there are several, and none has a model's key.
    """
    found = {place: inner for place, inner in _dicts(content) if any(_is_embedding(name) for name in inner)}
    for place in ((), *((name,) for name in WRAPPERS)):
        if place in found:
            return found[place]
    if len(found) > 1:
        places = " and ".join(repr(".".join(place)) for place in found)
        raise UserError(path, f"holds several models, under {places}", "save the state_dict of the one to use")
    return next(iter(found.values()), content)


def _dicts(content: dict[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Yields ``content`` and the dicts in it, two levels deep, each with its path of keys."""
    yield (), content
    for key, inner in content.items():
        if isinstance(inner, dict):
            yield (str(key),), inner
            for name, innermost in inner.items():
                if isinstance(innermost, dict):
                    yield (str(key), str(name)), innermost


def _is_embedding(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(TOKEN_EMBEDDING)


def _read(stored: StoredTensor) -> Tensor:
    return torch.from_numpy(stored.read()).view(stored.shape)


def _left_out(loaders: Loaders, sources: Sources, known: set[str], config: ModelConfig, folder: Path) -> list[str]:
    """Returns the tensors that pre-training does not use; rejects those of an encoder other than BERT."""
    used = {name for names in sources.values() for name in names} | {DECODER_WEIGHT, DECODER_BIAS} | known
    ignored = sorted(set(loaders) - used)
    for name in ignored:
        layer = _LAYER.match(name)
        beyond = layer is not None and int(layer[1]) >= config.layers
        if name.startswith(("bert.embeddings.", "bert.encoder.")) and not name.endswith(NO_WEIGHTS) and not beyond:
            problem = "is part of the encoder, but BERT has no such tensor"
            raise UserError(f"{folder}: {name}", problem, "only an ordinary BERT can be used here")
    return ignored


def _matched(
    loaders: Loaders, architecture: Architecture, config: ModelConfig, folder: Path
) -> tuple[Sources, list[str], list[str]]:
    """Maps each parameter to its tensors; also returns the head parameters that have none, and the tensors left out.

    Raises:
        UserError: the encoder lacks a tensor, or one is left out that belongs to another encoder or was changed.
    """
    sources: Sources = {}
    initialised = []
    for name, theirs in architecture.names(config).items():
        missing = [their for their in theirs if their not in loaders]
        if not missing:
            sources[name] = theirs
        elif name.startswith(HEADS):
            initialised.append(name)
        else:
            raise UserError(folder, f"has no tensor {missing[0]}", "give a complete BERT with its own config.json")
    known = _check_derived(loaders, sources, config, architecture, folder)
    return sources, initialised, _left_out(loaders, sources, known, config, folder)


def _check_tied(loaders: Loaders, folder: Path) -> None:
    """Rejects a decoder that is not tied to the embedding, since this model shares one matrix."""
    for name, tied in ((DECODER_WEIGHT, TOKENS), (DECODER_BIAS, BIAS)):
        if name in loaders and not torch.equal(loaders[name](), loaders[tied]()):
            raise UserError(f"{folder}: {name}", f"differs from {tied}", "only models with tied embeddings can be used")


def _check_derived(
    loaders: Loaders, sources: Sources, config: ModelConfig, architecture: Architecture, folder: Path
) -> set[str]:
    """Checks the tensors that an export computes and that the model has no parameters for; returns their names.

    Raises:
        UserError: one was changed after the export, so that the model cannot express it.
    """
    expected = architecture.constants(config)
    for name, theirs in sources.items():
        derived = [piece.name for piece in architecture.exported(config, name) if piece.name not in theirs]
        if any(their in loaders for their in derived):
            values = torch.cat([loaders[their]().float() for their in theirs]).numpy()
            expected |= {
                piece.name: piece.values
                for piece in architecture.exported(config, name, values)
                if piece.name in derived and piece.values is not None
            }
    for name, values in expected.items():
        if name in loaders and not torch.equal(loaders[name](), torch.from_numpy(values)):
            problem = f"is not what the {config.variant} model has there: it was changed after the export"
            raise UserError(f"{folder}: {name}", problem, "import the folder as it was exported")
    return set(expected)


def _tensors(loaders: Loaders, sources: Sources, config: ModelConfig, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters in order, in fp32, one at a time."""
    shapes = parameter_shapes(config)
    fresh: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name not in sources:
            fresh = fresh or _fresh(config)  # the heads come last: all other sizes have been checked by now
            yield name, fresh[name]
            continue
        rows = shape[0] // len(sources[name])
        pieces = [_checked(loaders[theirs](), theirs, (rows, *shape[1:]), folder) for theirs in sources[name]]
        yield name, torch.cat(pieces)


def _checked(tensor: Tensor, name: str, shape: tuple[int, ...], folder: Path) -> Tensor:
    if tuple(tensor.shape) != shape:
        problem = f"has shape {list(tensor.shape)} where config.json asks for {list(shape)}"
        remedy = "give the config.json that belongs to these weights"
        if name in (TOKENS, BIAS) and tensor.shape and tensor.shape[0] > shape[0]:
            remedy = f"set vocab_size to {tensor.shape[0]} if the vocabulary was padded"
        raise UserError(f"{folder}: {name}", problem, remedy)
    if tensor.dtype not in EXACT_IN_FP32:
        problem = f"is {str(tensor.dtype).removeprefix('torch.')}, which fp32 cannot hold exactly"
        raise UserError(f"{folder}: {name}", problem, "save the model in fp32, fp16 or bf16")
    return tensor.float()


def _fresh(config: ModelConfig) -> dict[str, Tensor]:
    """Returns a new model's heads, always the same; does not change the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config.with_layers(1))
    return {name: parameter.detach() for name, parameter in model.named_parameters() if name.startswith(HEADS)}
