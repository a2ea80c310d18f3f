"""Trains WordPiece vocabularies on a sample of the text, and writes them so that transformers gives the shards' ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stacking.storage.files import write_atomically, write_json

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""In the order of their ids, 0 to 4, in a trained vocabulary."""

SAMPLE_CHARACTERS = 64_000_000
"""Maximum amount of text to train on; training holds it and its word counts in memory."""

SMALLEST, LARGEST = 100, 1_000_000
_COVERED = 0.9999
_RARE_SHARE = 0.25
_LONGEST_WORD = 100
"""In characters; BERT's tokenizer turns a longer word into [UNK]."""


class Vocabulary(NamedTuple):
    """A tokenizer, and the spelling of its five special tokens."""

    tokenizer: Tokenizer
    special: Mapping[str, str] = SPECIAL_TOKENS


def train(texts: Sequence[str], size: int, lowercase: bool) -> Tokenizer:
    """Trains a BERT tokenizer with at most ``size`` entries, the same for the same ``texts`` in every process.

    Its alphabet is that of ``_alphabet``; other characters become [UNK]. By itself, the trainer breaks ties among rare
    characters at random and numbers the ``##`` characters in hash table order; so rare characters are removed here, and
    the ``##`` characters are added with the special tokens.
    """
    tokenizer = bert(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]), lowercase)
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
    return with_specials(bert(model, lowercase), SPECIAL_TOKENS)


def special_ids(tokenizer: Tokenizer, special: Mapping[str, str] = SPECIAL_TOKENS) -> dict[str, int]:
    """Returns the ids of ``pad``, ``unk``, ``cls``, ``sep`` and ``mask``, spelled as in ``special``."""
    entries = tokenizer.get_vocab(with_added_tokens=True)
    return {name: entries[text] for name, text in special.items()}


def size_of(tokenizer: Tokenizer) -> int:
    """Returns the rows that an embedding needs: the highest id plus one."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def save(tokenizer: Tokenizer, folder: Path, special: Mapping[str, str] = SPECIAL_TOKENS) -> None:
    """Writes the files from which ``transformers.AutoTokenizer`` rebuilds ``tokenizer``.

    ``BertTokenizer`` rebuilds BERT's own normalizer and pre-tokenizer and only reads the entries; any other tokenizer
    is a ``PreTrainedTokenizerFast``, which uses ``tokenizer.json`` as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = json.loads(tokenizer.to_str())
    write_json(folder / "tokenizer.json", description)
    entries = {id: token for token, id in tokenizer.get_vocab(with_added_tokens=True).items()}
    lines = [entries.get(id, f"[unused-{id}]") for id in range(size_of(tokenizer))]
    write_atomically(folder / "vocab.txt", "\n".join(lines) + "\n")
    specials: dict[str, Any] = {f"{name}_token": text for name, text in special.items()}
    others = [token["content"] for token in description["added_tokens"] if token["content"] not in special.values()]
    settings = _fast_settings(description, special) if others or not _is_bert(description) else _settings(description)
    write_json(folder / "tokenizer_config.json", {**settings, "model_max_length": 512, **specials})
    write_json(folder / "special_tokens_map.json", specials)


def _is_bert(description: Mapping[str, Any]) -> bool:
    """Whether ``BertTokenizer`` rebuilds these parts of a ``tokenizer.json`` from the entries and its settings."""
    normalizer, splitter, model = (description[part] or {} for part in ("normalizer", "pre_tokenizer", "model"))
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and splitter.get("type") == "BertPreTokenizer"
        and model["continuing_subword_prefix"] == "##"
        and model["max_input_chars_per_word"] == _LONGEST_WORD
    )


def _settings(description: Mapping[str, Any]) -> dict[str, Any]:
    normalizer = description["normalizer"]
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer["lowercase"],
        "strip_accents": normalizer["strip_accents"],
        "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
    }


def _fast_settings(description: Mapping[str, Any], special: Mapping[str, str]) -> dict[str, Any]:
    others = [token for token in description["added_tokens"] if token["content"] not in special.values()]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "additional_special_tokens": [token["content"] for token in others if token["special"]],
    }


def bert(model: models.Model, lowercase: bool) -> Tokenizer:
    """Combines ``model`` with the normalizer and pre-tokenizer of Devlin et al. (2019)."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def with_specials(tokenizer: Tokenizer, special: Mapping[str, str]) -> Tokenizer:
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
    """Returns the characters of ``texts`` to keep, most frequent first; ties go to the lower code point.

    A character takes one of the ``entries``, or two if it can occur inside a word. Those that cover ``_COVERED`` of the
    text may take all entries; rarer ones are kept while the alphabet takes at most ``_RARE_SHARE``.
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
    """Returns ``##c`` for every character c that can occur inside a word, in the order of the code points."""
    normalised = {each for character in characters for each in tokenizer.normalizer.normalize_str(character)}
    inside = [each for each in sorted(normalised) if _is_inside_words(each, tokenizer)]
    return [f"##{each}" for each in inside if not each.isspace()]
