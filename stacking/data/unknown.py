"""Detects text that a vocabulary does not cover: how much of it becomes [UNK], and the likely cause."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer

from stacking.errors import UserError

WARN_SHARE, REFUSE_SHARE = 0.05, 0.9
"""Share of the tokens. English text has about 0.1 % with a suitable vocabulary."""

_CURED = 0.5
"""A change that leaves at most this share of the unknown tokens has found the cause."""
_MOST_CHARACTERS = 100_000


def unknown_share(tokenizer: Tokenizer, sentences: Sequence[str]) -> float:
    """Returns the share of [UNK] in the tokens of ``sentences``, from 0 to 1."""
    unknown = tokenizer.token_to_id(tokenizer.model.unk_token)
    counts = Counter(id for each in tokenizer.encode_batch(sentences, add_special_tokens=False) for id in each.ids)
    return (counts[unknown] if unknown is not None else 0) / max(counts.total(), 1)


def unknown_cause(tokenizer: Tokenizer, sentences: Sequence[str]) -> str:
    """Explains in one phrase why ``tokenizer`` makes so many words of ``sentences`` [UNK], and what to do.

    Tries likely mistakes in a tokenizer's settings and reports the change that helps most; if none does, names the
    characters that the vocabulary lacks.
    """
    sample = _beginning(sentences)
    limit = _CURED * unknown_share(tokenizer, sample)
    shares = {cause: unknown_share(changed, sample) for cause, changed in _changed(tokenizer)}
    best = min(shares, key=lambda cause: shares[cause], default=None)
    if best is not None and shares[best] <= limit:
        return best
    return _missing_characters(tokenizer, sample) or "the vocabulary was made for other text; train one of its own"


def check_unknown(share: float, cause: Callable[[], str], where: str) -> str | None:
    """Returns a warning if ``share`` of [UNK] in the tokens is high, else None.

    Args:
        cause: called only if needed: see ``unknown_cause``.

    Raises:
        UserError: nearly all tokens are [UNK].
    """
    if share < WARN_SHARE:
        return None
    problem = f"makes {share:.0%} of the tokens [UNK]"
    if share >= REFUSE_SHARE:
        raise UserError(where, problem, cause())
    return f"{where} {problem}: {cause()}"


def _changed(tokenizer: Tokenizer) -> list[tuple[str, Tokenizer]]:
    """Yields likely mistakes in the settings, each with the corrected tokenizer."""
    description = json.loads(tokenizer.to_str())
    found: list[tuple[str, dict[str, Any]]] = []
    normalizer, model = description["normalizer"] or {}, description["model"]
    if normalizer.get("type") == "BertNormalizer":
        lowers = normalizer["lowercase"]
        strips = lowers if normalizer["strip_accents"] is None else normalizer["strip_accents"]
        keeps = "it strips accents, but the vocabulary has them; set strip_accents to false"
        drops = "it keeps accents, but the vocabulary has none; set strip_accents to true"
        found.append((keeps if strips else drops, {"strip_accents": not strips}))
        uncased = "it lower-cases, but the vocabulary has upper-case entries"
        cased = f"{uncased}; set do_lower_case to false, or add --cased to a bare vocab.txt"
        folded = "it keeps upper case, but the vocabulary has lower-case entries; set do_lower_case to true"
        found.append((cased if lowers else folded, {"lowercase": not lowers, "strip_accents": not lowers}))
    changes = [(cause, {**description, "normalizer": {**normalizer, **change}}) for cause, change in found]
    longest = model["max_input_chars_per_word"]
    words = f"words are longer than its {longest} characters (max_input_chars_per_word); separate them by spaces"
    changes.append((words, {**description, "model": {**model, "max_input_chars_per_word": 1_000_000}}))
    return [(cause, Tokenizer.from_str(json.dumps(content))) for cause, content in changes]


def _missing_characters(tokenizer: Tokenizer, sentences: Sequence[str]) -> str | None:
    """Names the most common scripts of ``sentences`` whose characters no entry has."""
    known = set().union(*map(set, tokenizer.get_vocab(with_added_tokens=True)))
    normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    text = "".join(normalize(sentence) for sentence in sentences)
    missing = Counter(character for character in text if character not in known and not character.isspace())
    if not missing:
        if not any(token.startswith("##") for token in tokenizer.get_vocab()):
            return "the vocabulary only has whole words, no pieces (##…); train one of its own"
        return None
    scripts: Counter[str] = Counter()
    for character, count in missing.items():
        scripts[_script(character)] += count
    names = " and ".join(name for name, _ in scripts.most_common(2))
    few = "".join(character for character, _ in missing.most_common(5))
    return f"the vocabulary lacks {len(missing):,} characters of the text ({names}: {few}); train one of its own"


def _script(character: str) -> str:
    """Returns the script, such as ``Cyrillic`` or ``Cjk``, or the kind of a character without one."""
    kind = {"P": "punctuation", "N": "numbers", "S": "symbols"}.get(unicodedata.category(character)[0])
    return kind or unicodedata.name(character, "unnamed").split(" ")[0].split("-")[0].capitalize()


def _beginning(sentences: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    size = 0
    for sentence in sentences:
        if size >= _MOST_CHARACTERS:
            break
        chosen.append(sentence[: _MOST_CHARACTERS - size])
        size += len(chosen[-1])
    return chosen
