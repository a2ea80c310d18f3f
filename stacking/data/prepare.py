"""Prepares a data folder from text: fetch, scan, vocabulary, parts, shards.

All work happens in the hidden sibling ``.NAME.partial`` of the output, where each finished piece is stored under a name
that contains a digest of its inputs. After an interruption of any kind, the next run reuses the finished pieces, makes
the others and produces the same bytes. A single rename publishes the result. Memory holds a few parts of
``shards.PART_CHARACTERS`` per worker and the sample for the vocabulary, for any size of input. The work needs disk
space of about twice the result.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from stacking.data.find import FoundFiles, find_files
from stacking.data.given import load
from stacking.data.held_out import ALL, is_held_out
from stacking.data.hub import dataset_documents, is_dataset
from stacking.data.readers import TextFile
from stacking.data.rows import keys_of
from stacking.data.scan import Input, Scan, choose_held_out, finer_cut, input_documents, scan_file
from stacking.data.sentences import SENTENCE_END, split_sentences
from stacking.data.shards import PART_CHARACTERS, DocumentRange, document_hash, is_whole, merge_parts, write_part
from stacking.data.summary import read_as
from stacking.data.unknown import check_unknown, unknown_cause, unknown_share
from stacking.data.vocabulary import Vocabulary
from stacking.data.workers import Workers, worker_processes
from stacking.data.written import check_written
from stacking.errors import UserError
from stacking.hardware.cores import usable_cores
from stacking.storage.files import MANIFEST, checksum, disk_errors, move_folder, seal_folder
from stacking.terminal.progress_bar import progress

EMBEDDED = "embedded"
VOCABULARY_SIZE, HELD_OUT = 30_522, 0.01
_COMPARED_CHARACTERS = 200_000
"""Amount of text on which the vocabulary is checked and the shards are compared with the written tokenizer."""
_COMPARED_TOKENS = 4 * _COMPARED_CHARACTERS


@dataclass(frozen=True)
class Options:
    """The options that shape the result, in addition to the text; recorded in the manifest."""

    vocabulary_size: int
    lowercase: bool
    tokenizer: str | None
    """Checksum of the given tokenizer."""
    held_out: float
    seed: int


@dataclass(frozen=True)
class Prepared:
    """A prepared data folder and its manifest."""

    folder: Path
    manifest: dict[str, Any]
    already_there: bool
    """Whether an earlier call had prepared it already."""
    warnings: tuple[str, ...] = ()


def prepare(
    inputs: Sequence[str],
    out: Path,
    *,
    vocabulary_size: int | None = None,
    lowercase: bool = True,
    tokenizer: Path | None = None,
    held_out: float | None = None,
    held_out_inputs: Sequence[str] = (),
    embedded: bool = False,
    format: str | None = None,
    text_key: str | None = None,
    workers: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Creates the prepared data folder ``out``; the same text and options give the same bytes for any ``workers``.

    The help of `stacking prepare` says what the options do.

    Args:
        lowercase: whether the vocabulary folds case and strips accents; also applies to a bare ``vocab.txt``.
        held_out: share of the text to hold out, in whole documents chosen by a hash of their content, at least one.
        say: receives what is read and what is skipped, line by line.

    Raises:
        UserError: an input cannot be read, holds no text or too few documents, or ``out`` holds something else.
        NoSpace: the disk is full; the next run reuses what is done.
    """
    out = Path(out)
    if not inputs and not embedded:
        raise UserError("prepare", "has no input", "give files, folders or a dataset, or --embedded")
    _check_options(vocabulary_size, tokenizer, held_out, held_out_inputs, workers)
    _refuse_nesting(out, [*inputs, *held_out_inputs])
    vocabulary_size = VOCABULARY_SIZE if vocabulary_size is None else vocabulary_size
    held_out = HELD_OUT if held_out is None else held_out
    given = load(Path(tokenizer), cased=not lowercase) if tokenizer is not None else None
    digest = _tokenizer_digest(given) if given else None
    options = Options(0 if given else vocabulary_size, bool(lowercase and not given), digest, held_out, seed)
    existing = _existing(out, options)
    with _work_folder(out) as work, worker_processes(workers or usable_cores()) as processes:
        job = _Job(work, options, format, text_key, processes)
        texts = job.find(inputs, held_out_inputs, embedded, fetch=existing is None)
        for line in _told(texts):
            say(line)
        scans = [job.scan(text) for text in texts]
        longest = existing.get("longest_document") if existing else finer_cut(texts, scans, held_out)
        if longest is not None:
            say(f"cutting documents at {longest:,} characters, so that {held_out:.1%} of the text can be held out")
            texts = [text.cut_at(longest) for text in texts]
            scans = [job.scan(text) for text in texts]
        source = [_source(text, scan) for text, scan in zip(texts, scans, strict=True)]
        if existing is not None:
            return _already_prepared(out, existing, source)
        split = choose_held_out(texts, scans, held_out)
        ready = given or Vocabulary(job.train_vocabulary(texts, scans, split))
        sentences = list(_first_sentences(texts, split, seed))
        try:
            warnings = _warnings(tokenizer, ready.tokenizer, sentences)
        except UserError:
            shutil.rmtree(work)
            raise
        manifest = job.write(texts, sum(scan.characters for scan in scans), split, ready, source, longest)
        check_written(work / "result", sentences, Corpus(work / "result").head(_COMPARED_TOKENS))
        move_folder(work / "result", out)
        shutil.rmtree(work)
    return Prepared(out, manifest, already_there=False, warnings=warnings)


class _Job:
    """The steps and their shared context: the work folder, the options, how to read, the processes."""

    def __init__(
        self, work: Path, options: Options, format: str | None, text_key: str | None, workers: Workers
    ) -> None:
        self.work, self.options, self.workers = work, options, workers
        self._format, self._asked_key, self._key = format, text_key, text_key or "text"

    def find(self, inputs: Sequence[str], held_out: Sequence[str], embedded: bool, fetch: bool) -> list[Input]:
        """Returns the inputs as files, after fetching what is not a file yet (a dataset, the embedded corpus)."""
        files = {name: self._files(name) for name in [*inputs, *held_out] if not is_dataset(name)}
        _refuse_overlap(files, inputs, held_out)
        self._refuse_idle_reading(list(files.values()), len(files) < len({*inputs, *held_out}))
        found = [self._input(name, files.get(name), False, fetch) for name in inputs]
        if embedded:
            found.append(self._embedded(fetch))
        return found + [self._input(name, files.get(name), True, fetch) for name in held_out]

    def _files(self, name: str) -> FoundFiles:
        found = find_files(name, self._format, self._key)
        out = self.work.resolve()
        if any(out.is_relative_to(folder) for folder in found.folders):
            raise UserError(name, "points to the folder of --out", "choose an --out outside of the text")
        return found

    def _refuse_idle_reading(self, found: list[FoundFiles], has_datasets: bool) -> None:
        """Rejects --format and --text-key if they apply to no input."""
        formats = {file.format for each in found for file in each.files}
        if self._format is not None and not formats:
            raise UserError("--format", "has no effect: no input is a file or folder", "leave it out")
        if self._asked_key is not None and not has_datasets and not formats & {"jsonl", "parquet", "wiki"}:
            raise UserError("--text-key", "has no effect: no input is JSON lines, Parquet or a dataset", "leave it out")

    def _input(self, name: str, found: FoundFiles | None, is_held_out: bool, fetch: bool) -> Input:
        if found is not None:
            return Input(name, found.files, is_held_out, passed_over=found.passed_over)
        identity = xxhash.xxh3_128_hexdigest(f"{name} {self._key}".encode())
        files = (self._fetch(identity, dataset_documents(name, self._key)),) if fetch else ()
        return Input(name, files, is_held_out, identity)

    def _embedded(self, fetch: bool) -> Input:
        sources = embedded_sources()
        identity = fingerprint(sources)
        files: tuple[TextFile, ...] = ()
        if fetch:
            with progress("embedded corpus", LIMIT) as done:
                files = (self._fetch(identity, _counted(embedded_documents(sources, self.workers.executor), done)),)
        return Input(EMBEDDED, files, False, identity)

    def _fetch(self, identity: str, texts: Iterator[str]) -> TextFile:
        """Writes ``texts`` as a JSONL file in the work folder, unless an earlier run finished it."""
        path = self.work / f"fetched-{identity}.jsonl"
        if not path.exists():
            partial = path.with_suffix(".partial")
            try:
                with open(partial, "w", encoding="utf-8") as file:
                    file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        return TextFile(path, "jsonl")

    def scan(self, text: Input) -> Scan:
        """Reads an input once to check it, measure it and collect the hashes that decide the split."""
        total = Scan()
        with progress(f"reading {text.name}", len(text.files)) as done:
            for result in self.workers.map(scan_file, text.files, self.options.seed):
                if not isinstance(result, Scan):
                    raise UserError(*result)
                total += result
                done(1)
        if text.files and not total.documents:
            keys = next((keys for file in text.files if (keys := keys_of(file.path, file.format))), "")
            remedy = f"name one of its keys with --text-key: {keys}" if keys else "give files with text in them"
            raise UserError(text.name, "holds no text", remedy)
        return total

    def train_vocabulary(self, texts: list[Input], scans: list[Scan], split: bytes) -> Tokenizer:
        """Trains on a sample of the documents that are not held out, unless an earlier run did."""
        contents = "".join(scan.digest for scan in scans) + repr((self.options, split))
        folder = self.work / f"vocabulary-{xxhash.xxh3_128_hexdigest(contents.encode())}"
        if not folder.exists():
            kept = [scan.characters for text, scan in zip(texts, scans, strict=True) if not text.is_held_out]
            share = min(1.0, vocabulary.SAMPLE_CHARACTERS / max(sum(kept), 1))
            with progress("vocabulary", 1):
                sample = list(_sample(texts, share, split, self.options.seed))
                trained = vocabulary.train(sample, self.options.vocabulary_size, self.options.lowercase)
            partial = folder.with_suffix(".partial")
            vocabulary.save(trained, partial)
            os.replace(partial, folder)
        return _read_tokenizer(folder / "tokenizer.json")

    def write(
        self,
        texts: list[Input],
        characters: int,
        split: bytes,
        words: Vocabulary,
        source: list[dict[str, Any]],
        longest: int | None,
    ) -> dict[str, Any]:
        """Tokenizes into parts, merges them into shards, seals the result and returns its manifest."""
        result = self.work / "result"
        shutil.rmtree(result, ignore_errors=True)
        tokenizer, names = words
        vocabulary.save(tokenizer, result, names)
        parts = self._write_parts(texts, characters, split, result / "tokenizer.json")
        entries, special = vocabulary.size_of(tokenizer), vocabulary.special_ids(tokenizer, names)
        splits = {name: merge_parts(parts, result, name, entries, special["unk"]) for name in SPLITS}
        for name, counts in splits.items():
            if not counts["tokens"]:
                raise UserError(source[0]["input"], f"leaves the {name} split without a token", "give more text")
        manifest = {
            "kind": KIND,
            "format": FORMAT,
            "vocabulary": entries,
            "special": special,
            "splits": splits,
            "options": asdict(self.options),
            "source": source,
            "longest_document": longest,
        }
        seal_folder(result, manifest)
        return manifest

    def _write_parts(self, texts: list[Input], characters: int, split: bytes, tokenizer: Path) -> list[Path]:
        folder = self.work / "parts"
        folder.mkdir(exist_ok=True)
        digest = checksum(tokenizer)
        paths = []
        with progress("tokens", characters) as done:
            tasks = _parts(texts, split, self.options.seed)
            for path, size in self.workers.map(_make_part, tasks, folder, digest, tokenizer):
                paths.append(path)
                done(size)
        _encoder.cache_clear()
        return paths


def _check_options(
    size: int | None,
    tokenizer: Path | None,
    held_out: float | None,
    held_out_inputs: Sequence[str],
    workers: int | None,
) -> None:
    """Rejects options that mean nothing, or that another one makes ineffective."""
    smallest, largest = vocabulary.SMALLEST, vocabulary.LARGEST
    if size is not None and tokenizer is not None:
        raise UserError("--vocabulary-size", "has no effect with --tokenizer", "leave one of the two out")
    if held_out is not None and held_out_inputs:
        raise UserError("--held-out", "has no effect with --held-out-input", "leave one of the two out")
    if size is not None and not smallest <= size <= largest:
        raise UserError("--vocabulary-size", f"{size:,} is out of range", f"use {smallest:,} to {largest:,}")
    if held_out is not None and not 0 < held_out < 1:
        raise UserError("--held-out", f"{held_out} is not a share", "use a number above 0 and below 1, such as 0.01")
    if workers is not None and workers < 1:
        raise UserError("--workers", f"is {workers}", "use 1 or more")


def _refuse_overlap(files: Mapping[str, FoundFiles], inputs: Sequence[str], held_out: Sequence[str]) -> None:
    """Rejects text that is held out and trained on at once: its loss would not be a held-out loss."""
    both = next((name for name in held_out if name in inputs), None)
    trained = {file.path.resolve() for name in inputs if name in files for file in files[name].files}
    apart = (file.path for name in held_out if name in files for file in files[name].files)
    shared = both or next((path for path in apart if path.resolve() in trained), None)
    if shared is not None:
        raise UserError(shared, "is an input and a --held-out-input", "give it as one of the two")


def _refuse_nesting(out: Path, inputs: Sequence[str]) -> None:
    """Rejects an output inside the inputs: the next run would read the result as text."""
    for name in inputs:
        if not name:
            raise UserError("prepare", "has an input without a name", "give files, folders or a dataset")
        if Path(name).is_dir() and out.resolve().is_relative_to(Path(name).resolve()):
            raise UserError(out, f"lies inside the input {name}", "choose an --out outside of the text")


def _existing(out: Path, options: Options) -> dict[str, Any] | None:
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
    """Returns ``out`` unchanged if it was made from this ``source``."""

    def identities(entries: list[dict[str, Any]]) -> list[tuple[str, bool]]:
        return [(entry["identity"], entry["held_out"]) for entry in entries]

    if identities(manifest["source"]) != identities(source):
        raise UserError(out, "was prepared from other text", "choose another --out or remove the folder")
    return Prepared(out, manifest, already_there=True)


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Opens the work folder of ``out``, kept for the next run and locked for one process at a time."""
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


def _told(texts: list[Input]) -> Iterator[str]:
    for text in texts:
        formats = Counter(file.format for file in text.files) if text.identity is None else {}
        yield from read_as(text.name, formats, text.passed_over)


def _source(text: Input, scan: Scan) -> dict[str, Any]:
    return {
        "input": os.fsencode(text.name).decode("utf-8", "replace"),
        "held_out": text.is_held_out,
        "files": len(text.files),
        "formats": dict(Counter(file.format for file in text.files)),
        "passed_over": len(text.passed_over),
        "bytes": sum(file.path.stat().st_size for file in text.files),
        "documents": scan.documents,
        "empty": scan.empty,
        "identity": text.identity or scan.digest,
    }


def _tokenizer_digest(given: Vocabulary) -> str:
    """Digests a tokenizer and the names of its special tokens, unless they are BERT's."""
    names = "" if given.special == vocabulary.SPECIAL_TOKENS else repr(sorted(given.special.items()))
    return xxhash.xxh3_128_hexdigest((given.tokenizer.to_str() + names).encode())


def _first_sentences(texts: list[Input], split: bytes, seed: int) -> Iterator[str]:
    """Returns the first sentences of the training split, ``_COMPARED_CHARACTERS`` in total."""
    left = _COMPARED_CHARACTERS
    for document in input_documents(texts, is_held_out=False):
        if not is_held_out(document_hash(document, seed), split):
            for sentence in split_sentences(document):
                left -= len(sentence)
                if left < 0:
                    return
                yield sentence


def _warnings(given: Path | None, tokenizer: Tokenizer, sentences: list[str]) -> tuple[str, ...]:
    """Returns warnings about the vocabulary from the first sentences.

    Raises:
        UserError: nearly all of their tokens are [UNK].
    """
    where = f"--tokenizer {given}" if given is not None else "the vocabulary"
    share = unknown_share(tokenizer, sentences)
    warning = check_unknown(share, lambda: unknown_cause(tokenizer, sentences), where)
    return (warning,) if warning else ()


def _sample(texts: list[Input], share: float, split: bytes, seed: int) -> Iterator[str]:
    """Yields about ``share`` of the training documents, by another hash of their content, up to the sample's size."""
    limit, left = int(share * 2**64), vocabulary.SAMPLE_CHARACTERS
    for document in input_documents(texts, is_held_out=False):
        if not is_held_out(document_hash(document, seed), split) and document_hash(document, ~seed) < limit:
            yield document.replace(SENTENCE_END, "\n")
            left -= len(document)
            if left <= 0:
                return


def _parts(texts: list[Input], split: bytes, seed: int) -> Iterator[DocumentRange]:
    """Yields all documents in order, in parts; held-out inputs have parts of their own."""
    number = 0
    for from_held_out, chosen in ((False, split), (True, ALL)):
        batch: list[str] = []
        size = 0
        for document in input_documents(texts, from_held_out):
            batch.append(document)
            size += len(document)
            if size >= PART_CHARACTERS:
                yield DocumentRange(number, batch, chosen, seed)
                batch, size, number = [], 0, number + 1
        if batch:
            yield DocumentRange(number, batch, chosen, seed)
            number += 1


def _make_part(part: DocumentRange, folder: Path, tokenizer_digest: str, tokenizer: Path) -> tuple[Path, int]:
    """Writes a part unless it exists; returns its file and the number of characters it covers."""
    path = part.path(folder, tokenizer_digest)
    if not is_whole(path):
        write_part(part, _encoder(tokenizer, tokenizer_digest), path)
    return path, part.characters()


@lru_cache(maxsize=1)
def _encoder(tokenizer: Path, digest: str) -> Encoder:
    """Returns this process's encoder, with the words cached from earlier parts."""
    return Encoder(_read_tokenizer(tokenizer))


def _read_tokenizer(path: Path) -> Tokenizer:
    """Loads the tokenizer in ``path``; the library requires UTF-8 names, this function does not."""
    return Tokenizer.from_str(path.read_text(encoding="utf-8"))


def _counted(texts: Iterator[str], done: Any) -> Iterator[str]:
    for text in texts:
        yield text
        done(len(text))
