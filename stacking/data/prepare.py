"""Text to a prepared data folder: fetch, scan, vocabulary, parts, shards.

Everything happens in the hidden sibling ``.NAME.partial`` of the output, where each finished piece of work is stored
under a name that contains a digest of what it was made from. A later try after any kind of end finds the pieces it can
use, makes the others, and gives the same bytes. One rename makes the result complete; memory holds a few parts of
``shards.PART_CHARACTERS`` for each worker and the sample for the vocabulary, whatever the input's size. On disk the
work needs about twice the result.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash
from tokenizers import Tokenizer

from stacking.data import vocabulary
from stacking.data.corpus import FORMAT, KIND, SPLITS, Corpus, load_manifest
from stacking.data.embedded import LIMIT, embedded_documents, embedded_sources, fingerprint
from stacking.data.encode import Encoder
from stacking.data.given import load
from stacking.data.readers import dataset_documents, find_files, is_dataset
from stacking.data.scan import Input, Scan, held_out_threshold, input_documents, scan_file
from stacking.data.sentences import split_sentences
from stacking.data.shards import PART_CHARACTERS, Part, document_hash, is_whole, merge_parts, write_part
from stacking.data.unknown import check_unknown, unknown_cause, unknown_share
from stacking.data.vocabulary import Vocabulary
from stacking.data.workers import Workers, available_cores, worker_processes
from stacking.data.written import check_written
from stacking.errors import UserError
from stacking.storage.files import MANIFEST, checksum, disk_errors, move_folder, seal_folder
from stacking.terminal.progress_bar import progress

EMBEDDED = "embedded"
_COMPARED_CHARACTERS = 200_000
"""Text of which the shards are compared with the tokenizer that is written beside them."""
_COMPARED_TOKENS = 4 * _COMPARED_CHARACTERS


@dataclass(frozen=True)
class Options:
    """What shapes the result, beside the text; recorded in the manifest."""

    vocabulary_size: int
    lowercase: bool
    tokenizer: str | None
    """Checksum of the tokenizer that was given."""
    held_out: float
    seed: int


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` made or found."""

    folder: Path
    manifest: dict[str, Any]
    already_there: bool
    warnings: tuple[str, ...] = ()


def prepare(
    inputs: Sequence[str],
    out: Path,
    *,
    vocabulary_size: int = 30_522,
    lowercase: bool = True,
    tokenizer: Path | None = None,
    held_out: float = 0.01,
    held_out_inputs: Sequence[str] = (),
    embedded: bool = False,
    workers: int | None = None,
    seed: int = 0,
) -> Prepared:
    """Make the prepared data folder ``out``; the same bytes for the same text and options, whatever ``workers``.

    Args:
        inputs: files, folders, or names of Hugging Face datasets (``NAME`` or ``NAME:CONFIGURATION``).
        vocabulary_size: most entries of the vocabulary to train; not used with ``tokenizer``.
        lowercase: whether the vocabulary folds case and strips accents; decides for a bare ``vocab.txt`` too.
        tokenizer: an existing WordPiece tokenizer to use instead of training one.
        held_out: share of the documents to hold out, chosen by a hash of their content; at least one is.
        held_out_inputs: take the held-out split from these instead, and everything else for training.
        embedded: add the embedded corpus (``embedded``) to the inputs.
        workers: processes; all available cores by default.

    Raises:
        UserError: an input cannot be read, holds no text or too few documents, or ``out`` holds something else.
        NoSpace: the disk is full; what is done so far is used by the next try.
    """
    out = Path(out)
    _check(inputs, embedded, vocabulary_size, held_out, workers)
    _refuse_nesting(out, [*inputs, *held_out_inputs])
    given = load(Path(tokenizer), cased=not lowercase) if tokenizer is not None else None
    digest = _tokenizer_digest(given) if given else None
    options = Options(0 if given else vocabulary_size, bool(lowercase and not given), digest, held_out, seed)
    existing = _existing(out, options)
    with _work_folder(out) as work, worker_processes(workers or available_cores()) as processes:
        job = _Job(work, options, processes)
        texts = job.find(inputs, held_out_inputs, embedded, fetch=existing is None)
        scans = [job.scan(text) for text in texts]
        source = [_source(text, scan) for text, scan in zip(texts, scans, strict=True)]
        if existing is not None:
            return _already_prepared(out, existing, source)
        threshold = held_out_threshold(texts, scans, held_out)
        ready = given or Vocabulary(job.train_vocabulary(texts, scans, threshold))
        sentences = list(_first_sentences(texts, threshold, seed))
        warnings = _warnings(tokenizer, ready.tokenizer, sentences)
        manifest = job.write(texts, sum(scan.characters for scan in scans), threshold, ready, source)
        check_written(work / "result", sentences, Corpus(work / "result").head(_COMPARED_TOKENS))
        move_folder(work / "result", out)
        shutil.rmtree(work)
    return Prepared(out, manifest, already_there=False, warnings=warnings)


class _Job:
    """The steps, and what they share: the folder of the work, the options, the processes."""

    def __init__(self, work: Path, options: Options, workers: Workers) -> None:
        self.work, self.options, self.workers = work, options, workers

    def find(self, inputs: Sequence[str], held_out: Sequence[str], embedded: bool, fetch: bool) -> list[Input]:
        """The inputs as files. What is not a file yet (a dataset, the embedded corpus) is fetched into one first."""
        found = [self._input(name, False, fetch) for name in inputs]
        if embedded:
            found.append(self._embedded(fetch))
        return found + [self._input(name, True, fetch) for name in held_out]

    def _input(self, name: str, is_held_out: bool, fetch: bool) -> Input:
        if not is_dataset(name):
            return Input(name, tuple(find_files(name)), is_held_out)
        identity = xxhash.xxh3_128_hexdigest(name.encode())
        files = (self._fetch(identity, dataset_documents(name)),) if fetch else ()
        return Input(name, files, is_held_out, identity)

    def _embedded(self, fetch: bool) -> Input:
        sources = embedded_sources()
        identity = fingerprint(sources)
        files: tuple[Path, ...] = ()
        if fetch:
            with progress("embedded corpus", LIMIT) as done:
                files = (self._fetch(identity, _counted(embedded_documents(sources, self.workers.executor), done)),)
        return Input(EMBEDDED, files, False, identity)

    def _fetch(self, identity: str, texts: Iterator[str]) -> Path:
        """``texts`` as a JSONL file of the work folder, unless an earlier try finished it."""
        path = self.work / f"fetched-{identity}.jsonl"
        if not path.exists():
            partial = path.with_suffix(".partial")
            try:
                with open(partial, "w", encoding="utf-8") as file:
                    file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        return path

    def scan(self, text: Input) -> Scan:
        """Read an input once: is all of it readable, how much is it, and which hashes decide the split."""
        total = Scan()
        limit = int(self.options.held_out * 2**64)
        with progress(f"reading {text.name}", len(text.files)) as done:
            for result in self.workers.map(scan_file, text.files, limit, self.options.seed):
                if not isinstance(result, Scan):
                    raise UserError(*result)
                total += result
                done(1)
        if text.files and not total.documents:
            raise UserError(text.name, "holds no text", "give a file or folder with text in it")
        return total

    def train_vocabulary(self, texts: list[Input], scans: list[Scan], threshold: int) -> Tokenizer:
        """Train on a sample of the documents that are not held out, unless an earlier try did."""
        contents = "".join(scan.digest for scan in scans) + repr((self.options, threshold))
        folder = self.work / f"vocabulary-{xxhash.xxh3_128_hexdigest(contents.encode())}"
        if not folder.exists():
            kept = [scan.characters for text, scan in zip(texts, scans, strict=True) if not text.is_held_out]
            share = min(1.0, vocabulary.SAMPLE_CHARACTERS / max(sum(kept), 1))
            with progress("vocabulary", 1):
                sample = list(_sample(texts, share, threshold, self.options.seed))
                trained = vocabulary.train(sample, self.options.vocabulary_size, self.options.lowercase)
            partial = folder.with_suffix(".partial")
            vocabulary.save(trained, partial)
            os.replace(partial, folder)
        return Tokenizer.from_file(str(folder / "tokenizer.json"))

    def write(
        self, texts: list[Input], characters: int, threshold: int, words: Vocabulary, source: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Tokenize into parts, merge them into shards, seal the result; returns its manifest."""
        result = self.work / "result"
        shutil.rmtree(result, ignore_errors=True)
        tokenizer, special = words
        vocabulary.save(tokenizer, result, special)
        parts = self._write_parts(texts, characters, threshold, result / "tokenizer.json")
        entries = vocabulary.size_of(tokenizer)
        splits = {split: merge_parts(parts, result, split, entries) for split in SPLITS}
        for split, counts in splits.items():
            if not counts["tokens"]:
                raise UserError(source[0]["input"], f"leaves the {split} split without a token", "give more text")
        manifest = {
            "kind": KIND,
            "format": FORMAT,
            "vocabulary": entries,
            "special": vocabulary.special_ids(tokenizer, special),
            "splits": splits,
            "options": asdict(self.options),
            "source": source,
            "digest": _digest(result),
        }
        seal_folder(result, manifest)
        return manifest

    def _write_parts(self, texts: list[Input], characters: int, threshold: int, tokenizer: Path) -> list[Path]:
        folder = self.work / "parts"
        folder.mkdir(exist_ok=True)
        digest = checksum(tokenizer)
        paths = []
        with progress("tokens", characters) as done:
            tasks = _parts(texts, threshold, self.options.seed)
            for path, size in self.workers.map(_make_part, tasks, folder, digest, tokenizer):
                paths.append(path)
                done(size)
        _encoder.cache_clear()
        return paths


def _check(inputs: Sequence[str], embedded: bool, size: int, held_out: float, workers: int | None) -> None:
    """Refuse options that mean nothing."""
    smallest, largest = vocabulary.SMALLEST, vocabulary.LARGEST
    if not inputs and not embedded:
        raise UserError("prepare", "has no input", "give files, folders or a dataset, or --embedded")
    if not smallest <= size <= largest:
        raise UserError("--vocabulary-size", f"{size:,} is out of range", f"use {smallest:,} to {largest:,}")
    if not 0 < held_out < 1:
        raise UserError("--held-out", f"{held_out} is not a share", "use a number above 0 and below 1, such as 0.01")
    if workers is not None and workers < 1:
        raise UserError("--workers", f"{workers} processes do no work", "use 1 or more")


def _refuse_nesting(out: Path, inputs: Sequence[str]) -> None:
    """Refuse to write where the text is read: the next try would take the result for text."""
    for name in inputs:
        if not name:
            raise UserError("prepare", "has an input without a name", "give files, folders or a dataset")
        if Path(name).is_dir() and out.resolve().is_relative_to(Path(name).resolve()):
            raise UserError(out, f"lies inside the input {name}", "choose an --out outside of the text")


def _existing(out: Path, options: Options) -> dict[str, Any] | None:
    """The manifest of what stands at ``out``, None where nothing does."""
    if out.is_dir() and not any(out.iterdir()):
        return None
    if out.exists() and not (out / MANIFEST).is_file():
        raise UserError(out, "exists and is not a prepared data folder", "choose another --out")
    if not out.exists():
        return None
    manifest = load_manifest(out)
    recorded, asked = manifest.get("options", {}), asdict(options)
    different = [name for name in asked if recorded.get(name) != asked[name]]
    if different:
        problem = f"was prepared with another {' and '.join(different)}"
        raise UserError(out, problem, "choose another --out or remove the folder")
    return manifest


def _already_prepared(out: Path, manifest: dict[str, Any], source: list[dict[str, Any]]) -> Prepared:
    """``out`` as it is, when it was made from this ``source``."""

    def identities(entries: list[dict[str, Any]]) -> list[tuple[str, bool]]:
        return [(entry["identity"], entry["held_out"]) for entry in entries]

    if identities(manifest["source"]) != identities(source):
        raise UserError(out, "was prepared from other text", "choose another --out or remove the folder")
    return Prepared(out, manifest, already_there=True)


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """The folder of the work on ``out``, kept for the next try, for one process at a time."""
    work = out.with_name(f".{out.name}.partial")
    with disk_errors(out):
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(out, "is being prepared by another process", "wait for it or stop it") from None
            try:
                yield work
            finally:
                if all(path.name == "lock" for path in work.glob("*")):
                    shutil.rmtree(work, ignore_errors=True)


def _source(text: Input, scan: Scan) -> dict[str, Any]:
    """An input as the manifest tells it."""
    return {
        "input": text.name,
        "held_out": text.is_held_out,
        "files": len(text.files),
        "bytes": sum(file.stat().st_size for file in text.files),
        "documents": scan.documents,
        "identity": text.identity or scan.digest,
    }


def _tokenizer_digest(given: Vocabulary) -> str:
    """A digest of a tokenizer and of the names of its special tokens, where these are not BERT's."""
    names = "" if given.special == vocabulary.SPECIAL_TOKENS else repr(sorted(given.special.items()))
    return xxhash.xxh3_128_hexdigest((given.tokenizer.to_str() + names).encode())


def _first_sentences(texts: list[Input], threshold: int, seed: int) -> Iterator[str]:
    """The first sentences of the training split, ``_COMPARED_CHARACTERS`` together."""
    left = _COMPARED_CHARACTERS
    for document in input_documents(texts, is_held_out=False):
        if document_hash(document, seed) >= threshold:
            for sentence in split_sentences(document):
                left -= len(sentence)
                if left < 0:
                    return
                yield sentence


def _warnings(given: Path | None, tokenizer: Tokenizer, sentences: list[str]) -> tuple[str, ...]:
    """What the first sentences say against the vocabulary.

    Raises:
        UserError: nearly all of their tokens are [UNK].
    """
    where = f"--tokenizer {given}" if given is not None else "the vocabulary"
    share = unknown_share(tokenizer, sentences)
    warning = check_unknown(share, lambda: unknown_cause(tokenizer, sentences), where)
    return (warning,) if warning else ()


def _sample(texts: list[Input], share: float, threshold: int, seed: int) -> Iterator[str]:
    """About ``share`` of the training documents, by another hash of their content, up to the sample's size."""
    limit, left = int(share * 2**64), vocabulary.SAMPLE_CHARACTERS
    for document in input_documents(texts, is_held_out=False):
        if document_hash(document, seed) >= threshold and document_hash(document, ~seed) < limit:
            yield document
            left -= len(document)
            if left <= 0:
                return


def _parts(texts: list[Input], threshold: int, seed: int) -> Iterator[Part]:
    """All documents in order, in parts; those of held-out inputs in parts of their own."""
    number = 0
    for is_held_out, limit in ((False, threshold), (True, 2**64)):
        batch: list[str] = []
        size = 0
        for document in input_documents(texts, is_held_out):
            batch.append(document)
            size += len(document)
            if size >= PART_CHARACTERS:
                yield Part(number, batch, limit, seed)
                batch, size, number = [], 0, number + 1
        if batch:
            yield Part(number, batch, limit, seed)
            number += 1


def _make_part(part: Part, folder: Path, tokenizer_digest: str, tokenizer: Path) -> tuple[Path, int]:
    """Write a part, unless it is there; returns its file and how many characters it covers."""
    path = part.path(folder, tokenizer_digest)
    if not is_whole(path):
        write_part(part, _encoder(tokenizer, tokenizer_digest), path)
    return path, part.characters()


@lru_cache(maxsize=1)
def _encoder(tokenizer: Path, digest: str) -> Encoder:
    """The encoder of this process, with the words that it met in earlier parts."""
    return Encoder(Tokenizer.from_file(str(tokenizer)))


def _digest(folder: Path) -> str:
    """A digest of every shard and of the tokenizer: of the data, wherever and however they were made."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix == ".npy")
    entries = [f"{name}:{checksum(folder / name)}" for name in [*names, "tokenizer.json"]]
    return xxhash.xxh3_128_hexdigest("\n".join(entries).encode())


def _counted(texts: Iterator[str], done: Any) -> Iterator[str]:
    for text in texts:
        yield text
        done(len(text))
