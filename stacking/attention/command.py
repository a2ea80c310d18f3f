"""Implements `stacking attention`: measures a model and writes the numbers, the pictures and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stacking.attention.found import FoundModel, find_model
from stacking.attention.measure import Example, measure, shown
from stacking.attention.page import write_page
from stacking.attention.pictures import write_pictures
from stacking.attention.result import Attention
from stacking.attention.text import FileText, HeldOutText, Text
from stacking.data.sampler import SAMPLERS
from stacking.errors import UserError
from stacking.planning.initial_vocabulary import LEAST_SHARE, data_of_run_around, read_words
from stacking.storage.files import new_folder, require_outside
from stacking.terminal.progress_bar import progress

if TYPE_CHECKING:
    from stacking.attention.probe import Probe

_MANIFEST = {"kind": "attention", "format": 1}
_KIND, _SEQUENCE_LENGTH = "segment-pair", 128
_SEED = 0
"""For the partners in pairs: every measurement of the same data sees the same ones."""
_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class AttentionRequest:
    """What to measure, according to the options of the command."""

    data: Path | None = None
    text: Path | None = None
    tokenizer: Path | None = None
    kind: str | None = None
    sequence_length: int | None = None
    samples: int = 1024
    window: int = 16
    sentences: Sequence[str] = ()


def write_attention(model: Path, out: Path, wanted: AttentionRequest) -> Attention:
    """Writes ``attention.json``, the pictures and ``attention.html`` to the folder ``out``.

    Raises:
        UserError: the model is not an encoder or does not fit the text, or an option has no effect.
        DamagedFile: a file is truncated or altered.
    """
    require_outside(out, model)
    attention, examples = _measured(model, wanted, _EXAMPLES)
    with new_folder(out, _MANIFEST) as folder:
        attention.write(folder)
        write_pictures(attention, examples, folder)
        write_page(attention, examples, folder, model)
    return attention


def write_snapshot(model: Path, out: Path, wanted: AttentionRequest) -> Attention:
    """Writes ``attention.json`` alone, for a run that follows its attention.

    Raises:
        UserError: as for `write_attention`.
    """
    attention, _ = _measured(model, wanted, 0)
    with new_folder(out, _MANIFEST) as folder:
        attention.write(folder)
    return attention


def _measured(model: Path, wanted: AttentionRequest, examples: int) -> tuple[Attention, list[Example]]:
    found = find_model(model)
    _refuse_contradictions(wanted)
    tokenizer, kind = _source(found, wanted)
    from stacking.attention.probe import open_probe  # torch

    probe = open_probe(found)
    length = _sequence_length(found, wanted, probe)
    text: Text
    if wanted.text is not None:
        text = FileText(wanted.text, tokenizer, length)
    else:
        text = HeldOutText(tokenizer, kind, length, _SEED)
    if text.vocabulary > probe.vocabulary:
        problem = f"has a vocabulary of {text.vocabulary:,}, but the model embeds {probe.vocabulary:,} tokens"
        raise UserError(tokenizer, problem, "give the data or the tokenizer that the model was made for")
    _check_words(found, tokenizer)
    with progress("measuring attention", wanted.samples) as done:
        attention = measure(probe, str(model), text, wanted.samples, length, wanted.window, done)
    return attention, shown(probe, text, wanted.sentences, examples)


def _refuse_contradictions(wanted: AttentionRequest) -> None:
    if wanted.data is not None and wanted.text is not None:
        raise UserError("--text", "is given beside --data", "give one of the two")
    if wanted.tokenizer is not None and wanted.text is None:
        raise UserError("--tokenizer", "has no effect without --text", "omit it; data have their own tokenizer")
    if wanted.kind is not None and wanted.text is not None:
        raise UserError("--kind", "has no effect with --text", "omit it")
    if wanted.kind is not None and wanted.kind not in SAMPLERS:
        raise UserError("--kind", f"there is no kind {wanted.kind!r}", f"use one of {', '.join(SAMPLERS)}")


def _source(found: FoundModel, wanted: AttentionRequest) -> tuple[Path, str]:
    """Returns the folder of the tokenizer, which is that of the data if there are any, and the kind of samples.

    Raises:
        UserError: no text is named, or no tokenizer for it.
    """
    of_run = Path(found.data.path) if found.data is not None and found.data.path is not None else None
    own = found.path if found.kind == "huggingface" else of_run
    kind = wanted.kind or (found.data.samples if found.data is not None else _KIND)
    if wanted.text is not None:
        tokenizer = wanted.tokenizer or own
        if tokenizer is None:
            raise UserError("--tokenizer", "is missing", "give the folder of the model's tokenizer, such as its data")
        return tokenizer, kind
    data = wanted.data or of_run
    if data is None:
        raise UserError("--data", "is missing", "give the prepared data of the model, or --text FILE")
    return data, kind


def _sequence_length(found: FoundModel, wanted: AttentionRequest, probe: Probe) -> int:
    longest = probe.longest
    if wanted.sequence_length is None:
        usual = found.data.sequence_length if found.data is not None else _SEQUENCE_LENGTH
        return usual if longest is None else min(usual, longest)
    if longest is not None and wanted.sequence_length > longest:
        problem = f"{wanted.sequence_length:,} tokens are more than the model's {longest:,} positions"
        raise UserError("--sequence-length", problem, f"use {longest:,} or less")
    return wanted.sequence_length


def _check_words(found: FoundModel, tokenizer: Path) -> None:
    """Compares the vocabulary of the text with the model's, entry by entry, where both are known.

    Raises:
        UserError: too few entries are the same.
    """
    own = found.path if found.kind == "huggingface" else data_of_run_around(found.path)
    if own is None or own.resolve() == tokenizer.resolve():
        return
    ours, theirs = read_words(tokenizer), read_words(own)
    if not ours or not theirs:
        return
    same = sum(theirs.get(number) == word for number, word in ours.items())
    if same < LEAST_SHARE * len(ours):
        problem = f"has a different vocabulary from {own}: {same:,} of {len(ours):,} entries agree"
        raise UserError(tokenizer, problem, "give the data or the tokenizer that the model was made for")
