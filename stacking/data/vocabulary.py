"""WordPiece vocabularies: trained on a sample of the text, or taken from a tokenizer that exists.

Either way the folder that ``save`` writes loads with ``transformers.AutoTokenizer.from_pretrained`` and gives the ids
that are in the shards.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stacking.errors import UserError
from stacking.storage.files import read_json, write_json

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""In the order of their ids, 0 to 4, in a trained vocabulary."""

SAMPLE_CHARACTERS = 64_000_000
"""The most text that a vocabulary is trained on; training keeps it, and the count of its words, in memory."""

SMALLEST, LARGEST = 100, 1_000_000
_COVERED = 0.9999
_RARE_SHARE = 0.25
_WORDPIECE_FILES = ("tokenizer.json", "vocab.txt")


def train(texts: Sequence[str], size: int, lowercase: bool) -> Tokenizer:
    """A BERT tokenizer with at most ``size`` entries, the same for the same ``texts`` in every process.

    Its alphabet is that of ``_alphabet``; other characters become [UNK]. The trainer alone
    breaks ties among rare characters at random, and numbers the ``##`` characters as it meets them in a hash table; so
    the first are removed here, and the second go in with the special tokens.
    """
    tokenizer = _bert(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]), lowercase)
    common = _alphabet(texts, size - len(SPECIAL_TOKENS), tokenizer)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS.values(), *_continuations(common, tokenizer)],
        limit_alphabet=LARGEST,
        show_progress=False,
    )
    rare = {ord(character): " " for character in set().union(*map(set, texts)) - set(common)}
    tokenizer.train_from_iterator((text.translate(rare) for text in texts) if rare else texts, trainer=trainer)
    model = models.WordPiece(tokenizer.get_vocab(), unk_token=SPECIAL_TOKENS["unk"])
    return _with_specials(_bert(model, lowercase), SPECIAL_TOKENS)


def load(path: Path) -> Tokenizer:
    """The tokenizer in ``path``: a folder (of transformers or of ours), a ``tokenizer.json`` or a ``vocab.txt``.

    Raises:
        UserError: there is none, it cannot be read, is not WordPiece, or lacks pad, unk, cls, sep or mask.
    """
    file = _tokenizer_file(path)
    config = file.parent / "tokenizer_config.json"
    settings = read_json(config) if config.is_file() else {}
    try:
        if file.suffix == ".json":
            tokenizer = Tokenizer.from_file(str(file))
        else:
            model = models.WordPiece.from_file(str(file), unk_token=SPECIAL_TOKENS["unk"])
            tokenizer = _bert(model, bool(settings.get("do_lower_case", True)))
    except Exception as error:
        problem = f"is not a tokenizer ({str(error).strip()})"
        raise UserError(file, problem, "give a tokenizer.json or vocab.txt") from None
    if not isinstance(tokenizer.model, models.WordPiece):
        raise UserError(file, f"is a {type(tokenizer.model).__name__} tokenizer", "give a WordPiece one, as BERT's")
    missing = [text for text in SPECIAL_TOKENS.values() if tokenizer.token_to_id(text) is None]
    if missing:
        raise UserError(file, f"has no {', '.join(missing)}", f"give one with {', '.join(SPECIAL_TOKENS.values())}")
    if tokenizer.model.unk_token != SPECIAL_TOKENS["unk"]:
        problem = f"writes {tokenizer.model.unk_token!r} for unknown words"
        raise UserError(file, problem, f"give one that writes {SPECIAL_TOKENS['unk']}")
    if size_of(tokenizer) > LARGEST:
        raise UserError(file, f"has ids up to {size_of(tokenizer) - 1:,}", f"give one with at most {LARGEST:,} entries")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer if file.suffix == ".json" else _with_specials(tokenizer, SPECIAL_TOKENS)


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of ``pad``, ``unk``, ``cls``, ``sep`` and ``mask``."""
    entries = tokenizer.get_vocab(with_added_tokens=True)
    return {name: entries[text] for name, text in SPECIAL_TOKENS.items()}


def size_of(tokenizer: Tokenizer) -> int:
    """Rows that an embedding needs: the highest id and one."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json``, ``vocab.txt`` and ``tokenizer_config.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    description = json.loads(tokenizer.to_str())
    normalizer = description.get("normalizer") or {}
    write_json(folder / "tokenizer.json", description)
    entries = {id: token for token, id in tokenizer.get_vocab(with_added_tokens=True).items()}
    lines = [entries.get(id, f"[unused-{id}]") for id in range(size_of(tokenizer))]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lowercase = bool(normalizer.get("lowercase", False))
    strip_accents = normalizer.get("strip_accents")
    settings: dict[str, Any] = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase,
        "strip_accents": strip_accents,
        "tokenize_chinese_chars": bool(normalizer.get("handle_chinese_chars", True)),
        "model_max_length": 512,
    }
    specials = {f"{name}_token": text for name, text in SPECIAL_TOKENS.items()}
    write_json(folder / "tokenizer_config.json", settings | specials)


def _tokenizer_file(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in _WORDPIECE_FILES if (path / name).is_file()]
        if not found:
            raise UserError(path, "has no tokenizer in it", f"give a folder with {' or '.join(_WORDPIECE_FILES)}")
        return found[0]
    if not path.is_file():
        raise UserError(path, "does not exist", f"give a folder, or a file like {' or '.join(_WORDPIECE_FILES)}")
    return path


def _bert(model: models.Model, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _with_specials(tokenizer: Tokenizer, special: dict[str, str]) -> Tokenizer:
    """Declare the special tokens, and put [CLS] and [SEP] around whole inputs as BERT does."""
    tokenizer.add_special_tokens(list(special.values()))
    cls, sep = special["cls"], special["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))],
    )
    return tokenizer


def _alphabet(texts: Sequence[str], entries: int, tokenizer: Tokenizer) -> list[str]:
    """The characters of ``texts`` to keep, the commonest first; ties go to the lower code point.

    A character takes one of the ``entries``, or two if it can stand inside a word. Those that cover ``_COVERED`` of the
    text may take them all; rarer ones are kept as long as the alphabet takes at most ``_RARE_SHARE``.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    kept: list[str] = []
    known: set[str] = set()
    taken = 0
    left = _COVERED * counts.total()
    for character in sorted(counts, key=lambda character: (-counts[character], character)):
        fresh = set(tokenizer.normalizer.normalize_str(character)) - known
        taken += sum(0 if each.isspace() else 1 + _is_inside_words(each, tokenizer) for each in fresh)
        if taken > (entries if left > 0 else _RARE_SHARE * entries):
            break
        known |= fresh
        kept.append(character)
        left -= counts[character]
    return kept


def _is_inside_words(character: str, tokenizer: Tokenizer) -> bool:
    """Whether ``character`` can follow another one in a word."""
    word = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(word)) == 1


def _continuations(characters: list[str], tokenizer: Tokenizer) -> list[str]:
    """``##c`` for every character c that can stand inside a word, in the order of the code points."""
    normalised = {each for character in characters for each in tokenizer.normalizer.normalize_str(character)}
    inside = [each for each in sorted(normalised) if _is_inside_words(each, tokenizer)]
    return [f"##{each}" for each in inside if not each.isspace()]
