"""Loads a user's tokenizer as ``transformers.AutoTokenizer`` does, or rejects it with the reason.

transformers itself loads a folder, so its ids are the shards' ids whatever ``tokenizer_config.json``,
``added_tokens.json`` and ``tokenizer.json`` say. What transformers would silently ignore is rejected: a
``tokenizer.json`` whose parts are replaced by the class in ``tokenizer_config.json``, or a vocabulary that contradicts
it. A bare ``vocab.txt`` is Google's WordPiece; a bare ``tokenizer.json`` is used as it is.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from stacking.data.tokenizer_files import read_entries, read_object, refuse_other_programs, refuse_other_tokenizers
from stacking.data.vocabulary import LARGEST, SPECIAL_TOKENS, Vocabulary, bert, size_of, with_specials
from stacking.errors import UserError

TOKENIZER, VOCABULARY, SETTINGS = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
_ADDED, _SPECIALS = "added_tokens.json", "special_tokens_map.json"
_BESIDE = (SETTINGS, _ADDED, _SPECIALS, "config.json")
"""Files that transformers reads in addition to a vocabulary."""
_SWITCHES = {"do_lower_case": (bool,), "tokenize_chinese_chars": (bool,), "strip_accents": (bool, type(None))}
_NEED = "give a folder, or a file like tokenizer.json or vocab.txt"


def load(path: Path, cased: bool = False) -> Vocabulary:
    """Loads the tokenizer in ``path``: a folder (of transformers or of ours), a ``tokenizer.json`` or a ``vocab.txt``.

    Args:
        cased: keep upper case and accents, unless settings or a ``tokenizer.json`` decide that.

    Raises:
        UserError: it does not exist, cannot be read, is not WordPiece, contradicts itself, lacks one of the five
            special tokens, or already decides what ``cased`` would.
    """
    if path.is_dir():
        where, found = _from_folder(path, cased)
    elif not path.is_file():
        raise UserError(path, "does not exist", _NEED)
    elif path.suffix == ".json":
        where, found = path, Vocabulary(_from_json(path, cased), SPECIAL_TOKENS)
    elif (path.parent / SETTINGS).is_file():
        with _without_tokenizer_json(path) as folder:
            where, found = path, _from_folder(folder, cased, shown=path.parent)[1]
    else:
        where, found = path, _from_vocabulary(path, cased)
    _check(where, found)
    found.tokenizer.no_truncation()
    found.tokenizer.no_padding()
    found.tokenizer.encode_special_tokens = False
    return found


def _from_vocabulary(file: Path, cased: bool) -> Vocabulary:
    entries = read_entries(file)
    missing = [text for text in SPECIAL_TOKENS.values() if text not in entries]
    if missing:
        raise _lacks(file, missing)
    model = models.WordPiece(entries, unk_token=SPECIAL_TOKENS["unk"])
    return Vocabulary(with_specials(bert(model, lowercase=not cased), SPECIAL_TOKENS), SPECIAL_TOKENS)


def _from_json(file: Path, cased: bool) -> Tokenizer:
    refuse_other_programs(file, read_object(file))
    if cased:
        raise UserError("--cased", f"has no effect: {file} already sets whether to lower-case", "leave it out")
    return _parsed(file)


def _parsed(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(file, f"is not a tokenizer ({_reason(error)})", "give a tokenizer.json or vocab.txt") from None


def _from_folder(folder: Path, cased: bool, shown: Path | None = None) -> tuple[Path, Vocabulary]:
    """Loads ``folder`` (called ``shown`` in messages) with transformers; also returns the file with its entries."""
    shown = shown or folder
    json_file, vocabulary = folder / TOKENIZER, folder / VOCABULARY
    if not json_file.is_file() and not vocabulary.is_file():
        refuse_other_tokenizers(folder)
        raise UserError(shown, "has no tokenizer in it", f"give a folder with {TOKENIZER} or {VOCABULARY}")
    objects = {name: read_object(folder / name) for name in (TOKENIZER, *_BESIDE) if (folder / name).is_file()}
    settings, config = objects.get(SETTINGS, {}), objects.get("config.json", {})
    if TOKENIZER in objects:
        refuse_other_programs(shown / TOKENIZER, objects[TOKENIZER])
    entries = read_entries(vocabulary) if vocabulary.is_file() else {}
    _check_settings(shown / SETTINGS, settings, config)
    if cased and (TOKENIZER in objects or "do_lower_case" in settings):
        says = TOKENIZER if TOKENIZER in objects else f"{SETTINGS}: do_lower_case"
        problem = f"has no effect: {shown / says} already sets whether to lower-case"
        raise UserError("--cased", problem, "leave it out, or give the vocab.txt of a folder without settings")
    is_named = bool(TOKENIZER in objects or settings.get("tokenizer_class") or config.get("model_type"))
    if not is_named and not any(objects.get(name) for name in (SETTINGS, _ADDED, _SPECIALS)):
        return shown / VOCABULARY, _from_vocabulary(vocabulary, cased)
    where = shown / (TOKENIZER if TOKENIZER in objects else VOCABULARY)
    own = _parsed(json_file) if TOKENIZER in objects else None
    if own is not None:
        _check_size(where, own)
    loaded = _transformers(folder, shown, is_named, cased)
    tokenizer = loaded.backend_tokenizer
    special = {name: getattr(loaded, f"{name}_token") or text for name, text in SPECIAL_TOKENS.items()}
    given = set(entries) | _added(objects)
    if own is not None:
        given = set(own.get_vocab(with_added_tokens=True)) | _added(objects)
        _check_agreement(shown, own, tokenizer, type(loaded).__name__)
        _check_entries(shown, own, entries)
    missing = [text for text in special.values() if text not in given]
    if missing:
        raise _lacks(where, missing)
    return where, Vocabulary(tokenizer, special)


def _transformers(folder: Path, shown: Path, is_named: bool, cased: bool) -> Any:
    """Loads transformers' tokenizer for ``folder``; BERT's if no class is named. Runs no code from the folder."""
    import transformers

    kind = transformers.AutoTokenizer if is_named else getattr(transformers, "BertTokenizerFast")  # noqa: B009
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    options: dict[str, Any] = {"do_lower_case": False} if cased else {}
    try:
        loaded = kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # each class of transformers raises its own types
        problem = f"cannot be loaded by transformers ({_reason(error)})"
        raise UserError(shown, problem, "give a folder that transformers.AutoTokenizer loads") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    if not isinstance(getattr(loaded, "backend_tokenizer", None), Tokenizer):
        raise UserError(shown, f"is a {type(loaded).__name__}", "give a WordPiece tokenizer, as BERT's")
    return loaded


@contextmanager
def _without_tokenizer_json(vocabulary: Path) -> Iterator[Path]:
    """Creates a folder with this vocabulary and its companion files, except for a ``tokenizer.json``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / VOCABULARY).symlink_to(vocabulary.resolve())
        for beside in _BESIDE:
            if (vocabulary.parent / beside).is_file():
                (folder / beside).symlink_to((vocabulary.parent / beside).resolve())
        yield folder


def _check_settings(where: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Rejects settings that transformers cannot follow, or that split words in another way."""
    for key, kinds in _SWITCHES.items():
        if key in settings and not isinstance(settings[key], kinds):
            raise UserError(f"{where}: {key}", f"is {json.dumps(settings[key])}", "write true or false")
    for key in ("tokenizer_class", "word_tokenizer_type"):
        named = settings.get(key) or config.get(key)
        if named is not None and not isinstance(named, str):
            raise UserError(f"{where}: {key}", f"is {json.dumps(named)}", "give the name of a class")
        if key == "tokenizer_class" and named and "Japanese" in named:
            words = settings.get("word_tokenizer_type", "basic")
            problem = f"is {named}, which splits words with {words}, not by BERT's rules"
            raise UserError(f"{where}: {key}", problem, "split the text into words first and give the bare vocab.txt")
    if settings.get("word_tokenizer_type", "basic") != "basic":
        problem = f"is {settings['word_tokenizer_type']}, not BERT's rules"
        remedy = "split the text into words first and give the bare vocab.txt"
        raise UserError(f"{where}: word_tokenizer_type", problem, remedy)
    if "auto_map" in settings:
        problem = "refers to code in the folder, which is not run here"
        raise UserError(f"{where}: auto_map", problem, "give a tokenizer of transformers' own classes")
    if settings.get("split_special_tokens"):
        problem = "is set, but special tokens in the text count as special tokens here"
        raise UserError(f"{where}: split_special_tokens", problem, "remove it")


def _check_agreement(folder: Path, own: Tokenizer, loaded: Tokenizer, kind: str) -> None:
    """Rejects a ``tokenizer.json`` of which transformers replaces a part."""
    theirs, ours = parts(loaded), parts(own)
    for part in ours:
        if ours[part] != theirs[part]:
            problem = f"says {_short(ours[part])}, but {kind} of {SETTINGS} makes that {_short(theirs[part])}"
            remedy = f"set tokenizer_class to PreTrainedTokenizerFast, give {folder / TOKENIZER} itself, or correct one"
            raise UserError(f"{folder / TOKENIZER}: {part}", problem, remedy)
    ids = loaded.get_vocab(with_added_tokens=True)
    for token, number in own.get_vocab(with_added_tokens=True).items():
        if ids.get(token) != number:
            problem = f"gives {token!r} the id {number}, but {kind} of {SETTINGS} the id {ids.get(token)}"
            raise UserError(folder / TOKENIZER, problem, f"give {folder / TOKENIZER} itself")


def _check_entries(folder: Path, own: Tokenizer, entries: Mapping[str, int]) -> None:
    """Rejects a ``vocab.txt`` with other ids than the ``tokenizer.json`` next to it."""
    ids = own.get_vocab(with_added_tokens=True)
    for token, number in entries.items():
        if ids.get(token, number) != number:
            problem = f"gives {token!r} the id {number}, but {TOKENIZER} the id {ids[token]}"
            raise UserError(folder / VOCABULARY, problem, "give the intended one of the two files")


def parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns what determines the ids in addition to the entries: normalizer, pre-tokenizer, model constants."""
    description = json.loads(tokenizer.to_str())
    normalizer = description["normalizer"]
    if normalizer and normalizer["type"] == "BertNormalizer" and normalizer["strip_accents"] is None:
        normalizer["strip_accents"] = normalizer["lowercase"]
    model = {key: value for key, value in description["model"].items() if key != "vocab"}
    return {"normalizer": normalizer, "pre_tokenizer": description["pre_tokenizer"], "model": model}


def _added(objects: Mapping[str, Mapping[str, Any]]) -> set[str]:
    decoder = objects.get(SETTINGS, {}).get("added_tokens_decoder")
    tokens = decoder.values() if isinstance(decoder, dict) else ()
    return set(objects.get(_ADDED, {})) | {str(token.get("content")) for token in tokens if isinstance(token, dict)}


def _check(where: Path, found: Vocabulary) -> None:
    tokenizer, special = found
    if not isinstance(tokenizer.model, models.WordPiece):
        raise UserError(where, f"is a {type(tokenizer.model).__name__} tokenizer", "give a WordPiece one, as BERT's")
    ids = {text: tokenizer.token_to_id(text) for text in special.values()}
    missing = [text for text, number in ids.items() if number is None]
    if missing:
        raise _lacks(where, missing)
    if len(set(ids.values())) < len(special):
        problem = f"uses one token for several of {', '.join(special)}: {', '.join(special.values())}"
        raise UserError(where, problem, "give each of them a token of its own")
    if tokenizer.model.unk_token != special["unk"]:
        problem = f"writes {tokenizer.model.unk_token!r} for unknown words"
        raise UserError(where, problem, f"give one that writes {special['unk']}")
    _check_size(where, tokenizer)
    broken = [token for token in tokenizer.get_vocab(with_added_tokens=True) if "\n" in token or "\r" in token]
    if broken:
        raise UserError(where, f"has the entry {broken[0]!r}", "give one whose entries are single lines")


def _check_size(where: Path, tokenizer: Tokenizer) -> None:
    if size_of(tokenizer) > LARGEST:
        raise UserError(
            where, f"has ids up to {size_of(tokenizer) - 1:,}", f"give one with at most {LARGEST:,} entries"
        )


def _lacks(where: Path, missing: list[str]) -> UserError:
    return UserError(where, f"has no {', '.join(missing)}", f"give one with {', '.join(SPECIAL_TOKENS.values())}")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__


def _short(part: Any) -> str:
    text = json.dumps(part)
    return text if len(text) < 160 else f"{text[:157]}..."
